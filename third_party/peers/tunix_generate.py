"""tunix's sampler in JAX, float32: --new tokens of each prompt at temperature 1, none
cut short; text decoders of Qwen2's kind. New tokens count."""

import json
from pathlib import Path

import environment

environment.enter("tunix", "google-tunix==0.1.7", "jax==0.10.2", "numpy")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from tunix.generate import sampler  # noqa: E402
from tunix.models.qwen2 import model as qwen2  # noqa: E402
from tunix.models.qwen2 import params  # noqa: E402

settings = environment.arguments(__doc__)
assert settings.samples == 1, "--samples: of one prompt only one here"
raw = json.loads((Path(settings.model) / "config.json").read_text())
ids = np.load(settings.inputs)["ids"]
heads = raw["num_attention_heads"]
config = qwen2.ModelConfig(
    num_layers=raw["num_hidden_layers"],
    vocab_size=raw["vocab_size"],
    embed_dim=raw["hidden_size"],
    hidden_dim=raw["intermediate_size"],
    num_heads=heads,
    head_dim=raw["hidden_size"] // heads,
    num_kv_heads=raw["num_key_value_heads"],
    rope_theta=raw["rope_theta"],
    norm_eps=raw["rms_norm_eps"],
    use_tied_embedding=raw["tie_word_embeddings"],
)


class Numbers:
    """A tokenizer whose words are ids; none of them begins or ends a text."""

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def bos_id(self):
        return 0

    def eos_id(self):
        return -1

    def pad_id(self):
        return raw["pad_token_id"]


mesh = jax.make_mesh(
    (1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
)
with mesh:
    model = params.create_model_from_safe_tensors(
        settings.model, config, mesh, dtype=jnp.float32
    )
cache = sampler.CacheConfig(
    ids.shape[1] + settings.new + 1,
    config.num_layers,
    config.num_kv_heads,
    config.head_dim,
)
draw = sampler.Sampler(model, Numbers(), cache)
texts = [Numbers().decode(row) for row in ids]


def work() -> int:
    with mesh:
        out = draw(
            texts,
            max_generation_steps=settings.new,
            max_prompt_length=ids.shape[1],
            eos_tokens=[-1],
            temperature=1.0,
            top_p=1.0,
        )
    count = sum(len(row) for row in out.tokens)
    assert count == len(ids) * settings.new, count
    return count


environment.run(work, settings, __doc__, ("google-tunix", "jax", "flax"))
