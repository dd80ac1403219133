"""What `vlmrl bench` runs: models of stated shapes with random weights, prompts of
stated lengths, and the same work done in one group, in replicated rows and in a loop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import tokens
from vlmrl.engine import attention
from vlmrl.engine.chain import prefill
from vlmrl.engine.generate import Sampling, Stops, generate
from vlmrl.engine.logprobs import entropy, logits
from vlmrl.engine.score import completions, score
from vlmrl.models import hf
from vlmrl.models.api import Model
from vlmrl.types import Group, Rollout

IMAGE, VIDEO, START, END = 4090, 4091, 4092, 4093  # ids of the image token and its tags
SIDE = 64  # patches of an image's side: 1,024 tokens after merging 2 × 2
PROMPT, BRANCHES, LENGTH = 64, 8, 256  # text of a prompt, completions, tokens of each
CONDITIONS, OWN = 10, 64  # texts of an evaluation, tokens of each

TEXT = dict(
    hidden_act="silu",
    rms_norm_eps=1e-6,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=4088,
    eos_token_id=4089,
    pad_token_id=4088,
)


def sees(width=384, layers=4, heads=6, kv_heads=2, mlp=1024, vision=256) -> dict:
    """config.json of a model of Qwen2.5-VL's architecture: by default 12 M parameters
    with a tower of two layers."""
    part = width // heads // 16
    rope = dict(mrope_section=[2 * part, 3 * part, 3 * part], rope_theta=1e6,
                rope_type="default")  # fmt: skip
    text = dict(
        TEXT,
        model_type="qwen2_5_vl_text",
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_parameters=rope,
        use_sliding_window=False,
    )
    tower = dict(
        model_type="qwen2_5_vl_vision",
        depth=2,
        fullatt_block_indexes=[1],
        hidden_act="silu",
        hidden_size=vision,
        in_channels=3,
        intermediate_size=2 * vision,
        num_heads=4,
        out_hidden_size=width,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        tokens_per_second=2,
        window_size=112,
    )
    return dict(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        dtype="float32",
        model_type="qwen2_5_vl",
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=True,
        text_config=text,
        vision_config=tower,
    )


def reads(vocabulary=32768, width=768, layers=14, heads=12, kv_heads=4, mlp=2304):
    """config.json of a text decoder of Qwen2's architecture, by default with 121 M
    parameters."""
    return dict(
        TEXT,
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        dtype="float32",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_theta=1e6,
        use_sliding_window=False,
    )


def build(config: dict) -> tuple[Model, dict]:
    _, model = hf.family_of(config, "bench")
    return model, jax.jit(model.init)(jax.random.key(0))


def write(directory: Path, config: dict, model: Model, params) -> Path:
    """A directory that a peer loads the same weights from."""
    source = directory / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(config))
    return hf.save(directory / "model", model, params, source)


# -- inputs ----------------------------------------------------------------------------


def facts(config: dict) -> tokens.Facts:
    v = config["vision_config"]
    return tokens.Facts(v["patch_size"], v["spatial_merge_size"], 2, v["window_size"])


def prompt(config: dict, text: int = PROMPT, seed: int = 0, own: int = 0):
    """An image of 1,024 tokens and random text behind it, `text` tokens of which are
    the same for all seeds of `own`, and `own` more are not (`tokens.Encoded`)."""
    rng = np.random.default_rng(0)
    patch = 6 * config["vision_config"]["patch_size"] ** 2
    patches = rng.normal(size=(SIDE * SIDE, patch)).astype(np.float32)
    picture = tokens.Picture(patches, (1, SIDE, SIDE), SIDE * SIDE // 4, "random")
    shared = rng.integers(0, IMAGE - 10, text - 2)
    more = np.random.default_rng(1 + seed).integers(0, IMAGE - 10, own)
    ids = np.array([START, *[IMAGE] * picture.tokens, END, *shared, *more], np.int32)
    here = ids == IMAGE
    image = np.where(here, np.cumsum(here) - 1, -1).astype(np.int32)
    positions = tokens.mrope([1, text - 1 + own], [(SIDE // 2, SIDE // 2)])
    return tokens.Encoded(ids, positions, image, (picture,), "random")


def buckets(config: dict, prefix: int, branch: int = 1) -> tokens.Buckets:
    side = (
        config["vision_config"]["window_size"] // config["vision_config"]["patch_size"]
    )
    return tokens.Buckets((prefix,), (branch,), (1,), ((SIDE // side) ** 2,))


def prompted(config: dict, copies: int = 1) -> Group:
    """The prompt of 1,088 tokens, in `copies` groups."""
    row = prompt(config)
    sizes = buckets(config, len(row.ids))
    return tokens.group([[row]] * copies, facts(config), sizes)


def scored(config: dict, copies: int = 1) -> Group:
    """A policy-gradient step's group: 1,088 prompt tokens and 8 completions of 256; in
    `copies` groups of the same prompt with 8 / copies completions each."""
    group = prompted(config, copies)
    ids = np.random.default_rng(2).integers(0, IMAGE - 10, (BRANCHES, LENGTH))
    nothing = np.zeros(ids.shape, np.float32)
    ones = np.ones(ids.shape, bool)
    rollout = Rollout(ids.astype(np.int32), nothing, nothing, ones, ones[:, 0])
    return jax.device_get(completions(group, rollout))


def asked(config: dict, conditions=range(CONDITIONS), together: bool = True) -> Group:
    """An evaluation's group: the image and 64 shared tokens, and 64 more of each of
    the conditions; apart: each condition a whole prompt of its own."""
    rows = [prompt(config, seed=i, own=OWN) for i in conditions]
    whole = len(rows[0].ids)
    if together:
        sizes = buckets(config, whole - OWN, OWN)
        return tokens.group([rows], facts(config), sizes)
    return tokens.group([[r] for r in rows], facts(config), buckets(config, whole))


def endless(vocabulary: int) -> Stops:
    """Stops that nothing meets: every branch has the length asked for."""
    never = jnp.zeros(vocabulary, bool)
    table = jnp.zeros((vocabulary, 1), jnp.int16)
    return Stops(table, jnp.zeros((vocabulary, 1), jnp.uint8), never, never)


# -- work ------------------------------------------------------------------------------


def gradient(model: Model, group: Group, **options):
    """params → gradients of a weighed sum of log-probs: a policy-gradient step without
    the optimizer. Weights differ by branch, or the gradient would be one of means."""
    weights = np.linspace(-1, 1, BRANCHES, dtype=np.float32)[:, None]

    def loss(params, group):
        logp, _ = score(model, params, group, **options)
        return (logp * weights).sum()

    run = jax.jit(jax.grad(loss))
    return lambda params: run(params, group)


def sampler(model: Model, group: Group, rows: int, length: int, **options):
    """params → tokens int32[rows, length] drawn at temperature 1, prompts read first;
    of length 0: the logits of the first one."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(rows))
    keys = jax.random.key_data(keys)
    stops = endless(jax.eval_shape(model.head, _shapes(model)).shape[0])

    def work(params, group):
        chain = prefill(model, params, group)
        if not length:
            return logits(chain.hidden, model.head(params))
        return generate(
            model, params, chain, keys, stops,
            max_tokens=length, sampling=Sampling(1.0), **options,
        )[0].tokens  # fmt: skip

    run = jax.jit(work)
    return lambda params: run(params, group)


