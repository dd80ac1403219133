"""What `vlmrl bench` measures on a GPU: models of published shapes with random weights.

Ceilings are measured in the same run (`timing.machine`) and printed beside the data
sheet's. FLOPs are those of the tokens computed, the prefix once, scores of attention
causally; rematerialisation counts for nothing.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import sharding
from vlmrl.bench import timing, workloads
from vlmrl.bench.timing import interleave, result, timed
from vlmrl.bench.workloads import Sizes
from vlmrl.engine.score import completions, score
from vlmrl.models import registry
from vlmrl.models.api import Model, linear
from vlmrl.plan import chips
from vlmrl.rl import losses, update
from vlmrl.rl.recipe import OptimizerOptions
from vlmrl.types import Group, UserError

FLOAT32_BELOW = 5e9  # parameters: larger ones are trained in bfloat16, moments as well
STEP = (
    120.0  # EasyR1: seconds of a step of 512 × 5 on 8 H100, Qwen2.5-VL-7B, Geometry3K
)
STEP_PROMPTS, STEP_CHIPS = 512, 8


class Shape(NamedTuple):
    """Sizes of these suites; prompts are an image and text."""

    sizes: Sizes  # its side and prompt
    decoded: tuple[tuple[int, float], ...]  # branches, bar
    each: int  # branches of a prompt
    new: int  # decoded tokens that are timed
    groups: int  # of an update
    length: int  # of a branch in it
    microbatches: int
    prompts: int  # of a GRPO step, with `samples` each
    samples: int
    median: int  # of its log-normal lengths
    longest: int


# Geometry3K's prompts have about 500 tokens: an image of 400 and 100 of text.
FULL = Shape(
    workloads.FULL._replace(side=40, prompt=100), ((64, 0.6), (512, 0.5)), each=8,
    new=128, groups=8, length=512, microbatches=4, prompts=48, samples=5, median=300,
    longest=1024,
)  # fmt: skip
TINY = Shape(
    workloads.TINY, ((4, 0.6),), each=2, new=4, groups=2, length=8, microbatches=2,
    prompts=2, samples=2, median=3, longest=8,
)  # fmt: skip


class Case(NamedTuple):
    """A model to measure."""

    name: str
    raw: dict  # its config.json
    model: Model
    shape: Shape

    @property
    def sizes(self) -> Sizes:
        return self.shape.sizes._replace(sees=self.raw)


def cases(s) -> list[Case]:
    if s.tiny:
        configs = {"toy": TINY.sizes.sees}
    else:
        known = registry.published()
        if missing := [n for n in s.models if n not in known]:
            names = ", ".join(known)
            raise UserError(f"--models: no shape of '{missing[0]}'; known: {names}")
        configs = {name: known[name] for name in s.models}
    shape = TINY if s.tiny else FULL
    return [
        Case(name.rpartition("/")[2], raw, registry.build_model(raw, name), shape)
        for name, raw in configs.items()
    ]


# -- what has to be computed and read --------------------------------------------------


class Work(NamedTuple):
    """Multiply-adds × 2 of a forward pass."""

    text: float
    vision: float


def matrices(model: Model, prefix: str) -> int:
    """Return the number of elements of the linear layers below a prefix of names."""
    return sum(
        math.prod(p.shape)
        for name, p in model.table.items()
        if name.startswith(prefix) and linear(p) is not None
    )


def forward(model: Model, group: Group, *, causal: bool = True) -> Work:
    """Count the FLOPs of scoring a group's branches, padding included. With `causal`
    False each query attends to every key of a segment, as in the plain back end."""
    c, t = model.config, getattr(model.config, "text", model.config)
    n, size = group.prefix.ids.shape
    rows, length = group.branches.ids.shape

    def within(x):
        return x * (x + 1) / 2 if causal else x * x

    pairs = n * within(size) + rows * (length * size + within(length))
    mix = 4 * t.layers * t.heads * t.head_dim
    each = matrices(model, "text.layers.")
    text = 2 * each * (n * size + rows * length) + mix * pairs
    text += 2 * t.vocab * t.width * rows * length
    if group.vision is None:
        return Work(text, 0.0)
    images, windows, patches = np.shape(group.vision.patches)[1:4]
    seen = n * images * windows * patches
    layers = c.vision_layers
    full = len(c.full_layers)
    keys = full * windows * patches + (layers - full) * patches
    vision = (
        2
        * seen
        * (
            matrices(model, "vision.layers.")
            + c.patch_dim * c.vision_width
            + 2 * c.vision_width * keys
            + matrices(model, "vision.merger.") / c.merge**2
        )
    )
    return Work(text, vision)


class Step(NamedTuple):
    """What a decoding step must at least do."""

    bytes: float  # weights once, a prompt's keys once for its branches, own ones
    flops: float


def decoding(model: Model, rows: int, each: int, prefix: int, own: float) -> Step:
    """Return the cost of a decoding step of `rows` branches in bfloat16: `each` behind
    a prefix, with `own` tokens on average."""
    t = getattr(model.config, "text", model.config)
    weights = matrices(model, "text.layers.") + t.vocab * t.width
    token = 2 * t.layers * t.kv_heads * t.head_dim
    cached = token * (rows / each * prefix + rows * own)
    mix = 4 * t.layers * t.heads * t.head_dim * rows * (prefix + own)
    return Step(2 * (weights + cached), 2 * weights * rows + mix)


def sheet() -> tuple[str, chips.Chip | None]:
    """Return (name of the device, its data sheet, None if unknown)."""
    kind = jax.devices()[0].device_kind
    matching = [c for n, c in chips.CHIPS.items() if n in kind.lower() and n != "host"]
    return kind, matching[0] if matching else None


# -- suites ----------------------------------------------------------------------------


def decode(s) -> list[dict]:
    able = timing.machine(jnp.bfloat16, small=s.tiny)
    return [r for case in cases(s) for r in decoded(s, case, able)]


def decoded(s, case: Case, able: timing.Machine) -> list[dict]:
    shape, model, sizes, out = case.shape, case.model, case.sizes, []
    _, params = workloads.build(case.raw, jnp.bfloat16)
    for rows, bar in shape.decoded:
        group = workloads.prompted(sizes, rows // shape.each)
        size, new = group.prefix.ids.shape[1], shape.new
        one = workloads.sampler(model, group, rows, 1)
        many = workloads.sampler(model, group, rows, 1 + new)
        sides = {"1": one, "all": many}
        seconds = interleave(
            {k: functools.partial(f, params) for k, f in sides.items()}, s.rounds
        )
        pairs = zip(seconds["all"], seconds["1"], strict=True)
        each = statistics.median(a - b for a, b in pairs) / new
        least = decoding(model, rows, shape.each, size, 1 + new / 2)
        memory, products = least.bytes / able.bandwidth, least.flops / able.flops
        out.append(
            result(
                f"decode/{case.name}/{rows}", max(memory, products) / each,
                f"share of a step's {1e3 * each:.2f} ms that {rows} branches, "
                f"{shape.each} behind a prompt of {size} tokens, need at least in "
                f"bfloat16: {1e3 * memory:.2f} ms for {least.bytes / 1e9:.1f} GB "
                f"at {able.bandwidth / 1e12:.2f} TB/s, {1e3 * products:.2f} ms for "
                f"{least.flops / 1e12:.2f} TFLOP at {able.flops / 1e12:.0f} "
                f"TFLOP/s, both ceilings measured here; {rows / each:.0f} tokens/s",
                bar=bar, unit="share", seconds=seconds,
            )
        )  # fmt: skip
    return out + beside_transformers(s, case, params)


def beside_transformers(s, case: Case, params) -> list[dict]:
    shape, sizes = case.shape, case.sizes
    rows = shape.decoded[0][0]
    count, new = rows // shape.each, shape.new
    row = workloads.prompt(sizes)
    ours = workloads.sampler(case.model, workloads.prompted(sizes, count), rows, new)
    inputs = workloads.seen(row, count)
    inputs["ids"] = np.tile(row.ids, (count, 1))
    where = "cpu" if jax.default_backend() == "cpu" else "cuda"
    settings = dict(new=new, samples=shape.each, device=where, dtype="bfloat16")
    arguments = dict(
        name=f"decode/{case.name}/transformers", bar=5.0, tokens=rows * new,
        definition=f"seconds of transformers' generate / of vlmrl: {count} prompts of "
        f"{len(row.ids)} tokens with their images, {shape.each} samples of {new} each, "
        "bfloat16, reading included",
    )  # fmt: skip
    peers = {"transformers_generate": (settings, arguments)}
    return timing.compare(
        case.raw, case.model, None, inputs, lambda: ours(params), s.rounds, peers
    )[0]


def trained(case: Case):
    """Return (state, update of a clipped loss under AdamW, words on number formats)."""
    small = case.model.size < FLOAT32_BELOW
    dtype = jnp.float32 if small else jnp.bfloat16
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    _, params = workloads.build(case.raw, dtype)
    params = jax.device_put(params, sharding.replicate(mesh))
    tx = update.optimizer(OptimizerOptions(b2=0.999), case.model.table)
    state = update.init_state(params, tx)
    learn = update.make_update(
        case.model, tx, losses.policy_objective, dtype=jnp.bfloat16,
        microbatches=case.shape.microbatches, remat="nothing_saveable",
    )  # fmt: skip
    kind = "float32" if small else "bfloat16"
    words = (
        f"parameters and moments {kind}, computed in bfloat16, layers rematerialised"
    )
    return state, update.jit_update(learn, state), words


def batch_of(group: Group) -> update.Batch:
    rows, length = group.branches.ids.shape
    extra = {
        "old_logprobs": np.full((rows, length), -1.0, np.float32),
        "advantages": np.linspace(-1, 1, rows, dtype=np.float32),
    }
    return update.Batch(group, extra)


def updating(s) -> list[dict]:
    able = timing.machine(jnp.bfloat16, small=s.tiny)
    return [r for case in cases(s) for r in updated(s, case, able)]


def updated(s, case: Case, able: timing.Machine) -> list[dict]:
    shape, sizes, out = case.shape, case.sizes, []
    prompt = sizes.prompt + sizes.side**2 // 4
    prefixes = {
        "language": workloads.texts(shape.groups, prompt)[0],
        "tower": workloads.prompted(sizes, shape.groups),
    }
    kind, chip = sheet()
    state, learn, words = trained(case)
    for name, prefix in prefixes.items():
        rows = shape.groups * shape.each
        group = workloads.answered(prefix, rows, shape.length)
        batch, seconds = jax.device_put(batch_of(group)), []
        for _ in range(1 + s.rounds):
            took, (state, _) = timed(learn, state, batch)
            seconds.append(took)
        middle = statistics.median(seconds[1:])
        work = forward(case.model, group)
        rate, peak = 3 * sum(work) / middle, able.flops
        shares = f"{rate / peak:.1%} of {peak / 1e12:.0f} as measured"
        if chip is not None:
            peak = chip.flops
            shares += f", {rate / peak:.1%} of {peak / 1e12:.0f} by the data sheet"
        out.append(
            result(
                f"update/{case.name}/{name}", rate / peak,
                f"MFU of an update step on {kind}: {rate / 1e12:.1f} TFLOP/s ("
                f"{shares}); {3 * work.text / 1e12:.1f} TFLOP of the language model "
                f"and {3 * work.vision / 1e12:.1f} of the tower; {shape.groups} "
                f"prompts of {prompt} tokens, {shape.each} completions of "
                f"{shape.length}, prefix once; {words}",
                bar=0.4, unit="share", seconds={"update": seconds[1:]},
            )
        )  # fmt: skip
    return out


def phases(s) -> list[dict]:
    return [phased(s, case) for case in cases(s)]


def phased(s, case: Case) -> dict:
    shape, model = case.shape, case.model
    state, learn, words = trained(case)
    group = workloads.prompted(case.sizes, shape.prompts)
    hazard = workloads.hazards(shape.median, 0.6, shape.longest)
    stops = workloads.lasting(workloads.vocabulary_of(model), hazard)
    rows = shape.prompts * shape.samples
    draw = workloads.slotted(model, group, shape.samples, stops, shape.longest, rows)
    grow = jax.jit(completions)
    cast = jax.jit(lambda p: {n: x.astype(jnp.bfloat16) for n, x in p.items()})
    start = cast(state.params)
    refer = jax.jit(lambda p, g: score(model, p, g)[0])
    reference = in_parts(refer, shape.microbatches)
    seconds: dict[str, list[float]] = {}

    def phase(name, run, *given):
        took, output = timed(run, *given)
        seconds.setdefault(name, []).append(took)
        return output

    for _ in range(1 + s.rounds):
        low = phase("sync", cast, state.params)
        rollout, _ = phase("rollout", draw, low)
        grown = grow(group, rollout)
        phase("reference", reference, start, grown)
        batch = batch_of(grown)
        batch.extra["old_logprobs"] = rollout.logprobs
        state, _ = phase("update", learn, state, batch)
        lengths = np.asarray(rollout.mask.sum(-1))
    by_phase = {name: turns[1:] for name, turns in seconds.items()}
    middle = {name: statistics.median(x) for name, x in by_phase.items()}
    whole, (kind, _) = sum(middle.values()), sheet()
    scaled = whole * STEP_PROMPTS / shape.prompts / STEP_CHIPS
    return result(
        f"phases/{case.name}", STEP / scaled,
        f"EasyR1's {STEP:.0f} s for {STEP_PROMPTS} × 5 of Qwen2.5-VL-7B on "
        f"{STEP_CHIPS} H100 / {scaled:.0f} s, which is {whole:.2f} s for "
        f"{shape.prompts} × {shape.samples} on one {kind}, scaled by prompts and "
        "chips and no more: "
        + ", ".join(f"{n} {x:.2f} s" for n, x in middle.items())
        + f"; lengths forced to a log-normal of median {shape.median}, spread "
        f"0.6, cut at {shape.longest} (mean {lengths.mean():.0f} as drawn); "
        f"no reward, nothing sent between chips; {words}",
        seconds=by_phase,
    )  # fmt: skip


def in_parts(function, parts: int):
    """Return function(params, group), run on a part of the groups at a time."""

    def run(params, group):
        cut = update.split(update.Batch(group, {}), parts).group
        return [
            function(params, jax.tree.map(lambda x, i=i: x[i], cut))
            for i in range(parts)
        ]

    return run


SUITES = {"decode": decode, "update": updating, "phases": phases}
