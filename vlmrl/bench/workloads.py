"""What `vlmrl bench` runs: models of stated shapes with random weights, prompts of
stated lengths, and the same work done in one group, in replicated rows and in a loop.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import sharding
from vlmrl.engine import attention, continuous_batching
from vlmrl.engine.generate import Sampling, Stops, generate
from vlmrl.engine.logprobs import logits
from vlmrl.engine.prefix_cache import prefill
from vlmrl.engine.score import completions, score
from vlmrl.models import hf, registry
from vlmrl.models.api import Model
from vlmrl.prompts import tokens
from vlmrl.rl import advantages, losses, update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.types import Group, Rollout

IMAGE, VIDEO, START, END = 4090, 4091, 4092, 4093  # ids of the image token and its tags

TEXT = dict(
    hidden_act="silu",
    rms_norm_eps=1e-6,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    bos_token_id=4088,
    eos_token_id=4089,
    pad_token_id=4088,
)


def vlm(width=384, layers=4, heads=6, kv_heads=2, mlp=1024, vision=256) -> dict:
    """Return config.json of a model of Qwen2.5-VL's architecture, by default with 12 M
    parameters and a vision tower of two layers."""
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


def decoder(vocabulary=32768, width=768, layers=14, heads=12, kv_heads=4, mlp=2304):
    """Return config.json of a text decoder of Qwen2's architecture, by default with
    121 M parameters."""
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


class Sizes(NamedTuple):
    """Shapes of the work, in tokens unless stated."""

    sees: dict = vlm()  # config.json of the model that sees
    reads: dict = decoder()  # of the text decoder
    learns: dict = decoder(4096, 384, 5, 6, 2, 1024)  # of whole GRPO steps and slots
    dull: dict = decoder(4096, 768, 6, 12, 4, 2304)  # of the agreement in bfloat16
    side: int = 64  # patches of an image's side: 1,024 tokens after merging 2 × 2
    prompt: int = 64  # text of a prompt with an image
    branches: int = 8  # completions
    length: int = 256  # of each, scored
    conditions: int = 10  # texts of an evaluation
    own: int = 64  # of each
    news: tuple[int, ...] = (0, 16, 64, 256)  # new ones of each
    new: int = 64  # of a sample that is timed
    rows: int = 16  # prompts of the text decoder
    read: int = 32  # of each
    prompts: int = 4  # of a GRPO step
    waiting: int = 96  # prompts sampled in slots
    slots: int = 16
    median: int = 20  # of the lengths in slots
    longest: int = 256
    items: int = 32  # whose samples are compared with the trainer
    records: int = 20_000  # rows of a page


FULL = Sizes()
TINY = Sizes(
    vlm(128, 1, 2, 1, 64, 64), *[decoder(4096, 64, 1, 2, 1, 128)] * 3, side=8,
    prompt=16, branches=2, length=8, conditions=3, own=8, news=(0, 4), new=4, rows=2,
    read=8, prompts=2, waiting=6, slots=4, median=4, longest=16, items=4, records=200,
)  # fmt: skip


def build(config: dict, dtype=jnp.float32, key: int = 0) -> tuple[Model, dict]:
    """Return (Model, random parameters on one device)."""
    model = registry.build_model(config, "bench")
    return model, jax.jit(model.init, static_argnums=1)(jax.random.key(key), dtype)


def write(directory: Path, config: dict, model: Model, params) -> Path:
    """Write the directory from which a peer loads the same weights, config.json alone
    for params None; return it."""
    source = directory / "source"
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(config))
    if params is None:
        return source
    return hf.save(directory / "model", model, params, source)


# -- inputs ----------------------------------------------------------------------------


def geometry(config: dict) -> tokens.Geometry:
    v = config["vision_config"]
    return tokens.Geometry(
        v["patch_size"], v["spatial_merge_size"], 2, v["window_size"]
    )


def prompt(sizes: Sizes, seed: int = 0, own: int = 0):
    """Return an encoded prompt: an image, and random text of `sizes.prompt` tokens with
    the image's tags, the same for all seeds; then `own` tokens drawn by `seed`."""
    rng, config = np.random.default_rng(0), sizes.sees
    image, side = config["image_token_id"], sizes.side
    patch = 6 * config["vision_config"]["patch_size"] ** 2
    patches = rng.normal(size=(side * side, patch)).astype(np.float32)
    picture = tokens.Picture(patches, (1, side, side), side * side // 4, "random")
    shared = rng.integers(0, IMAGE - 10, sizes.prompt - 2)
    more = np.random.default_rng(1 + seed).integers(0, IMAGE - 10, own)
    tags = config["vision_start_token_id"], config["vision_end_token_id"]
    row = [tags[0], *[image] * picture.tokens, tags[1], *shared, *more]
    ids = np.array(row, np.int32)
    here = ids == image
    index = np.where(here, np.cumsum(here) - 1, -1).astype(np.int32)
    positions = tokens.mrope([1, sizes.prompt - 1 + own], [(side // 2, side // 2)])
    return tokens.Encoded(ids, positions, index, (picture,), "random")


def buckets(sizes: Sizes, prefix: int, branch: int = 1) -> tokens.Buckets:
    look = sizes.sees["vision_config"]
    window = look["window_size"] // look["patch_size"]
    return tokens.Buckets((prefix,), (branch,), (1,), ((sizes.side // window) ** 2,))


def prompted(sizes: Sizes, copies: int = 1) -> Group:
    """Return the prompt with its image in `copies` groups."""
    row = prompt(sizes)
    fit = buckets(sizes, len(row.ids))
    return tokens.group([[row]] * copies, geometry(sizes.sees), fit)


def seen(row: tokens.Encoded, copies: int = 1) -> dict:
    """Return a prompt and `copies` of its image as inputs of a peer."""
    picture = row.pictures[0]
    return dict(
        ids=row.ids[None],
        patches=np.tile(picture.patches, (copies, 1)),
        grid=np.array([picture.grid] * copies),
        image=row.ids[np.flatnonzero(row.image == 0)[0]],
    )


def scored(sizes: Sizes, copies: int = 1) -> Group:
    """Return the group of a policy-gradient step: the prompt and its completions,
    spread over `copies` groups of the same prompt."""
    return answered(prompted(sizes, copies), sizes.branches, sizes.length)


def answered(group: Group, rows: int, length: int) -> Group:
    """Return a group with `rows` random completions of `length` tokens, on the host."""
    ids = np.random.default_rng(2).integers(0, IMAGE - 10, (rows, length))
    nothing = np.zeros(ids.shape, np.float32)
    ones = np.ones(ids.shape, bool)
    rollout = Rollout(ids.astype(np.int32), nothing, nothing, ones, ones[:, 0])
    return jax.device_get(completions(group, rollout))


def asked(sizes: Sizes, conditions=None, together: bool = True) -> Group:
    """Return the groups of an evaluation. Together: one group; its prefix is the image
    with the shared text, its branches are the texts of the conditions. Otherwise: a
    group per condition, with the whole prompt as its prefix."""
    chosen = range(sizes.conditions) if conditions is None else conditions
    rows = [prompt(sizes, seed=i, own=sizes.own) for i in chosen]
    whole = len(rows[0].ids)
    if together:
        fit = buckets(sizes, whole - sizes.own, sizes.own)
        return tokens.group([rows], geometry(sizes.sees), fit)
    return tokens.group(
        [[r] for r in rows], geometry(sizes.sees), buckets(sizes, whole)
    )


def endless(vocabulary: int) -> Stops:
    """Return stops that no text meets: every branch has the maximal length."""
    never = jnp.zeros(vocabulary, bool)
    table = jnp.zeros((vocabulary, 1), jnp.int16)
    return Stops(table, jnp.zeros((vocabulary, 1), jnp.uint8), never, never)


def hazards(median: float, spread: float, longest: int) -> np.ndarray:
    """Return float[longest], P(a branch ends with token t | it has t), of log-normal
    lengths with this median and standard deviation of the logarithm, cut at longest."""
    steps = np.log(np.maximum(np.arange(longest + 1), 1e-9) / median) / spread
    alive = np.array([math.erfc(x / 2**0.5) for x in steps]) / 2
    return 1 - alive[1:] / alive[:-1]


def lasting(vocabulary: int, hazard: np.ndarray) -> Stops:
    """Return stops under which lengths have this hazard for any model: the automaton
    counts tokens, and at each count a random share of all ids ends a branch.
    """
    length = len(hazard)
    count = np.minimum(np.arange(1, length + 1), length - 1).astype(np.int16)
    rng = np.random.default_rng(4)
    hits = rng.random((vocabulary, length), np.float32) < hazard
    never = jnp.zeros(vocabulary, bool)
    table = jnp.broadcast_to(jnp.asarray(count), (vocabulary, length))
    return Stops(table, jnp.asarray(hits.astype(np.uint8)), never, never)


# -- work ------------------------------------------------------------------------------


def gradient(model: Model, group: Group, **options):
    """Return params → gradients of a weighted sum of log-probs: a policy-gradient step
    without the optimizer. Weights differ by branch, so that branches don't cancel."""
    rows = len(group.branches.ids)
    weights = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]

    def loss(params, group):
        logp, _ = score(model, params, group, **options)
        return (logp * weights).sum()

    run = jax.jit(jax.grad(loss))
    return lambda params: run(params, group)


def _sampled(model: Model, params, cache, keys, stops: Stops, length: int) -> Rollout:
    """Sample at temperature 1 behind a prefix cache."""
    settings = dict(max_tokens=length, sampling=Sampling(1.0))
    return generate(model, params, cache, keys, stops, **settings)[0]


def branch_keys(rows: int):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(rows))
    return jax.random.key_data(keys)


def sampler(model: Model, group: Group, rows: int, length: int, *, dtype=None):
    """Return params → tokens int32[rows, length] sampled at temperature 1 after the
    prefill; for length 0, the logits of the first token."""
    keys, stops = branch_keys(rows), endless(vocabulary_of(model))

    def work(params, group):
        cache = prefill(model, params, group, dtype=dtype)
        if not length:
            return logits(cache.hidden, model.head(params))
        return _sampled(model, params, cache, keys, stops, length).tokens

    run = jax.jit(work)
    return lambda params: run(params, group)


def batched(model: Model, group: Group, each: int, stops: Stops, length: int):
    """Return (params, slots) → Rollouts: what `slotted` samples, without continuous
    batching: as many groups at a time as fill `slots` rows."""
    keys = branch_keys(len(group.prefix.ids) * each)

    @jax.jit
    def some(params, group, keys):
        cache = prefill(model, params, group)
        return _sampled(model, params, cache, keys, stops, length)

    def run(params, slots: int):
        size = max(1, slots // each)
        return [
            some(params, part(group, i, size), keys[i * each : (i + size) * each])
            for i in range(0, len(group.prefix.ids), size)
        ]

    return run


def part(group: Group, start: int, size: int) -> Group:
    """Return groups start … start + size of groups without images or branches."""
    return jax.tree.map(lambda x: x[start : start + size], group)


def slotted(
    model: Model,
    group: Group,
    each: int,
    stops: Stops,
    length: int,
    slots: int,
    dtype=None,
):
    """Return params → (Rollout, SlotUsage) of `each` samples of every group by
    continuous batching, with as many prefix slots as decode slots."""
    count = len(group.prefix.ids)
    keys = branch_keys(count * each)

    @jax.jit
    def run(params, group, keys, stops):
        read = functools.partial(prefill, model, params, dtype=dtype)
        return continuous_batching.generate(
            model, params, continuous_batching.from_group(group, read), keys, stops,
            slots=continuous_batching.SlotCounts(slots, slots),
            max_tokens=length, sampling=Sampling(1.0),
        )  # fmt: skip

    return lambda params: run(params, group, keys, stops)


def improved(model: Model, params, group: Group, each: int, length: int):
    """Return step() → mean reward, a whole GRPO step: `each` samples of `length` tokens
    per prompt, their share of even ids as the reward, computed on the host, advantages
    within groups, clipped loss, AdamW. The next call continues from the result."""
    count = len(group.prefix.ids)
    keys, stops = branch_keys(count * each), endless(vocabulary_of(model))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params = jax.tree.map(
        lambda x: jax.device_put(x.copy(), sharding.replicate(mesh)), params
    )
    tx = update.optimizer(OptimizerOptions(b2=0.999), model.table)
    state = update.init_state(params, tx)
    learn = update.jit_update(
        update.make_update(model, tx, losses.policy_objective), state
    )

    draw = jax.jit(functools.partial(_drawn, model, stops=stops, length=length))

    def step() -> float:
        nonlocal state
        rollout, grown = draw(state.params, group, keys)
        rewards = np.mean(np.asarray(rollout.tokens) % 2 == 0, -1).reshape(count, each)
        values = advantages.grpo(rewards, np.ones_like(rewards, bool))
        extra = {
            "old_logprobs": rollout.logprobs,
            "advantages": np.asarray(values, np.float32).reshape(-1),
        }
        state, _ = jax.block_until_ready(learn(state, update.Batch(grown, extra)))
        return rewards.mean()

    return step


def _drawn(model: Model, params, group: Group, keys, *, stops: Stops, length: int):
    """Return (rollouts at temperature 1, the group with them as its branches)."""
    cache = prefill(model, params, group)
    rollout = _sampled(model, params, cache, keys, stops, length)
    return rollout, completions(group, rollout)


def disagreement(model: Model, params, group: Group, stops: Stops, length: int):
    """Return (share of sampled tokens whose probability by `score` is over 10 % off the
    recorded one, mean entropy in nats, number of tokens); 8 samples per prompt."""
    rows = 8 * len(group.prefix.ids)
    keys = branch_keys(rows)

    @jax.jit
    def run(params, group):
        rollout, grown = _drawn(model, params, group, keys, stops=stops, length=length)
        logp, _ = score(model, params, grown, banned=stops.banned)
        return rollout, logp

    rollout, logp = jax.device_get(run(params, group))
    ratio = np.exp(logp - rollout.logprobs)[rollout.mask]
    away = (ratio < 0.9) | (ratio > 1.1)
    return away.mean(), rollout.entropy[rollout.mask].mean(), away.size


def sharpened(model: Model, params, group: Group, stops: Stops, length: int):
    """Scale the last norm, and with it every logit, so that tokens sampled after a
    group's prompts have a mean entropy of three quarters of a nat."""
    keys = branch_keys(8 * len(group.prefix.ids))

    @jax.jit
    def measured(params, group, keys, scale):
        params = scaled(params, scale)
        rollout, _ = _drawn(model, params, group, keys, stops=stops, length=length)
        return jnp.mean(rollout.entropy, where=rollout.mask)

    def scaled(params, scale):
        return {**params, "text.norm": params["text.norm"] * scale}

    low, high = 0.1, 1000.0
    for _ in range(10):
        middle = (low * high) ** 0.5
        more = measured(params, group, keys, middle) > 0.75
        low, high = (middle, high) if more else (low, middle)
    return scaled(params, low)


def texts(rows: int = 16, length: int = 32) -> tuple[Group, np.ndarray]:
    """Return (prompts of random text, each a group; their ids int32[rows, length])."""
    ids = np.random.default_rng(3).integers(0, 400, (rows, length)).astype(np.int32)
    encoded = [
        [tokens.Encoded(x, tokens.mrope([length], []), np.full(length, -1, np.int32),
                        (), "text")]
        for x in ids
    ]  # fmt: skip
    group = tokens.group(
        encoded, tokens.Geometry(14, 2, 2, 56), tokens.Buckets((length,))
    )
    return group, ids


def vocabulary_of(model: Model) -> int:
    return jax.eval_shape(model.head, _shapes(model)).shape[0]


def _shapes(model: Model):
    return jax.eval_shape(model.init, jax.random.key(0))


# -- counts ----------------------------------------------------------------------------


class Counts(NamedTuple):
    """FLOPs and bytes, (as a group, as rows)."""

    step: tuple[float, float]  # FLOPs of a policy-gradient step
    evaluation: tuple[float, float]  # FLOPs of reading the conditions
    cache: tuple[int, int]  # bytes of the prefix's keys and values


def counts(sizes: Sizes) -> Counts:
    """Count FLOPs with XLA on unrolled layers, every score computed, and the bytes of
    shapes; nothing runs."""
    model = registry.build_model(sizes.sees, "bench")
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

    def cache_bytes(group):
        segment = jax.eval_shape(reading, params, group).segments[0]
        return sum(x.size * x.dtype.itemsize for x in (segment.k, segment.v))

    one, many = scored(sizes), scored(sizes, sizes.branches)
    together, apart = asked(sizes), asked(sizes, together=False)
    return Counts(
        (flops(step, one), flops(step, many)),
        (flops(reading, together), flops(reading, apart)),
        (cache_bytes(one), cache_bytes(many)),
    )
