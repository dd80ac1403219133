"""Qwen3-VL against transformers, with random weights; its images and positions."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.models import peer as peers
from vlmrl.models import hf, qwen3_vl, registry
from vlmrl.prompts import tokens
from vlmrl.types import UserError

parity = pytest.mark.parity

# name → (text config, vision config, tied, patches of every image)
SETUPS = {
    # Learned positions coarser than the image in rows and columns.
    "one image, tied": (
        dict(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3),
        dict(depth=3, deepstack_visual_indexes=[0, 2], num_position_embeddings=16),
        True,
        ((8, 6),),
    ),
    # … and finer; as many tapped layers as decoder layers, and biases.
    "two images, untied": (
        dict(
            num_attention_heads=6,
            num_key_value_heads=1,
            num_hidden_layers=2,
            attention_bias=True,
        ),
        dict(depth=4, deepstack_visual_indexes=[1, 2], num_position_embeddings=100),
        False,
        ((4, 14), (10, 2)),
    ),
    "nothing tapped": (
        dict(num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=1),
        dict(depth=1, deepstack_visual_indexes=[], num_position_embeddings=9),
        True,
        ((2, 6),),
    ),
}


def config(text, vision, tied):
    import transformers

    rope = dict(
        rope_type="default",
        rope_theta=10000.0,
        mrope_section=[2, 1, 1],
        mrope_interleaved=True,
    )
    width = 8 * text["num_attention_heads"]
    return transformers.Qwen3VLConfig(
        text_config={
            **peers.BASE,
            "hidden_size": width,
            "head_dim": 8,
            "rope_parameters": rope,
            "tie_word_embeddings": tied,
            **text,
        },
        vision_config=dict(
            hidden_size=32,
            num_heads=2,
            intermediate_size=24,
            out_hidden_size=width,
            **vision,
        ),
        image_token_id=peers.IMAGE,
        video_token_id=peers.VIDEO,
        vision_start_token_id=peers.START,
        vision_end_token_id=peers.END,
        tie_word_embeddings=tied,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name → Peer, each made once."""
    from transformers import Qwen3VLForConditionalGeneration

    @functools.cache
    def make(name):
        *fields, grids = SETUPS[name]
        module = Qwen3VLForConditionalGeneration(config(*fields))
        path = tmp_path_factory.mktemp("peer")
        return peers.build(module, path, patch=16, grids=grids)

    return make


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_logits(name, made):
    peers.check_logits(made(name))


@parity
@pytest.mark.slow
def test_gradients(made):
    peers.check_gradients(made("two images, untied"))


@parity
@pytest.mark.slow
def test_greedy_generation(made):
    peers.check_greedy(made("two images, untied"))


@parity
@pytest.mark.slow
def test_bfloat16(made):
    peers.check_bfloat16(made("two images, untied"))


@parity
def test_positions_are_those_of_transformers(made):
    """Of several images, adjacent ones too; at the third row they are one."""
    import torch

    peer = made("two images, untied")
    for row in peer.rows:
        ids = torch.tensor(row.ids)[None]
        wanted, _ = peer.module.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == peers.IMAGE).int(),
            image_grid_thw=torch.tensor([p.grid for p in row.pictures]),
        )
        np.testing.assert_array_equal(row.positions, wanted[:, 0].numpy())


