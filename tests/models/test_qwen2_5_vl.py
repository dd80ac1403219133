"""Qwen2.5-VL against transformers, with random weights and with the shipped ones."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import kit
from vlmrl import tokens
from vlmrl.engine import chain as chains
from vlmrl.engine.attention import attend
from vlmrl.engine.generate import Sampling, Stops, generate
from vlmrl.engine.logprobs import logits
from vlmrl.models import hf
from vlmrl.types import Group

parity = pytest.mark.parity
GAP = 1e-4
IMAGE, START, END = 250, 252, 253  # ids of the image token and its brackets
TEXT_IDS = 240  # ids below are text


class Setup(NamedTuple):
    text: dict
    vision: dict
    tied: bool
    grids: tuple[tuple[int, int], ...]  # patches of every image; merged by 2 × 2


SETUPS = {
    # Windows of 4 × 4 patches: the second column of windows is half empty.
    "one image, tied": Setup(
        dict(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2),
        dict(depth=3, fullatt_block_indexes=[1], window_size=56),
        True,
        ((8, 6),),
    ),
    # Two images of unlike shapes, neither of whole windows; six queries per key.
    "two images, untied": Setup(
        dict(num_attention_heads=6, num_key_value_heads=1, num_hidden_layers=3),
        dict(depth=2, fullatt_block_indexes=[0], window_size=112),
        False,
        ((4, 14), (10, 2)),
    ),
    # As many keys as queries, no windowed layer, no image.
    "no image": Setup(
        dict(num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1),
        dict(depth=1, fullatt_block_indexes=[0], window_size=56),
        True,
        (),
    ),
}
WITH_IMAGES = list(SETUPS)[:2]


class Peer(NamedTuple):
    module: object  # transformers' model
    path: object  # where it was saved
    model: object  # ours
    params: dict
    group: Group  # one row
    inputs: dict  # the row as transformers takes it


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """name → Peer, each made once."""

    @functools.cache
    def make(name):
        return _peer(SETUPS[name], tmp_path_factory.mktemp("peer"))

    return make


def _peer(setup: Setup, path) -> Peer:
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    width = 8 * setup.text["num_attention_heads"]
    rope = dict(rope_type="default", mrope_section=[1, 2, 1], rope_theta=10000.0)
    text = dict(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=40,
        max_position_embeddings=512,
        rms_norm_eps=1e-6,
        rope_parameters=rope,
        tie_word_embeddings=setup.tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **setup.text,
    )
    vision = dict(
        hidden_size=32, num_heads=2, intermediate_size=24, patch_size=14,
        out_hidden_size=width, **setup.vision,
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=251,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=setup.tied,
    )
    torch.manual_seed(0)
    torch.set_num_threads(2)
    module = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.normal_(0, p[0].numel() ** -0.5)
            else:  # norms and biases, neither at one nor at zero
                p.add_(0.2 * torch.randn_like(p))
        module.get_input_embeddings().weight.mul_(8)
    module.save_pretrained(path)
    model, params = hf.load(path)

    facts = tokens.Facts(14, 2, 2, setup.vision["window_size"])
    rng = np.random.default_rng(0)
    ids, pictures, pixels = list(rng.integers(3, TEXT_IDS, 5)), [], []
    for h, w in setup.grids:
        ids += [START, *[IMAGE] * (h * w // 4), END, *rng.integers(3, TEXT_IDS, 3)]
        pixels.append(rng.normal(size=(h * w, 1176)).astype(np.float32))
        key = str(len(pictures))
        pictures.append(tokens.Picture(pixels[-1], (1, h, w), h * w // 4, key))
    ids = np.array([*ids, *rng.integers(3, TEXT_IDS, 20)], np.int32)
    here = ids == IMAGE
    image = np.where(here, np.cumsum(here) - 1, -1).astype(np.int32)
    runs = [6, *[5] * (len(pictures) - 1), 24] if pictures else [len(ids)]
    positions = tokens.mrope(runs, [(h // 2, w // 2) for h, w in setup.grids])
    row = tokens.Encoded(ids, positions, image, tuple(pictures), "row")
    windows = max([len(tokens.windows(p.grid, facts).mask) for p in pictures] or [1])
    buckets = tokens.Buckets(
        (len(ids) + 3,), (1,), (max(1, len(pictures)),), (windows + 1,)
    )
    inputs = dict(
        input_ids=torch.tensor(ids, dtype=torch.long)[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        mm_token_type_ids=torch.tensor(here.astype(np.int64))[None],
    )
    if pictures:
        inputs["pixel_values"] = torch.tensor(np.concatenate(pixels))
        inputs["image_grid_thw"] = torch.tensor([[1, h, w] for h, w in setup.grids])
    group = tokens.group([[row]], facts, buckets)
    return Peer(module, path, model, params, group, inputs)


def our_logits(model, params, group):
    levels = chains.levels_of(model, params, group)
    (hidden,), _ = model.layers(params, levels, (), attend)
    return logits(hidden, model.head(params))


def their_logits(peer, **inputs):
    import torch

    with torch.no_grad():
        return peer.module(**{**peer.inputs, **inputs}).logits[0].numpy()


# -- against transformers --------------------------------------------------------------


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_logits(name, peers):
    """Transformers finds its positions and windows itself; padding is ours alone."""
    peer = peers(name)
    wanted = their_logits(peer)
    run = jax.jit(functools.partial(our_logits, peer.model))
    found = np.asarray(run(peer.params, peer.group))[0]
    found = found[: len(wanted)]
    spread = wanted.std()
    assert spread > 1
    np.testing.assert_allclose(found / spread, wanted / spread, atol=2e-4, rtol=0)
    if SETUPS[name].grids:
        mask = peer.group.vision.mask
        filled = mask.sum(-1)[mask.any(-1)]
        assert (filled < mask.shape[-1]).any()  # a partly filled window
        assert not mask[:, :, -1].any()  # and an empty one
    assert peer.model.size == sum(p.numel() for p in peer.module.parameters())


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_gradients(name, peers):
    """Of the sum of log-probs of every next token, by every parameter."""
    import torch

    peer = peers(name)
    peer.module.zero_grad()
    ids = peer.inputs["input_ids"][0]
    logp = torch.log_softmax(peer.module(**peer.inputs).logits[0, :-1], -1)
    logp[torch.arange(len(ids) - 1), ids[1:]].sum().backward()
    names = dict(peer.module.named_parameters())
    stored = {hf._plain(n): p.grad.numpy() for n, p in names.items()}

    @jax.jit
    def ours(params):
        def loss(params):
            raw = our_logits(peer.model, params, peer.group)[0, : len(ids) - 1]
            logp = jax.nn.log_softmax(raw, axis=-1)
            return logp[jnp.arange(len(ids) - 1), jnp.array(ids[1:])].sum()

        return jax.grad(loss)(params)

    found = jax.device_get(ours(peer.params))
    worst = {}
    for key, p in peer.model.table.items():
        for hf_name, g in hf._disassemble(p, found[key]).items():
            worst[hf_name] = kit.normwise(g, stored[hf_name])
    assert worst.keys() == stored.keys()
    assert max(worst.values()) < 1e-4, max(worst.items(), key=lambda x: x[1])


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_greedy_generation(name, peers):
    """Sixteen tokens; at the first one that differs, if any does, transformers' two
    best logits are closer than the gap."""
    import torch

    peer, length = peers(name), 16
    with torch.no_grad():
        wanted = peer.module.generate(
            **peer.inputs,
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
        )[0, peer.inputs["input_ids"].shape[1] :].numpy()
    never = jnp.zeros((256, 1), jnp.int16)
    nothing = jnp.zeros(256, bool)
    stops = Stops(never, never.astype(jnp.uint8), nothing, nothing)

    @jax.jit
    def ours(params, group):
        return generate(
            peer.model,
            params,
            chains.prefill(peer.model, params, group),
            jnp.zeros((1, 2), jnp.uint32),
            stops,
            max_tokens=length,
            sampling=Sampling(0.0),
        )[0]

    found = np.asarray(ours(peer.params, peer.group).tokens)[0]
    # Not one token again and again, which a random tied head is apt to say.
    assert len(set(wanted.tolist())) > 4 or peer.model.config.tied
    differs = np.flatnonzero(found != wanted)
    if len(differs):
        told = torch.tensor(wanted[: differs[0]])[None]
        ids = torch.cat([peer.inputs["input_ids"], told], dim=1)
        here = (ids == IMAGE).long()
        last = their_logits(
            peer,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=here,
        )[-1]
        second, first = np.sort(last)[-2:]
        assert first - second < GAP, (differs[0], first - second)


@parity
@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_the_hubs_layout_is_the_same_model(nested, peers, tmp_path):
    """Flat config; `visual.` and `model.` names as the hub's checkpoints have them, or
    the nested ones of transformers' own modules."""
    peer = peers("two images, untied")
    tensors = load_file(peer.path / "model.safetensors")
    tensors = {hf._plain(n): x for n, x in tensors.items()}
    if nested:
        whole = {"visual.": "model.visual.", "model.": "model.language_model."}
        tensors = {
            next((w + n[len(s) :] for s, w in whole.items() if n.startswith(s)), n): x
            for n, x in tensors.items()
        }
    save_file(tensors, tmp_path / "model.safetensors")
    raw = json.loads((peer.path / "config.json").read_text())
    text = raw.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    text["tie_word_embeddings"] = raw["tie_word_embeddings"]
    vision = dict(raw["vision_config"])
    vision["in_chans"] = vision.pop("in_channels")
    flat = {**text, **raw, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    model, params = hf.load(tmp_path)
    assert model.config == peer.model.config
    for name, p in peer.params.items():
        np.testing.assert_array_equal(params[name], p)


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_what_is_exported_transformers_reads(name, peers, tmp_path):
    """Every tensor bit for bit, none missing, none unexpected."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    peer = peers(name)
    path = hf.save(tmp_path / "out", peer.model, peer.params, peer.path)
    module, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    wanted = dict(peer.module.named_parameters())
    for key, p in module.named_parameters():
        assert torch.equal(p, wanted[key]), key


# -- the shipped model -----------------------------------------------------------------


def shipped():
    assert (hf.TINY / "model.safetensors").is_file(), "the tiny model has no weights"
    return hf.load("tiny")


def test_the_shipped_model_loads_and_saves_bit_for_bit(tmp_path):
    model, params = shipped()
    again = hf.save(tmp_path / "again", model, params, "tiny")
    old, new = (load_file(p / "model.safetensors") for p in (hf.TINY, again))
    assert old.keys() == new.keys()
    assert all(x.tobytes() == new[n].tobytes() for n, x in old.items())
    assert model.size == sum(x.size for x in old.values())
    for name, p in hf.load(again)[1].items():
        np.testing.assert_array_equal(p, params[name])


@parity
@pytest.mark.slow
def test_the_shipped_model_is_transformers_too():
    """The same logits for a scene, from its file to its last token."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    model, params = shipped()
    module, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        hf.TINY, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    row = kit.encoded(kit.examples()[0], "wrong_caption")
    group = tokens.group([[row]], kit.processor().facts, kit.BUCKETS)
    run = jax.jit(functools.partial(our_logits, model))
    found = np.asarray(run(params, group))[0, : len(row.ids)]
    ids = torch.tensor(row.ids, dtype=torch.long)[None]
    (picture,) = row.pictures
    with torch.no_grad():
        wanted = module.eval()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == kit.processor().image_id).long(),
            pixel_values=torch.tensor(picture.patches),
            image_grid_thw=torch.tensor([picture.grid]),
        ).logits[0]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4, rtol=0)
