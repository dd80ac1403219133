"""InternVL3 against transformers, with random weights: tiles, one or several images;
what its config.json may say, and what it may not."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models import peer as peers
from vlmrl.models import hf, internvl, registry, weights
from vlmrl.prompts import tokens
from vlmrl.types import UserError

parity = pytest.mark.parity
PATCH, MERGE = 4, 2
TEXT = dict(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)
VISION = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=16,
    patch_size=PATCH,
)
# name → (text config, vision config, config, tile in pixels, tiles per image). Every
# branch of the architecture is in one of them.
SETUPS = {
    # As InternVL3-8B is: layer norms, biases; one image of a single tile.
    "one tile": (
        dict(TEXT, model_type="qwen2", hidden_size=32),
        dict(attention_bias=True),
        dict(tie_word_embeddings=False),
        16,
        (1,),
    ),
    # As InternVL3-38B is: RMS norms, norms of queries and keys. Two images of unlike
    # numbers of tiles, larger ones than the positions were learned for.
    "two images, stretched positions": (
        dict(TEXT, model_type="qwen2", hidden_size=48, num_key_value_heads=1),
        dict(use_qk_norm=True, norm_type="rms_norm", num_attention_heads=4),
        dict(tie_word_embeddings=True),
        24,
        (3, 1),
    ),
    # A last norm, a mask token that nothing reads, no positions; another decoder.
    "several tiles, no positions": (
        dict(TEXT, model_type="qwen3", hidden_size=32, head_dim=16),
        dict(
            use_mean_pooling=False,
            use_mask_token=True,
            use_absolute_position_embeddings=False,
            hidden_act="gelu_pytorch_tanh",
        ),
        dict(tie_word_embeddings=False, downsample_ratio=0.25),
        16,
        (4,),
    ),
    # Features of the layer before the last, a norm that they don't pass.
    "an earlier layer": (
        dict(TEXT, model_type="llama", hidden_size=32),
        dict(use_mean_pooling=False, num_hidden_layers=3),
        dict(tie_word_embeddings=False, vision_feature_layer=-2),
        16,
        (2, 2),
    ),
}


def config_of(name):
    from transformers import InternVLConfig

    text, vision, rest, _, _ = SETUPS[name]
    return InternVLConfig(
        text_config={**peers.BASE, **text},
        vision_config={**VISION, **vision},
        image_token_id=peers.IMAGE,
        **rest,
    )


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """name → Peer, each made once."""

    @functools.cache
    def make(name):
        from transformers import InternVLForConditionalGeneration

        config, (*_, tile, counts) = config_of(name), SETUPS[name]
        geometry = tokens.Geometry(
            PATCH, round(1 / config.downsample_ratio), 1, tile, True
        )
        rng = np.random.default_rng(0)
        pictures = tuple(picture(rng, n, geometry, i) for i, n in enumerate(counts))
        rows = tuple(
            r._replace(positions=tokens.mrope([len(r.ids)], []))
            for r in peers.rows_of(rng, pictures)
        )
        module = InternVLForConditionalGeneration(config)
        see = functools.partial(tiles_of, geometry)
        path = tmp_path_factory.mktemp("peer")
        # With this seed the tied head says more than four tokens.
        return peers.finish(module, path, rows, geometry, see, seed=2)

    return make


def picture(rng, count, geometry, i):
    side = geometry.side * geometry.merge
    patches = rng.normal(size=(count * side**2, 3 * geometry.patch**2))
    merged = count * geometry.side**2
    grid = (count, side, side)
    return tokens.Picture(patches.astype(np.float32), grid, merged, str(i))


def tiles_of(geometry, pictures):
    """Tiles as transformers takes them: float32[tiles, 3, height, width]."""
    s, m, p = geometry.side, geometry.merge, geometry.patch
    patches = np.concatenate([x.patches for x in pictures])
    cells = patches.reshape(-1, s, s, m, m, 3, p, p).transpose(0, 5, 1, 3, 6, 2, 4, 7)
    return dict(pixel_values=cells.reshape(-1, 3, geometry.window, geometry.window))


# -- against transformers --------------------------------------------------------------


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_logits(name, peer):
    peers.check_logits(peer(name))


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_gradients(name, peer):
    bare = not SETUPS[name][1].get("use_qk_norm")
    # The softmax does not see what is added to every key, and nothing turns it here.
    peers.check_gradients(peer(name), ("attention.k_proj.bias",) if bare else ())


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_greedy_generation(name, peer):
    peers.check_greedy(peer(name))


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_bfloat16(name, peer):
    peers.check_bfloat16(peer(name))


@parity
@pytest.mark.slow
def test_every_layout_is_the_same_model(peer, tmp_path):
    """The hub's names, which transformers writes, and those of its modules."""
    made = peer("one tile")
    tensors = {n: p.detach() for n, p in made.module.named_parameters()}
    assert set(load_file(made.path / "model.safetensors")) == {
        n for p in made.model.table.values() for n in p.stored_names
    }
    stored = {n: t.numpy() for n, t in tensors.items()}
    save_file(stored, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((made.path / "config.json").read_text())
    _, params = weights.load(tmp_path)
    for name, p in made.params.items():
        np.testing.assert_array_equal(params[name], p)


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_what_is_exported_transformers_reads(name, peer, tmp_path):
    """Every tensor bit for bit, none missing, none unexpected."""
    import torch

    made = peer(name)
    path = hf.save(tmp_path / "out", made.model, made.params, made.path)
    module, info = type(made.module).from_pretrained(
        path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    wanted = dict(made.module.named_parameters())
    for key, p in module.named_parameters():
        assert torch.equal(p, wanted[key]), key


@parity
@pytest.mark.parametrize("size, to", [(4, 6), (6, 4), (3, 32), (5, 5), (1, 4)])
def test_positions_are_stretched_as_torch_does(size, to):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    want = torch.nn.functional.interpolate(
        torch.tensor(x)[None, None], size=(to, to), mode="bicubic", align_corners=False
    )
    rows = internvl.bicubic_matrix(size, to)
    np.testing.assert_allclose(rows @ x @ rows.T, want[0, 0].numpy(), atol=2e-6)


# -- config.json -----------------------------------------------------------------------

REAL = registry.published()["OpenGVLab/InternVL3-8B-hf"]


def changed(path, value):
    raw = json.loads(json.dumps(REAL))
    *parts, key = path.split(".")
    here = raw
    for part in parts:
        here = here[part]
    here[key] = value
    return raw


def test_tiles_of_the_real_model_have_256_tokens():
    model = internvl.model(REAL)
    c = model.config
    geometry = tokens.Geometry(c.patch, c.merge, 1, 448, True)
    w = tokens.windows((13, c.grid, c.grid), geometry)
    assert w.mask.shape == (13, 1024) and len(w.order) == 13 * 256


@pytest.mark.parametrize(
    "path, value, why",
    [
        ("vision_feature_layer", [-1, -2], "expected one of the 24 layers"),
        ("vision_feature_layer", 25, "expected one of the 24 layers"),
        ("vision_feature_select_strategy", "full", "expected 'default'"),
        ("vision_config.norm_type", "batch", "expected 'layer_norm', 'rms_norm'"),
        ("vision_config.image_size", [448, 224], "expected a square"),
        ("vision_config.hidden_act", "tanh", "expected 'gelu'"),
        ("vision_config.hidden_size", None, "vision_config.hidden_size' is missing"),
        ("text_config.model_type", "mamba", "expected 'qwen2'"),
        ("text_config.hidden_size", None, "text_config.hidden_size' is missing"),
    ],
)
def test_what_it_does_not_do_is_named(path, value, why):
    with pytest.raises(UserError, match=why) as raised:
        internvl.model(changed(path, value), "here/config.json")
    assert str(raised.value).startswith("here/config.json: ")


def test_tiles_must_be_square():
    c = internvl.read_config(REAL, "config.json")
    with pytest.raises(UserError, match="tiles of 8 patches; must be square"):
        internvl.tile_positions(c, np.zeros((1025, 4), np.float32), 8)


@pytest.mark.slow
def test_tiles_do_not_see_each_other():
    """A tile's tokens are its own: alone, among others, behind an empty one."""
    raw = json.loads(json.dumps(REAL))
    raw["vision_config"].update(VISION)
    raw["text_config"].update(TEXT, hidden_size=32, intermediate_size=40, vocab_size=8)
    model = internvl.model(raw)
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    geometry = tokens.Geometry(PATCH, MERGE, 1, 16, True)
    one, other = (picture(rng, n, geometry, "x") for n in (1, 2))
    both = one._replace(
        patches=np.concatenate([one.patches, other.patches]), grid=(3, 4, 4), tokens=12
    )
    rows = []
    for p in (one, both):
        ids = np.full(p.tokens, peers.IMAGE, np.int32)
        image = np.arange(p.tokens, dtype=np.int32)
        flat = tokens.mrope([len(ids)], [])
        rows.append([tokens.Encoded(ids, flat, image, (p,), "row")])
    group = tokens.group(rows, geometry, tokens.Buckets((16,), windows=(4,)))
    found = jax.jit(model.encode_image)(params, group.vision)
    np.testing.assert_allclose(found[0, :4], found[1, :4], atol=1e-6)
    assert float(np.abs(found[1, :4] - found[1, 4:8]).max()) > 1e-2
