"""Memory, bound, time and cost of a job's programs on a topology."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from vlmrl import sharding
from vlmrl.engine import attention
from vlmrl.files import atomic_write
from vlmrl.plan import chips, compiled, programs
from vlmrl.plan.programs import PlannedJob, Program
from vlmrl.prompts.processor import vision_of
from vlmrl.rl import recipe as recipes
from vlmrl.types import UserError

GIB = 2**30

SAMPLING = ("rollout", "evaluation")  # programs


class Cost(NamedTuple):
    """The cost of one program on one device: bytes, FLOPs, lower bounds of seconds."""

    name: str
    arguments: dict[str, float]  # bytes by part
    host: float  # bytes in the host's memory, per device
    temporary: float
    cache: float  # of `temporary`: keys and values
    copy: float  # of `temporary`: weights cast and gathered for sampling
    resident: float  # bytes allocated beside the program: optimizer, reference
    total: float  # peak bytes; 0: the compiler reports none
    refused: str  # the compiler's reason if it failed, else ''
    flops: float
    memory: float  # lower bound of bytes read and written
    sent: dict[str, float]  # bytes by mesh axis
    compute_s: float
    memory_s: float
    network_s: float
    compile_s: float

    @property
    def best(self) -> float:
        return max(self.compute_s, self.memory_s, self.network_s)

    @property
    def bound(self) -> str:
        times = ("compute", self.compute_s), ("memory", self.memory_s)
        return max(*times, ("network", self.network_s), key=lambda x: x[1])[0]


def read_job(c: dict) -> PlannedJob:
    """Return the job of a config: fields of a recipe, and those of large models
    (`dtype`, `compute`), which configs may leave out. The largest shapes are those of
    `buckets`, or follow from `pixels` and `max_images`."""
    if c.get("algorithm", "grpo") == "sft":
        raise UserError("config.algorithm is 'sft'; plan is for RL runs")
    model, raw = programs.read_model(c["model"])
    buckets = c.get("buckets") or _largest_shapes(c, raw)
    sizes = {
        "prefix": _largest(buckets.get("prefix"), 96),
        "images": _largest(buckets.get("images"), 1 if "vision_config" in raw else 0),
        "windows": _largest(buckets.get("windows"), 4),
    }
    fields = {k: v for k, v in c.items() if k in recipes.Recipe._fields}
    recipe = recipes.make(**fields)
    held_out = c["eval"]
    texts = held_out.get("texts") or _largest(buckets.get("branch"), 76)
    return PlannedJob(
        model=model,
        raw=raw,
        prompts=c["prompts"],
        group_size=recipe.sampling.group_size,
        max_tokens=recipe.sampling.max_tokens,
        buckets=sizes,
        microbatches=recipe.learner.microbatches,
        dtype=jnp.dtype(c.get("dtype", "float32")),
        compute=jnp.dtype(c["compute"]) if c.get("compute") else None,
        remat=recipe.learner.remat or None,
        float32_residual=recipe.learner.float32_residual,
        loss={k: v for k, v in recipe.loss.items() if v is not None},
        optimizer=recipe.optimizer,
        conditions=len(held_out["conditions"]),
        eval_batch=held_out.get("batch", min(16, held_out["size"])),
        eval_tokens=held_out["max_tokens"],
        eval_texts=texts,
        gather_params=recipe.sampling.gather_params,
    )


def _largest_shapes(c: dict, raw: dict) -> dict[str, int]:
    """Return the largest prompt of a config that limits its images' pixels; {} without
    a limit. Windows are as many as a square image has, and a tenth more."""
    if "vision_config" not in raw or not c.get("pixels"):
        return {}
    most, images = c["pixels"][1], c.get("max_images") or 1
    if "downsample_ratio" in raw:  # tiles, and the thumbnail
        tiles = most // 448**2 + 1
        return {
            "prefix": images * tiles * 256 + 512,
            "images": images,
            "windows": tiles,
        }
    vision = vision_of(raw)
    unit = vision["patch_size"] * vision["spatial_merge_size"]
    windows = math.ceil(1.1 * most / vision.get("window_size", 4 * unit) ** 2)
    prefix = images * (most // unit**2) + 512
    return {"prefix": prefix, "images": images, "windows": windows}


def _largest(value, default: int) -> int:
    return default if not value else max(value) if hasattr(value, "__len__") else value


def make_mesh(job: PlannedJob, place: chips.Topology, requested: Any):
    """Return the requested mesh ('fsdp=16,tensor=4' or a dict), or one for the model:
    tensor-parallel over the key-value heads where there are eight devices or more, the
    other devices on the fsdp axis."""
    count = len(place.devices)
    if isinstance(requested, str) and requested:
        pairs = [part.split("=") for part in requested.split(",")]
        if any(len(p) != 2 or not re.fullmatch(r"-?\d+", p[1]) for p in pairs):
            raise UserError(f"--mesh is '{requested}', expected e.g. fsdp=16,tensor=4")
        requested = {name: int(size) for name, size in pairs}
        if unknown := set(requested) - set(sharding.AXES):
            raise UserError(f"--mesh: no axis {', '.join(unknown)}; {sharding.AXES}")
        requested = {"data": 1, **requested} if "fsdp" in requested else requested
    if not requested:
        requested = automatic(job, count)
    return sharding.make_mesh(**requested, devices=place.devices)


def automatic(job: PlannedJob, count: int) -> dict[str, int]:
    heads, tensor = job.model.config.text.kv_heads, 1
    while count >= 8 and heads % (2 * tensor) == 0 and count % (2 * tensor) == 0:
        tensor *= 2
    while count // tensor > job.prompts and count % (2 * tensor) == 0:
        tensor *= 2
    return {"data": 1, "fsdp": count // tensor, "tensor": tensor}


def options_of(place: chips.Topology, mesh) -> dict:
    """Return the attention back end of a run there; without libtpu, XLA's."""
    if place.compiler == "libtpu":
        return {"attend": attention.choose("splash", mesh)}
    return {}


