"""What devices send each other in an update is what FSDP and tensor parallelism need:
compiled, not run."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest

from vlmrl import sharding
from vlmrl.engine import attention
from vlmrl.engine.score import completions
from vlmrl.models import registry
from vlmrl.plan import compiled
from vlmrl.rl import update
from vlmrl.types import Group, Mean, Rollout, Tokens, Vision

MESHES = {
    "fsdp": dict(data=1, fsdp=8),
    "data and fsdp": dict(data=2, fsdp=4),
    "fsdp and tensor": dict(data=1, fsdp=4, tensor=2),
}
# Published shapes, made small; activations are about as large as a layer's weights.
FAMILIES = {
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
    "internvl": "OpenGVLab/InternVL3-8B-hf",
}
LAYERS, WIDTH, MLP = 4, 256, 768
TEXT = dict(
    hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS,
    num_attention_heads=8, num_key_value_heads=4, head_dim=32, vocab_size=4096,
)  # fmt: skip
TOWER = dict(
    hidden_size=WIDTH, intermediate_size=MLP, num_heads=8, num_attention_heads=8,
    depth=LAYERS, num_hidden_layers=LAYERS, out_hidden_size=WIDTH,
    fullatt_block_indexes=[1, 3], deepstack_visual_indexes=[1, 2],
    image_size=[224, 224],
)  # fmt: skip
SECTIONS = {"qwen2_5_vl": [4, 6, 6], "qwen3_vl": [6, 5, 5]}
GROUPS, BRANCHES, PREFIX, LENGTH, PARTS = 16, 4, 256, 256, 2
PATCHES = 256  # of an image

pytestmark = pytest.mark.skipif(
    jax.device_count() < 8,
    reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8, as conftest sets",
)


def model_of(family):
    raw = registry.published()[FAMILIES[family]]
    text = dict(raw.get("text_config", raw), **TEXT)
    if family in SECTIONS:
        rope = {"rope_type": "default", "mrope_section": SECTIONS[family]}
        rope |= {"mrope_interleaved": True} if family == "qwen3_vl" else {}
        text["rope_scaling"] = rope
    vision = {**raw["vision_config"], **TOWER}
    both = {"text_config": text} if "text_config" in raw else text
    return registry.build_model({**raw, **both, "vision_config": vision}, family)


def batch_of(family, mesh):
    """Return an `update.Batch` as shapes: prompts with an image of PATCHES patches."""
    shape, i32 = jax.ShapeDtypeStruct, jnp.int32

    def tokens(rows, width):
        ids = shape((rows, width), i32)
        return Tokens(ids, shape((rows, 3, width), i32), shape(ids.shape, bool), ids)

    windows = 1 if family == "internvl" else PATCHES // 64
    channels = {"qwen2_5_vl": 6 * 14**2, "qwen3_vl": 6 * 16**2, "internvl": 3 * 14**2}
    lead = (GROUPS, 1, windows, PATCHES // windows)
    vision = Vision(
        shape((*lead, channels[family]), jnp.float32),
        shape((*lead, 2), i32),
        shape(lead, bool),
        shape((GROUPS, 1, PATCHES // 4), i32),
    )
    rows = GROUPS * BRANCHES
    kinds = i32, jnp.float32, jnp.float32, bool
    sampled = Rollout(*(shape((rows, LENGTH), k) for k in kinds), shape((rows,), bool))
    group = Group(tokens(GROUPS, PREFIX), vision, None)
    group = jax.eval_shape(completions, group, sampled)
    placed = sharding.batch_sharding(mesh)
    return jax.tree.map(
        lambda x: shape(x.shape, x.dtype, sharding=placed),
        update.Batch(group, {"weight": shape((rows,), jnp.float32)}),
    )


def objective(logp, entropy, mask, extra):
    loss = -jnp.where(mask, logp * extra["weight"][:, None], 0).sum()
    return Mean(loss, mask.sum().astype(jnp.float32)), {}


def compile_update(family, mesh, **options):
    """Return the text of an update in PARTS, its layers rematerialised."""
    model = model_of(family).on(mesh)
    places = sharding.param_shardings(mesh, model.table)
    params = {
        n: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=places[n])
        for n, p in model.table.items()
    }
    tx = optax.sgd(1.0)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicate(mesh))
    state = update.TrainState(params, jax.eval_shape(tx.init, params), step)
    function = update.make_update(
        model, tx, objective, microbatches=PARTS, remat="nothing_saveable", **options
    )
    out = jax.tree.map(lambda x: x.sharding, state), None
    made = jax.jit(function, donate_argnums=0, out_shardings=out)
    return made.lower(state, batch_of(family, mesh)).compile().as_text()


def analytic(family, mesh, size):
    """Return the bytes that a device must send in an update, numbers of `size` bytes.

    Over fsdp: a layer's parameters gathered for the forward, the rematerialised and the
    backward pass, the head's for two, the embedding's for one; gradients scattered,
    over data summed. Over tensor: sums of activations after attention and after the
    MLP, in each of the three passes, of the embedding's rows, and of the gradient of
    what the head reads.
    """
    data, fsdp, tensor = (mesh.shape[n] for n in sharding.AXES)
    table, sent = model_of(family).table, 0.0
    for name, p in table.items():
        spec = [n for n in sharding.spec(p.axes, p.shape, mesh) if n]
        each = math.prod(p.shape) * size / (tensor if "tensor" in spec else 1)
        gathers = 3 if p.stacked else 1 if name == "text.embed" else 2
        if "fsdp" in spec:
            sent += each * (gathers + 1) * (fsdp - 1) / fsdp
            each = each / fsdp
        else:
            sent += each * 2 * (fsdp - 1) / fsdp
        sent += each * 2 * (data - 1) / data
    groups = GROUPS // PARTS // (data * fsdp)
    branches = groups * BRANCHES * LENGTH
    text, look = groups * PREFIX + branches, groups * PATCHES
    sums = LAYERS * 6 * (text + look) + text + branches + 2 * look  # and the merger's
    sent += sums * WIDTH * size * 2 * (tensor - 1) / tensor
    return PARTS * sent


# The other families and meshes remain to be checked: on data and fsdp the reader of
# the compiled text finds an eighth of what must be sent, so it misses collectives.
CASES = [("qwen2_5_vl", "fsdp")]


@pytest.mark.parametrize("family, name", CASES)
def test_an_update_sends_what_it_must(family, name):
    mesh = sharding.make_mesh(**MESHES[name], devices=jax.devices()[:8])
    attend = attention.choose("plain")
    found = compiled.collectives(compile_update(family, mesh, attend=attend))
    ratio = sum(x.bytes for x in found) / analytic(family, mesh, 4)
    assert 0.5 < ratio < 1.3, compiled.by_axis(found, mesh)
