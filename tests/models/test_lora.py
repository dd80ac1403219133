"""Adapters: what they add, what they leave alone, and the format they leave in."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import kit
from vlmrl import sharding
from vlmrl.engine.prefix_cache import embed_group
from vlmrl.models import lora, peft, quant
from vlmrl.models.api import linear
from vlmrl.rl import update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.types import UserError

EVERY = lora.Adapter(3, 6.0, ("*",))
LINEARS = {
    *(f"text.layers.{x}" for x in ("q", "k", "v", "o", "gate", "up", "down")),
    *(f"vision.layers.{x}" for x in ("qkv", "o", "gate", "up", "down")),
    *("vision.merger.in", "vision.merger.out"),
}


@pytest.fixture(scope="module")
def adapted():
    """(Model, params) of the toy with an adapter on every linear layer, none at 0."""
    params = lora.init(kit.model(), EVERY, kit.params(), jax.random.key(3))
    noise = jax.random.split(jax.random.key(4), len(params))
    for (name, p), key in zip(list(params.items()), noise, strict=True):
        if name.endswith(".b"):
            params[name] = 0.1 * jax.random.normal(key, p.shape)
    return lora.attach(kit.model(), EVERY), params


@pytest.fixture(scope="module")
def logits():
    """Raw logits of a model on a scene, image included."""
    group = kit.group(1)
    prefix = group._replace(branches=None)

    def run(model, params, **options):
        def forward(params):
            new_tokens = embed_group(model, params, prefix)
            (hidden,), _ = model.layers(params, new_tokens, (), kit.dense, **options)
            return hidden @ model.head(params).astype(hidden.dtype).T

        return np.asarray(jax.jit(forward)(params))

    return run


def test_every_linear_layer_can_be_adapted_and_nothing_else():
    table = kit.model().table
    assert {n for n, p in table.items() if linear(p)} == LINEARS
    added = lora.rows(kit.model(), EVERY)
    assert len(added) == 2 * len(LINEARS)
    q = table["text.layers.q"].shape  # [layers, D, K, R, H]
    a, b = (added[f"lora.text.layers.q.{x}"] for x in "ab")
    assert a.shape == (q[0], 3, q[1]) and b.shape == (q[0], 3, *q[2:])
    assert a.axes == (None, None, "embed") and b.axes[2] == "kv_heads"
    o = added["lora.text.layers.o.a"]
    assert o.shape == (q[0], 3, *q[2:]) and o.init == (3 * 4 * 12) ** -0.5


@pytest.mark.slow
def test_a_fresh_adapter_changes_nothing(logits):
    model, params = kit.model(), kit.params()
    started = lora.init(model, EVERY, params, jax.random.key(0))
    assert not any(p.any() for n, p in started.items() if n.endswith(".b"))
    found = logits(lora.attach(model, EVERY), started)
    np.testing.assert_array_equal(found, logits(model, params))


def test_merged_equals_attached(adapted, logits):
    model, params = adapted
    merged = lora.merge(kit.model(), EVERY, params)
    found, wanted = logits(kit.model(), merged), logits(model, params)
    spread = wanted.std()
    assert np.abs(found - wanted).max() <= 1e-5 * max(1, spread)
    assert np.abs(wanted - logits(kit.model(), kit.params())).max() > 0.1 * spread
    unrolled = logits(model, params, unroll=True)
    assert np.abs(unrolled - wanted).max() <= 1e-5 * max(1, spread)


def test_a_merge_by_hand(adapted):
    _, params = adapted
    merged = lora.merge(kit.model(), EVERY, params)
    a, b = (np.asarray(params[f"lora.text.layers.o.{x}"], np.float64) for x in "ab")
    layers, rank = a.shape[:2]
    for i in range(layers):
        delta = a[i].reshape(rank, -1).T @ b[i].reshape(rank, -1) * 6 / 3
        base = np.asarray(params["text.layers.o"][i], np.float64)
        wanted = base + delta.reshape(base.shape)
        np.testing.assert_allclose(merged["text.layers.o"][i], wanted, atol=1e-6)
    for name in kit.model().table.keys() - LINEARS:
        np.testing.assert_array_equal(merged[name], params[name])


def test_a_merge_is_summed_in_float32(adapted):
    """A difference below bfloat16's steps survives if it is written in float32."""
    _, params = adapted
    half = {n: p if n.startswith("lora.") else p.astype(jnp.bfloat16)
            for n, p in params.items()}  # fmt: skip
    merged = lora.merge(kit.model(), EVERY, half, dtype=jnp.float32)
    base = half["text.layers.down"].astype(jnp.float32)
    exact = lora.merge(kit.model(), EVERY, half | {"text.layers.down": base})
    np.testing.assert_array_equal(merged["text.layers.down"], exact["text.layers.down"])
    assert lora.merge(kit.model(), EVERY, half)["text.layers.q"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_only_adapters_learn(adapted):
    model, params = adapted
    prefix = kit.group(1)._replace(branches=None)

    def loss(params):
        new_tokens = embed_group(model, params, prefix)
        (hidden,), _ = model.layers(params, new_tokens, (), kit.dense)
        return jnp.mean(hidden**2)

    grads = jax.jit(jax.grad(loss))(params)
    for name, g in grads.items():
        assert bool(g.any()) == name.startswith("lora."), name
    frozen = tuple(kit.model().table)
    live, grads = (update.live_of(tree, frozen) for tree in (params, grads))
    tx = update.optimizer(OptimizerOptions(peak=1e-3, weight_decay=0.1), model.table)
    changes, _ = jax.jit(tx.update)(grads, tx.init(live), live)
    assert all(c.any() for c in changes.values())
    assert set(changes) == {n for n in params if n.startswith("lora.")}


def test_adapters_are_sharded_like_their_weights():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    table = kit.model().table
    places = sharding.param_shardings(mesh, table)
    params = {n: jax.device_put(p, places[n]) for n, p in kit.params().items()}
    started = lora.init(kit.model(), EVERY, params, jax.random.key(0))
    wanted = sharding.param_shardings(mesh, lora.attach(kit.model(), EVERY).table)
    for name in started.keys() - table.keys():
        assert started[name].sharding == wanted[name], name
    spec = started["lora.text.layers.q.a"].sharding.spec
    assert "fsdp" in spec and started["lora.text.layers.gate.b"].sharding.spec[-1]


@pytest.mark.slow
def test_an_8_bit_base_can_be_adapted(adapted, logits):
    """The numbers that an `Int8` stands for are those the layers see."""
    model, params = adapted
    table = kit.model().table

    def rounded(name, p):
        if name not in LINEARS:
            return p
        kept = quant.output_axes(table[name], layers=True)
        axes = tuple(i for i in range(p.ndim) if i not in kept)
        scale = jnp.max(jnp.abs(p), axis=axes, keepdims=True) / 127
        return quant.Int8(jnp.round(p / scale).astype(jnp.int8), scale)

    small = {n: rounded(n, p) for n, p in params.items()}
    plain = {n: p.astype(jnp.float32) for n, p in small.items()}
    np.testing.assert_allclose(logits(model, small), logits(model, plain), atol=1e-4)
    for name in LINEARS:
        bound = small[name].scale * 0.5001
        assert (jnp.abs(plain[name] - params[name]) <= bound).all(), name

    prefix = kit.group(1)._replace(branches=None)

    def loss(live, held):
        new_tokens = embed_group(model, held | live, prefix)
        (hidden,), _ = model.layers(held | live, new_tokens, (), kit.dense)
        return jnp.sum(hidden**3)  # the norm makes the sum of squares a constant

    live = {n: p for n, p in params.items() if n.startswith("lora.")}
    grad = jax.jit(jax.grad(loss))
    found, wanted = grad(live, small), grad(live, plain)
    for name, g in wanted.items():
        assert kit.normwise(found[name], g) < 1e-3, name


# -- peft's format ---------------------------------------------------------------------


@pytest.fixture
def saved(adapted, tmp_path):
    return peft.save(tmp_path / "adapter", kit.model(), EVERY, adapted[1], "org/base")


def test_names_and_shapes_are_those_of_peft(saved, adapted):
    """https://huggingface.co/docs/peft/developer_guides/checkpoint"""
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    assert config["base_model_name_or_path"] == "org/base"
    tensors = load_file(saved / "adapter_model.safetensors")
    modules = {n.removeprefix("base_model.model.").rpartition(".lora_")[0]
               for n in tensors}  # fmt: skip
    assert sorted(modules) == config["target_modules"]
    assert "model.language_model.layers.1.self_attn.q_proj" in modules
    assert "model.visual.blocks.0.attn.qkv" in modules
    assert "model.visual.merger.mlp.2" in modules
    at = "base_model.model.model.language_model.layers.1.self_attn.o_proj.lora_"
    a, b = tensors[at + "A.weight"], tensors[at + "B.weight"]
    assert a.shape == (3, 48) and b.shape == (48, 3)
    base = np.asarray(adapted[1]["text.layers.o"][1]).reshape(48, 48).T
    merged = lora.merge(kit.model(), EVERY, adapted[1])["text.layers.o"][1]
    wanted = base + 2.0 * b @ a
    np.testing.assert_allclose(np.asarray(merged).reshape(48, 48).T, wanted, atol=1e-5)
    assert (saved / "adapter_model.safetensors").stat().st_mode & 0o044 == 0o044


def test_an_adapter_comes_back_bit_for_bit(saved, adapted):
    adapter, params = peft.load(saved, kit.model(), kit.params())
    assert adapter.rank == 3 and adapter.alpha == 6.0
    assert set(adapter.targets) == LINEARS
    assert params.keys() == adapted[1].keys()
    for name, p in adapted[1].items():
        np.testing.assert_array_equal(params[name], p)


def test_names_of_older_transformers_are_the_same(saved, adapted):
    file = saved / "adapter_model.safetensors"
    renamed = {
        n.replace("model.model.language_model.", "model.model.").replace(
            "model.model.visual.", "model.visual."
        ): x
        for n, x in load_file(file).items()
    }
    save_file(renamed, file)
    _, params = peft.load(saved, kit.model(), kit.params())
    for name, p in adapted[1].items():
        np.testing.assert_array_equal(params[name], p)


def edit(path, **fields):
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | fields))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"peft_type": "IA3"}, "field 'peft_type': expected 'LORA', got 'IA3'"),
        ({"use_dora": True}, "field 'use_dora': expected False, got True"),
        ({"r": None}, "fields 'r' and 'lora_alpha': expected numbers"),
        ({"r": 4}, r"qkv.b of .*expected shape \[\d+, 4\], got \[\d+, 3\]"),
    ],
)
def test_adapters_that_are_refused(saved, fields, match):
    edit(saved, **fields)
    with pytest.raises(UserError, match=match) as caught:
        peft.load(saved, kit.model(), kit.params())
    assert "\n" not in str(caught.value)


def test_a_missing_and_an_unknown_tensor_are_named(saved):
    file = saved / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.visual.blocks.0.attn.proj.lora_A.weight"
    tensors["base_model.model.model.visual.blocks.9.x.weight"] = tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"missing: {name}; unknown: .*blocks.9.x"):
        peft.load(saved, kit.model(), kit.params())


def test_scales_of_rslora(saved):
    edit(saved, use_rslora=True)
    adapter, _ = peft.load(saved, kit.model(), kit.params())
    assert adapter.alpha / adapter.rank == pytest.approx(6 / 3**0.5)


def test_targets_that_are_none():
    with pytest.raises(UserError, match=r"target 'text.head' is no linear layer"):
        lora.attach(kit.model(), lora.Adapter(2, 2.0, ("text.head",)))
    with pytest.raises(UserError, match="adapter rank: expected 1 or more, got 0"):
        lora.attach(kit.model(), lora.Adapter(0, 2.0))
    names = lora.targets(kit.model(), lora.Adapter(2, 2.0))
    assert names and all(n.startswith("text.") for n in names)