def programs_of(
    job: PlannedJob, mesh, only: list[str], **options
) -> list[tuple[Program, int]]:
    """Return (program, its number of groups) of a job; options as `score`'s."""
    shards = sharding.batch_shards(mesh)
    if job.prompts % (shards * job.microbatches):
        raise UserError(
            f"config.prompts is {job.prompts}, expected a multiple of {shards} batch "
            f"shards × {job.microbatches} microbatches"
        )
    job = job._replace(
        model=job.model.on(mesh), eval_batch=job.eval_batch + -job.eval_batch % shards
    )
    known = {
        "rollout": (programs.rollout, job.prompts),
        "update": (programs.step, job.prompts),
        "evaluation": (programs.evaluation, job.eval_batch),
    }
    if job.loss.get("kl_weight"):
        known["reference"] = (programs.reference, job.prompts)
    if unknown := set(only) - set(known):
        raise UserError(f"--only: no program {', '.join(unknown)}; {', '.join(known)}")
    return [
        (f(job, mesh, **options), n)
        for name, (f, n) in known.items()
        if name in only or not only
    ]


def cost(
    job: PlannedJob, mesh, place, program: Program, groups: int, counted: Program
) -> Cost:
    """Compile a program and read its costs. `counted` is the same program with XLA's
    attention, since a jaxpr doesn't tell how often a kernel runs."""
    count, began = mesh.devices.size, time.monotonic()
    flops = compiled.flops(counted.function, *counted.args, trips=program.trips)
    function = jax.jit(
        program.function, donate_argnums=program.donated, out_shardings=program.out
    )
    refused, text, temporary, total = "", "", 0.0, 0.0
    try:
        with without_libtpu_cache(place):
            executable = function.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        refused = refusal(str(error))
    else:
        text = executable.as_text()
        sizes = executable.memory_analysis()
        temporary = float(sizes.temp_size_in_bytes)
        total = (
            sizes.argument_size_in_bytes + sizes.output_size_in_bytes + temporary
            - sizes.alias_size_in_bytes
        )  # fmt: skip
    compile_s = time.monotonic() - began
    arguments, host = {}, programs.device_bytes(program.args, on_host=True)
    for part, arg in zip(program.parts, program.args, strict=True):
        if part == "state":
            arguments["parameters"] = programs.device_bytes(arg.params)
            arguments["optimizer"] = programs.device_bytes(arg.opt_state)
        else:
            arguments[part] = arguments.get(part, 0.0) + programs.device_bytes(arg)
    cache = cache_of(job, mesh, program, groups)
    copy = 0.0
    if program.name in SAMPLING:
        copy = programs.sampling_params(job, mesh).prepare(program.args[0])
    resident = programs.resident(job, mesh)
    resident -= arguments.get("parameters", 0) + arguments.get("optimizer", 0)
    sent = compiled.by_axis(compiled.collectives(text), mesh)
    moved = traffic(job, mesh, program, arguments, cache)
    chip = place.chip
    return Cost(
        program.name, arguments, host, temporary, cache, copy, resident, total, refused,
        flops / count, moved, sent, flops / count / chip.flops, moved / chip.bandwidth,
        sum(sent.values()) / chip.network, compile_s,
    )  # fmt: skip