def disagreement(model: Model, params, group: Group, stops: Stops, length: int):
    """(share of sampled tokens whose probability by `score` is not within 10 % of the
    one recorded, their mean entropy in nats, their number); 8 samples per prompt."""
    rows = 8 * len(group.prefix.ids)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(rows))

    @jax.jit
    def run(params, group):
        chain = prefill(model, params, group)
        rollout, _ = generate(
            model, params, chain, jax.random.key_data(keys), stops,
            max_tokens=length, sampling=Sampling(1.0),
        )  # fmt: skip
        grown = completions(group, rollout)
        logp, _ = score(model, params, grown, banned=stops.banned)
        return rollout, logp

    rollout, logp = jax.device_get(run(params, group))
    ratio = np.exp(logp - rollout.logprobs)[rollout.mask]
    away = (ratio < 0.9) | (ratio > 1.1)
    return away.mean(), rollout.entropy[rollout.mask].mean(), away.size


def sharpened(model: Model, params, group: Group, nats: float = 0.75):
    """Parameters whose next-token distributions after a group's prompts have about this
    entropy on average: the last norm, which scales every logit, is scaled."""

    @jax.jit
    def measured(params, scale):
        hidden = prefill(model, params, group).hidden
        return entropy(scale * logits(hidden, model.head(params))).mean()

    low, high = 1e-3, 1e4
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if measured(params, middle) > nats else (low, middle)
    return {**params, "text.norm": params["text.norm"] * low}


def texts(rows: int = 16, length: int = 32) -> tuple[Group, np.ndarray]:
    """(prompts of random text, each a group; their ids int32[rows, length])."""
    ids = np.random.default_rng(3).integers(0, 400, (rows, length)).astype(np.int32)
    encoded = [
        [tokens.Encoded(x, tokens.mrope([length], []), np.full(length, -1, np.int32),
                        (), "text")]
        for x in ids
    ]  # fmt: skip
    group = tokens.group(encoded, tokens.Facts(14, 2, 2, 56), tokens.Buckets((length,)))
    return group, ids


def _shapes(model: Model):
    return jax.eval_shape(model.init, jax.random.key(0))


# -- counts ----------------------------------------------------------------------------


class Counts(NamedTuple):
    """What is computed and held, together and apart."""

    step: tuple[float, float]  # FLOPs of a policy-gradient step
    evaluation: tuple[float, float]  # FLOPs of reading 10 conditions
    cache: tuple[int, int]  # bytes of the prefix's keys and values


def counts(config: dict) -> Counts:
    """FLOPs counted by XLA on unrolled layers, every score computed, and bytes of
    shapes. Nothing runs."""
    _, model = hf.family_of(config, "bench")
    params = _shapes(model)
    whole = attention.choose("plain")

    def flops(function, group):
        lowered = jax.jit(function).lower(params, group)
        return float(lowered.cost_analysis()["flops"])

    def step(params, group):
        def loss(params):
            return score(model, params, group, unroll=True, attend=whole)[0].sum()

        return jax.grad(loss)(params)

    def reading(params, group):
        return prefill(model, params, group, unroll=True, attend=whole)

    def held(group):
        link = jax.eval_shape(reading, params, group).links[0]
        return sum(x.size * x.dtype.itemsize for x in (link.k, link.v))

    one, many = scored(config), scored(config, BRANCHES)
    together, apart = asked(config), asked(config, together=False)
    return Counts(
        (flops(step, one), flops(step, many)),
        (flops(reading, together), flops(reading, apart)),
        (held(one), held(many)),
    )
