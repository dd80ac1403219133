"""Qwen2, Qwen3 and Llama 3.1 against transformers, with random weights; what their
config.json may say, and what it may not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import peer as peers
from vlmrl.engine.attention import attend
from vlmrl.models import text
from vlmrl.models.api import NewTokens
from vlmrl.types import UserError

parity = pytest.mark.parity

LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=4.0,
    original_max_position_embeddings=32,
)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)

# name → (transformers' name, config). Every branch of the decoder is in one of them.
SETUPS = {
    # Windows shorter than the shared prefix, than a branch and than what is generated.
    "qwen2, windows": (
        "Qwen2",
        dict(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=1,
        ),
    ),
    "qwen2, linear rope": (
        "Qwen2",
        dict(
            HEADS,
            hidden_size=48,
            rope_parameters=dict(rope_type="linear", rope_theta=1e6, factor=2.0),
        ),
    ),
    # The head is wider than width / heads; windows in the layers that say so.
    "qwen3, windows": (
        "Qwen3",
        dict(
            HEADS,
            hidden_size=32,
            head_dim=16,
            num_hidden_layers=3,
            use_sliding_window=True,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "qwen3, biases, yarn": (
        "Qwen3",
        dict(
            HEADS,
            hidden_size=40,
            num_key_value_heads=4,
            head_dim=8,
            attention_bias=True,
            tie_word_embeddings=True,
            rope_parameters=YARN,
        ),
    ),
    "llama 3.1": (
        "Llama",
        dict(HEADS, hidden_size=64, rope_parameters=LLAMA3),
    ),
    "llama, tied, biases": (
        "Llama",
        dict(
            HEADS,
            hidden_size=32,
            num_key_value_heads=1,
            head_dim=12,
            tie_word_embeddings=True,
            attention_bias=True,
            mlp_bias=True,
        ),
    ),
}
# One of each family; every kind of parameter is in one of them.
ONE_EACH = ("qwen2, windows", "qwen3, windows", "llama, tied, biases")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name → Peer, each made once."""
    import transformers

    @functools.cache
    def make(name):
        kind, fields = SETUPS[name]
        config = getattr(transformers, kind + "Config")(**{**peers.BASE, **fields})
        module = getattr(transformers, kind + "ForCausalLM")(config)
        return peers.build(module, tmp_path_factory.mktemp("peer"))

    return make


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_logits(name, made):
    peers.check_logits(made(name))


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_gradients(name, made):
    peers.check_gradients(made(name))


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2, windows", "qwen3, windows", "llama 3.1"])
def test_greedy_generation(name, made):
    peers.check_greedy(made(name))


@parity
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2, windows", "qwen3, windows", "llama 3.1"])
def test_bfloat16(name, made):
    peers.check_bfloat16(made(name))


# -- without torch ---------------------------------------------------------------------

RAW = dict(
    model_type="qwen3",
    vocab_size=16,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    rms_norm_eps=1e-6,
    sliding_window=5,
)


def config(**fields):
    return text.model({**RAW, **fields}).config.text


def test_windows_are_where_the_config_says():
    assert config().windows == (0, 0, 0, 0)
    assert config(max_window_layers=1).windows == (0, 0, 0, 0)
    used = functools.partial(config, use_sliding_window=True)
    assert used(max_window_layers=1).windows == (0, 5, 5, 5)
    assert used(max_window_layers=9).windows == (0, 0, 0, 0)
    kinds = ["full_attention", "sliding_attention"] * 2
    assert used(layer_types=kinds).windows == (0, 5, 0, 5)


def test_llama_frequencies_by_hand():
    """Waves under 2048 stay, over 8192 are 8 times as long, between them mixed."""
    rope = dict(
        rope_type="llama3",
        rope_theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    found = np.array(config(head_dim=128, rope_scaling=rope).rope.frequencies)
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose(found[wavelength < 2048], plain[wavelength < 2048], 1e-6)
    slow = wavelength > 8192
    np.testing.assert_allclose(found[slow], plain[slow] / 8, 1e-6)
    middle = ~slow & (wavelength > 2048)
    assert middle.any()
    assert np.all((found < plain)[middle] & (found > plain / 8)[middle])


def test_text_turns_by_one_axis():
    assert config(head_dim=8).rope.axes == (0,) * 4


def test_a_rope_that_would_change_beyond_the_trained_length_is_refused_there():
    raw = RAW | dict(rope_scaling=dict(rope_type="dynamic", factor=2.0))
    with pytest.raises(UserError, match="'max_position_embeddings' is missing"):
        text.model(raw)
    model = text.model(raw | dict(max_position_embeddings=6))
    assert model.config.text.rope.frequencies == config().rope.frequencies

    def run(params, length, then):
        def zeros(n):
            positions = jnp.broadcast_to(jnp.arange(n), (1, 3, n))
            mask = jnp.ones((1, n), bool)
            return NewTokens(jnp.zeros((1, n, RAW["hidden_size"])), positions, mask)

        _, cached = model.layers(params, (zeros(length),), (), attend)
        return model.layers(params, (zeros(then),), cached, attend)[0]

    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.eval_shape(lambda p: run(p, 4, 2), params)[0].shape == (1, 2, 8)
    with pytest.raises(
        UserError, match="'dynamic' and max_position.* 6; .*to 7 tokens"
    ):
        jax.eval_shape(lambda p: run(p, 4, 3), params)


def test_images_are_refused():
    model = text.model(RAW)
    params = model.init(jax.random.key(0))
    with pytest.raises(UserError, match="family 'qwen3' reads text only"):
        model.encode_image(params, None)


@pytest.mark.parametrize(
    "fields, complaint",
    [
        (dict(rope_scaling=dict(type="longrope")), "rope type 'longrope' is not"),
        (dict(rope_scaling=dict(rope_type="llama3")), "'llama3' needs numbers"),
        (dict(rope_scaling=dict(type="linear")), "'linear' needs numbers: 'factor'"),
        (dict(hidden_act="gelu"), "'hidden_act': expected 'silu'"),
        (dict(vocab_size=None), "field 'vocab_size' is missing"),
        (dict(num_key_value_heads=3), "2 query heads must be a multiple of 3"),
        (dict(layer_types=["chunked_attention"] * 4), "must name 4 layers"),
        (dict(layer_types=["sliding_attention"] * 4), "need 'use_sliding_window'"),
        (
            dict(use_sliding_window=True, layer_types=["sliding_attention"] * 3),
            "must name 4 layers",
        ),
    ],
)
def test_a_config_that_is_wrong(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        config(**fields)