@contextlib.contextmanager
def without_libtpu_cache(place):
    """Disable JAX's compilation cache for libtpu: without a TPU, its programs can be
    written but not read back."""
    before = jax.config.jax_enable_compilation_cache
    if place.compiler == "libtpu":
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # JAX reads the setting once per process
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def cache_of(job: PlannedJob, mesh, program: Program, groups: int) -> float:
    if program.name == "rollout":
        rows = job.prompts * job.group_size
        return programs.cache(
            job, mesh, groups=groups, length=job.max_tokens, rows=rows
        )
    if program.name == "evaluation":
        rows = groups * job.conditions
        blind = (groups, job.buckets["prefix"])
        texts = (2 * rows, job.eval_texts)  # with an image and without
        return programs.cache(
            job, mesh, groups=groups, length=2 * job.eval_tokens, rows=rows,
            segments=(blind, texts),
        )  # fmt: skip
    return 0.0


def traffic(
    job: PlannedJob, mesh, program: Program, arguments: dict, cache: float
) -> float:
    """Return the least bytes that a device reads and writes: gathered weights once per
    pass, the cache once per token, optimizer and parameters once each way."""
    kind = job.compute or job.dtype
    weights = job.model.size * kind.itemsize / mesh.shape["tensor"]
    if program.name == "update":
        own = 2 * (2 * arguments["parameters"] + arguments["optimizer"])
        return own + 3 * weights * job.microbatches
    if program.name == "reference":
        return weights
    return program.trips * (weights + cache / 2)


def refusal(message: str) -> str:
    """Return the memory figures of a compiler's error, or its first 200 characters."""
    match = re.search(r"Used ([\d.]+\w+) of ([\d.]+\w+) hbm", message)
    if match:
        return f"needs {match[1]} of the {match[2]} that a program may use"
    return " ".join(message.split())[:200]


def table(c, job: PlannedJob, mesh, place, costs: list[Cost], efficiency: float) -> str:
    chip = place.chip
    sizes = ", ".join(f"{a}={mesh.shape[a]}" for a in mesh.axis_names)
    lines = [
        f"{c['model']} on {place.kind}:{place.slice}: {mesh.devices.size} chips, "
        f"{sizes}; compiled with {place.compiler}",
        f"{job.prompts} prompts × {job.group_size}, prompt {job.buckets['prefix']} "
        f"with {job.buckets['images']} × {job.buckets['windows']} vision windows, "
        f"response {job.max_tokens}, {job.microbatches} microbatches, remat "
        f"{job.remat}, parameters {job.dtype}, computing in {job.compute or job.dtype}",
        f"a chip: {chip.flops / 1e12:.3g} TFLOP/s, {chip.memory / 1e9:.0f} GB, "
        f"{chip.bandwidth / 1e9:.0f} GB/s memory, {chip.network / 1e9:.0f} GB/s "
        "network",
        "",
        "per device".ljust(14) + "".join(f"{x.name:>14}" for x in costs),
    ]

    def row(label, cell):
        lines.append(label.ljust(14) + "".join(f"{cell(x):>14}" for x in costs))

    for part in ("parameters", "optimizer", "batch"):
        row(part, lambda x, part=part: _gib(x.arguments.get(part, 0)))
    if any(x.host for x in costs):
        row("on the host", lambda x: _gib(x.host))
    row("cache", lambda x: _gib(x.cache))
    row("copied", lambda x: _gib(x.copy))
    row("other", lambda x: "–" if x.refused else _gib(rest(x)))
    row("beside it", lambda x: _gib(x.resident))
    row("peak", lambda x: "refused" if x.refused else _gib(x.total + x.resident))
    row("fits", lambda x: "yes" if fits(x, chip) else "NO")
    row("TFLOP", lambda x: f"{x.flops / 1e12:.4g}")
    row("GB moved ≥", lambda x: f"{x.memory / 1e9:.4g}")
    for axis in sorted({a for x in costs for a in x.sent}):
        label = f"GB {axis}"
        row(label, lambda x, axis=axis: f"{x.sent.get(axis, 0) / 1e9:.4g}")
    row("compute s", lambda x: f"{x.compute_s:.3g}")
    row("memory s", lambda x: f"{x.memory_s:.3g}")
    row("network s", lambda x: "–" if x.refused else f"{x.network_s:.3g}")
    row("bound", lambda x: x.bound)
    row("compiling s", lambda x: f"{x.compile_s:.0f}")
    lines += [f"{x.name}: {x.refused}" for x in costs if x.refused]
    lines += [
        "",
        *run_lines(c, job, mesh, costs, efficiency),
        suggest(mesh, place, costs),
    ]
    if place.compiler != "libtpu" and chip.platform != "cpu":
        lines.append("Temporary memory is that of XLA's CPU compiler; a GPU's differs.")
    return "\n".join(lines)