@parity
@pytest.mark.slow
def test_what_is_exported_transformers_reads(made, tmp_path):
    """Every tensor bit for bit, none missing, none unexpected."""
    import torch

    peer = made("two images, untied")
    path = hf.save(tmp_path / "out", peer.model, peer.params, peer.path)
    module, info = type(peer.module).from_pretrained(
        path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    wanted = dict(peer.module.named_parameters())
    for key, p in module.named_parameters():
        assert torch.equal(p, wanted[key]), key


# -- without torch ---------------------------------------------------------------------

RAW = dict(
    model_type="qwen3_vl",
    image_token_id=peers.IMAGE,
    text_config=dict(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_scaling=dict(mrope_section=[2, 1, 1], mrope_interleaved=True),
    ),
    vision_config=dict(
        hidden_size=16,
        depth=2,
        num_heads=2,
        intermediate_size=8,
        patch_size=16,
        temporal_patch_size=2,
        spatial_merge_size=2,
        num_position_embeddings=16,
        deepstack_visual_indexes=[1],
        out_hidden_size=16,
    ),
)


def test_learned_positions_by_hand():
    """A 3 × 3 square over a 5 × 2 grid: rows lie at 0, ½, 1, 1½, 2; columns at 0, 2."""
    square = jnp.arange(9.0)[:, None]  # value = 3 row + column
    grid = np.stack(np.indices((5, 2)), -1).reshape(1, -1, 2)
    mask = np.ones((1, 10), bool)
    found = qwen3_vl.interpolate_positions(
        square, jnp.asarray(grid), jnp.asarray(mask), 3
    )
    wanted = [3 * r + c for r in (0, 0.5, 1, 1.5, 2) for c in (0, 2)]
    np.testing.assert_allclose(found[0, :, 0], wanted, rtol=1e-6)
    # what is masked does not stretch the grid
    longer = np.concatenate([grid, [[[9, 9]]]], axis=1)
    mask = np.append(mask, [[False]], axis=1)
    again = qwen3_vl.interpolate_positions(
        square, jnp.asarray(longer), jnp.asarray(mask), 3
    )
    np.testing.assert_array_equal(again[0, :10], found[0])


def test_an_image_of_one_row():
    grid = np.stack(np.indices((1, 3)), -1).reshape(1, -1, 2)
    mask = np.ones((1, 3), bool)
    found = qwen3_vl.interpolate_positions(jnp.arange(4.0)[:, None], grid, mask, 2)
    np.testing.assert_allclose(found[0, :, 0], [0, 0.5, 1], rtol=1e-6)


def test_axes_are_interleaved_where_there_is_room():
    raw = json.loads(json.dumps(RAW))
    raw["text_config"]["head_dim"] = 16
    raw["text_config"]["rope_scaling"]["mrope_section"] = [5, 2, 1]
    rope = qwen3_vl.read_config(raw, "x").text.rope
    assert rope.axes == (0, 1, 2, 0, 1, 0, 0, 0)


def test_features_carry_one_block_per_tap():
    model = qwen3_vl.model(RAW)
    like = jax.ShapeDtypeStruct
    shape = (1, 2, 3, 64)
    vision = tokens.Vision(
        like((*shape, 1536), np.float32),
        like((*shape, 2), np.int32),
        like(shape, bool),
        like((1, 2, 48), np.int32),
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    out = jax.eval_shape(model.encode_image, params, vision)
    assert out.shape == (1, 96, 32)


@pytest.mark.parametrize(
    "field, value, complaint",
    [
        ("deepstack_visual_indexes", [1, 0], "must be ascending numbers below 2"),
        ("deepstack_visual_indexes", [2], "must be ascending numbers below 2"),
        ("num_position_embeddings", 15, "must be a square"),
        ("hidden_act", "silu", "hidden_act': expected 'gelu_pytorch_tanh'"),
        ("depth", None, r"field 'vision_config\.depth' is missing"),
    ],
)
def test_a_config_that_is_wrong(field, value, complaint):
    raw = json.loads(json.dumps(RAW))
    raw["vision_config"][field] = value
    with pytest.raises(UserError, match=complaint):
        qwen3_vl.read_config(raw, "config.json")


def test_images_are_cut_as_transformers_does(tmp_path):
    """`size` holds the limits on pixels; mean, deviation and patch are its own."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    settings = dict(
        size=dict(shortest_edge=4096, longest_edge=16384),
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        image_processor_type="Qwen2VLImageProcessorFast",
        processor_class="Qwen3VLProcessor",
    )
    tiny = json.loads((registry.TINY / "config.json").read_text())
    raw = {**RAW, "image_token_id": tiny["image_token_id"]}
    raw["text_config"] = dict(RAW["text_config"])
    raw["text_config"]["vocab_size"] = tiny["text_config"]["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((registry.TINY / name).read_bytes())
    processor = tokens.load_processor(tmp_path)
    assert processor.pixels == (4096, 16384)
    rng = np.random.default_rng(0)
    for size in ((40, 30), (300, 100), (90, 97)):
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        file = io.BytesIO()
        image.save(file, "PNG")
        cut = processor.cut(file.getvalue(), "image")
        wanted = Qwen2VLImageProcessorPil(**settings)([image], return_tensors="np")
        np.testing.assert_array_equal(cut.patches, wanted["pixel_values"])
        assert cut.grid == tuple(wanted["image_grid_thw"][0])
        h, w = cut.grid[1:]
        assert 4096 <= 256 * h * w <= 16384
