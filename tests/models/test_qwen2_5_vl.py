"""Qwen2.5-VL against transformers, with random weights and with the shipped ones."""

import functools
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import kit
from tests.models import peer as peers
from vlmrl.models import hf, registry, weights
from vlmrl.prompts import tokens

parity = pytest.mark.parity


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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name → Peer, each made once."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    @functools.cache
    def make(name):
        setup = SETUPS[name]
        module = Qwen2_5_VLForConditionalGeneration(config(setup))
        path, window = tmp_path_factory.mktemp("peer"), setup.vision["window_size"]
        return peers.build(module, path, window=window, grids=setup.grids)

    return make


def config(setup: Setup):
    from transformers import Qwen2_5_VLConfig

    width = 8 * setup.text["num_attention_heads"]
    rope = dict(rope_type="default", mrope_section=[1, 2, 1], rope_theta=10000.0)
    text = dict(
        peers.BASE,
        hidden_size=width,
        rope_parameters=rope,
        tie_word_embeddings=setup.tied,
        **setup.text,
    )
    vision = dict(
        hidden_size=32,
        num_heads=2,
        intermediate_size=24,
        patch_size=14,
        out_hidden_size=width,
        **setup.vision,
    )
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=peers.IMAGE,
        video_token_id=peers.VIDEO,
        vision_start_token_id=peers.START,
        vision_end_token_id=peers.END,
        tie_word_embeddings=setup.tied,
    )


# -- against transformers --------------------------------------------------------------


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_logits(name, made):
    """Windows that are half full, and none; transformers cuts them itself."""
    peer = made(name)
    peers.check_logits(peer)
    if SETUPS[name].grids:
        mask = peer.padded.vision.mask
        filled = mask.sum(-1)[mask.any(-1)]
        assert (filled < mask.shape[-1]).any()  # a partly filled window
        assert not mask[:, :, -1].any()  # and an empty one


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_gradients(name, made):
    peers.check_gradients(made(name))


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_greedy_generation(name, made):
    peers.check_greedy(made(name))


@parity
@pytest.mark.slow
def test_bfloat16(made):
    peers.check_bfloat16(made(WITH_IMAGES[1]))


@parity
@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_the_hubs_layout_is_the_same_model(nested, made, tmp_path):
    """Flat config; `visual.` and `model.` names as the hub's checkpoints have them, or
    the nested ones of transformers' own modules."""
    peer = made("two images, untied")
    tensors = load_file(peer.path / "model.safetensors")
    tensors = {peer.model.hub_name(n): x for n, x in tensors.items()}
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
    model, params = weights.load(tmp_path)
    assert model.config == peer.model.config
    for name, p in peer.params.items():
        np.testing.assert_array_equal(params[name], p)


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_what_is_exported_transformers_reads(name, made, tmp_path):
    """Every tensor bit for bit, none missing, none unexpected."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    peer = made(name)
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
    assert (registry.TINY / "model.safetensors").is_file(), (
        "the tiny model has no weights"
    )
    return weights.load("tiny")


def test_the_shipped_model_loads_and_saves_bit_for_bit(tmp_path):
    model, params = shipped()
    again = hf.save(tmp_path / "again", model, params, "tiny")
    old, new = (load_file(p / "model.safetensors") for p in (registry.TINY, again))
    assert old.keys() == new.keys()
    assert all(x.tobytes() == new[n].tobytes() for n, x in old.items())
    assert model.size == sum(x.size for x in old.values())
    for name, p in weights.load(again)[1].items():
        np.testing.assert_array_equal(p, params[name])


@parity
@pytest.mark.slow
def test_the_shipped_model_is_transformers_too():
    """The same logits for a scene, from its file to its last token."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    model, params = shipped()
    module, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        registry.TINY, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    row = kit.encoded(kit.examples()[0], "wrong_caption")
    group = tokens.group([[row]], kit.processor().geometry, kit.BUCKETS)
    run = jax.jit(functools.partial(peers.row_logits, model))
    ((found,),) = run(params, group)
    found = np.asarray(found)[0, : len(row.ids)]
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
    wanted = wanted.numpy()
    limit = peers.ATOL * wanted.std()
    assert np.abs(found - wanted).max() <= limit
    ours, theirs = (peers.logprobs(x, row.ids) for x in (found, wanted))
    assert np.abs(ours - theirs).max() <= limit