def rest(x: Cost) -> float:
    return max(0.0, x.temporary - x.cache - x.copy)


def fits(x: Cost, chip: chips.Chip) -> bool:
    """Return whether a program's peak fits the chip; where the CPU compiler reports no
    peak, arguments and cache stand for it."""
    if x.refused:
        return False
    known = max(x.total, sum(x.arguments.values()) + x.cache)
    return known + x.resident <= chip.memory


def run_lines(
    c, job: PlannedJob, mesh, costs: list[Cost], efficiency: float
) -> list[str]:
    """Return lines about the time of a step, of the evaluations and of the run."""
    by_name = {x.name: x for x in costs}
    if not {"rollout", "update"} <= by_name.keys():
        return []
    names = [n for n in ("rollout", "reference", "update") if n in by_name]
    step = sum(by_name[n].best for n in names)
    rows = job.prompts * job.group_size
    tokens = rows * job.max_tokens + job.prompts * job.buckets["prefix"]
    chips_ = mesh.devices.size
    lines = [
        f"a step: {step:.1f} s at best, {step / efficiency:.1f} s at {efficiency:.0%}: "
        f"{tokens * efficiency / step / chips_:.0f} tokens/s/chip (prompts read once, "
        f"all completions at full length)"
    ]
    steps = c.get("steps", 0)
    total = steps * step
    if "evaluation" in by_name and c["eval"]["every"]:
        passes = -(-c["eval"]["size"] // job.eval_batch)
        once = passes * by_name["evaluation"].best
        times = -(-steps // c["eval"]["every"])
        total += times * once
        lines.append(
            f"an evaluation of {c['eval']['size']} examples × {job.conditions} "
            f"conditions: {passes} passes, {once:.1f} s at best; {times} of them"
        )
    hours = total / efficiency / 3600
    lines.append(
        f"the run of {steps} steps: {hours:.2f} h, {hours * chips_:.0f} chip-hours at "
        f"{efficiency:.0%}"
    )
    return lines


def suggest(mesh, place, costs: list[Cost]) -> str:
    """Name the smallest slice that would hold the programs: sharded arrays grow as
    chips get fewer; temporaries stay, since microbatches fix the rows per device."""
    count, chip = mesh.devices.size, place.chip
    known = [x for x in costs if not x.refused]
    if len(known) < len(costs):
        return f"{place.kind}:{place.slice} does not hold it: take more chips or memory"
    for slice_, n in chips.smaller(place.kind):
        need = max(
            _sharded(x) * count / n
            + max(x.total, x.cache)
            - sum(x.arguments.values())
            + x.arguments.get("batch", 0)
            for x in known
        )
        if need <= chip.memory:
            return (
                f"smallest slice of {place.kind} that holds it, rows per chip as here: "
                f"{place.kind}:{slice_} (estimated, {_gib(need)} GiB per chip)"
            )
    return f"no listed slice of {place.kind} holds it"


def _sharded(x: Cost) -> float:
    """Return the bytes per device that shrink with more devices."""
    sizes = x.arguments
    return sizes.get("parameters", 0) + sizes.get("optimizer", 0) + x.resident


def write(path: Path, text: str, costs: list[Cost]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = [{**x._asdict(), "bound": x.bound, "best": x.best} for x in costs]
    for target, content in (
        (path, text),
        (path.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n"),
    ):
        atomic_write(target, content)


def _gib(size: float) -> str:
    return f"{size / GIB:.3g}"
