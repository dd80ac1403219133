"""The suites of the benchmark, and its results as JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import policy
from vlmrl.bench import device, page, timing, workloads
from vlmrl.bench.timing import interleave, ratio, result
from vlmrl.bench.workloads import Sizes
from vlmrl.data import scenes
from vlmrl.files import write_json
from vlmrl.types import UserError

WORSE = 0.05  # share of a value that makes a regression


class Settings(NamedTuple):
    sizes: Sizes
    rounds: int
    models: list[str]
    tiny: bool


def counts(s: Settings) -> list[dict]:
    sizes = s.sizes
    c, image = workloads.counts(sizes), sizes.side**2 // 4
    return [
        result(
            "counts/step", c.step[0] / c.step[1],
            f"FLOPs of the gradient of {sizes.branches} completions of one prompt, as "
            f"a group / as rows; {image} + {sizes.prompt} tokens, {sizes.length} each; "
            "vision tower included",
            unit="share", bar=0.35, less=True,
        ),
        result(
            "counts/eval", c.evaluation[0] / c.evaluation[1],
            f"FLOPs of reading {sizes.conditions} conditions ({sizes.own} tokens each "
            f"behind {image + sizes.prompt} shared), in one pass / one by one",
            unit="share", bar=0.30, less=True,
        ),
        result(
            "counts/cache", c.cache[0] / c.cache[1],
            f"bytes of keys and values of the prefix of {sizes.branches} completions, "
            "group / rows",
            unit="share", bar=1 / sizes.branches, less=True,
        ),
    ]  # fmt: skip


def step(s: Settings) -> list[dict]:
    sizes = s.sizes
    model, params = workloads.build(sizes.sees)
    one = workloads.gradient(model, workloads.scored(sizes))
    many = workloads.gradient(model, workloads.scored(sizes, sizes.branches))
    far = max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(*(jax.device_get(f(params)).values() for f in (one, many)),
                        strict=True)
        if np.any(b)
    )  # fmt: skip
    seconds = interleave(
        {"group": lambda: one(params), "rows": lambda: many(params)}, s.rounds
    )
    return [
        result(
            "step", ratio(seconds, "rows", "group"),
            f"seconds of {sizes.branches} replicated rows / of the group, forward and "
            f"backward, float32, {model.size / 1e6:.0f} M parameters; gradients agree "
            f"to {far:.0e} normwise",
            bar=2.2, seconds=seconds,
        )
    ]  # fmt: skip


def evaluation(s: Settings) -> list[dict]:
    """Time the conditions in one pass and one by one. P is the prompt, P₀ its shared
    part, q a condition's own tokens, T the new ones; c is the cost of a decoded token
    in tokens of reading, measured in the one pass."""
    sizes = s.sizes
    model, params = workloads.build(sizes.sees)
    v, own = sizes.conditions, sizes.own
    shared = len(workloads.prompt(sizes).ids)
    together = workloads.asked(sizes)
    alone = workloads.asked(sizes, [0], together=False)
    out, reading = [], None
    for new in sizes.news:
        once = workloads.sampler(model, together, v, new)
        single = workloads.sampler(model, alone, 1, new)

        def loop(single=single):
            return [single(params) for _ in range(v)]

        seconds = interleave(
            {"one pass": lambda once=once: once(params), "loop": loop}, s.rounds
        )
        least = statistics.median(seconds["one pass"])
        reading = reading or least
        token = reading / (shared + v * own)
        c = (least - reading) / (v * new) / token if new else 0.0
        bound = v * (shared + own + c * new) / (shared + v * (own + c * new))
        speedup = ratio(seconds, "loop", "one pass")
        out.append(
            result(
                f"eval/{new}", speedup,
                f"seconds of {v} conditions one after the other / in one pass, {new} "
                f"new tokens each; bound (10(P+cT))/(P₀+10(q+cT)) = {bound:.2f} with "
                f"c = {c:.2f}, reached to {speedup / bound:.0%}",
                bar=max(0.8 * bound, 4.0 if new == 0 else 0.0), seconds=seconds,
                bound=bound, c=c,
            )
        )  # fmt: skip
    return out


def slots(s: Settings) -> list[dict]:
    sizes = s.sizes
    model, params = workloads.build(sizes.learns)
    group, _ = workloads.texts(sizes.waiting, sizes.read)
    each, count = sizes.branches, sizes.slots
    hazard = workloads.hazards(sizes.median, 1.0, sizes.longest)
    stops = workloads.lasting(workloads.vocabulary_of(model), hazard)
    arguments = model, group, each, stops, sizes.longest
    filled, plain = workloads.slotted(*arguments, count), workloads.batched(*arguments)
    rollout, use = jax.device_get(filled(params))
    rows = jax.device_get(plain(params, count))
    lengths = rollout.mask.sum(-1)
    wide = len(rows[0].mask)
    idle = sum(r.mask.sum(-1).max() * wide for r in rows)
    alike = np.mean(lengths == np.concatenate([r.mask.sum(-1) for r in rows]))
    seconds = interleave(
        {"slots": lambda: filled(params), "batches": lambda: plain(params, count)},
        s.rounds,
    )
    workload = (
        f"{len(lengths)} samples, log-normal lengths of median {sizes.median} and one "
        f"natural logarithm of spread, cut at {sizes.longest} (median "
        f"{np.median(lengths):.0f}, mean {lengths.mean():.1f}, longest {lengths.max()} "
        f"as drawn), {count} slots"
    )
    return [
        result(
            "slots/kept", float(use.tokens) / (float(use.steps) * count),
            f"share of slot-steps whose token is part of a sample: {workload}; of "
            f"batches of {wide} rows, each to its longest, {lengths.sum() / idle:.0%}; "
            f"{alike:.0%} of the samples have the same length in both",
            unit="share", bar=0.85,
        ),
        result(
            "slots/time", ratio(seconds, "batches", "slots"),
            f"seconds of batches of {wide} rows / of the slots, float32, "
            f"{model.size / 1e6:.0f} M parameters: {workload}",
            seconds=seconds,
        ),
    ]  # fmt: skip


def rollout(s: Settings) -> list[dict]:
    sizes, new = s.sizes, s.sizes.new
    model, params = workloads.build(sizes.sees)
    row = workloads.prompt(sizes)
    group = workloads.prompted(sizes)
    ours = workloads.sampler(model, group, sizes.branches, new)
    settings = dict(new=new, samples=sizes.branches)
    arguments = dict(
        name="rollout", bar=2.0, tokens=sizes.branches * new,
        definition="seconds of transformers' generate / of vlmrl: one prompt of "
        f"{len(row.ids)} tokens ({row.pictures[0].tokens} of the image), "
        f"{sizes.branches} samples of {new} tokens, float32, reading included",
    )  # fmt: skip
    peers = {"transformers_generate": (settings, arguments)}
    inputs = workloads.seen(row)
    return timing.compare(
        sizes.sees, model, params, inputs, lambda: ours(params), s.rounds, peers
    )[0]


def training(s: Settings) -> list[dict]:
    sizes = s.sizes
    model, params = workloads.build(sizes.sees)
    group = workloads.scored(sizes)
    ours = workloads.gradient(model, group)
    row, count = workloads.prompt(sizes), sizes.branches
    ids = np.concatenate([np.tile(row.ids, (count, 1)), group.branches.ids], axis=1)
    inputs = workloads.seen(row, count) | dict(ids=ids)
    definition = (
        f"seconds of transformers' forward and backward pass over {count} rows / of "
        f"the group, float32, log-probs of {sizes.length} tokens each, no remat"
    )
    arguments = dict(name="training", definition=definition)
    peers = {"transformers_step": (dict(new=sizes.length), arguments)}
    return timing.compare(
        sizes.sees, model, params, inputs, lambda: ours(params), s.rounds, peers
    )[0]


def text(s: Settings) -> list[dict]:
    sizes, new = s.sizes, s.sizes.new
    model, params = workloads.build(sizes.reads)
    group, ids = workloads.texts(sizes.rows, sizes.read)
    ours = workloads.sampler(model, group, len(ids), new)
    first = workloads.sampler(model, group, len(ids), 1)
    work = (
        f"{len(ids)} prompts of {ids.shape[1]} tokens, {new} new ones each, float32, "
        f"reading included, {model.size / 1e6:.0f} M parameters"
    )
    labels = {
        "transformers_generate": ("text", "transformers' generate", 1.0),
        "vllm_generate": ("text/vllm", "vLLM's CPU build", None),
        "tunix_generate": ("text/tunix", "tunix's sampler", None),
    }
    peers = {}
    for name, (short, label, bar) in labels.items():
        definition = f"seconds of {label} / of vlmrl: {work}"
        arguments = dict(
            name=short, bar=bar, tokens=len(ids) * new, definition=definition
        )
        peers[name] = dict(new=new), arguments
    inputs = dict(ids=ids)
    results, seconds = timing.compare(
        sizes.reads, model, params, inputs, lambda: ours(params), s.rounds, peers
    )
    able = timing.machine(jnp.float32, small=s.tiny)
    whole = statistics.median(seconds["vlmrl"])
    least = timing.measured(lambda: first(params), s.rounds)
    each = (whole - least) / (new - 1)
    reading = 4 * model.size / able.bandwidth
    products = 2 * model.size * len(ids) / able.flops
    results.append(
        result(
            "text/bound", max(reading, products) / each,
            f"share of a decoding step's {1e3 * each:.1f} ms that its bound takes: the "
            f"weights read once at the {able.bandwidth / 1e9:.1f} GB/s measured here "
            f"take {1e3 * reading:.1f} ms, their products at the "
            f"{able.flops / 1e9:.0f} GFLOP/s of a large one {1e3 * products:.1f} ms",
            unit="share",
        )
    )  # fmt: skip
    return results


def grpo(s: Settings) -> list[dict]:
    sizes, new = s.sizes, s.sizes.new
    model, params = workloads.build(sizes.learns)
    group, ids = workloads.texts(sizes.prompts, sizes.read)
    ours = workloads.improved(model, params, group, sizes.branches, new)

    def whole():
        ours()  # what it returns is a reward

    definition = (
        f"seconds of a step of TRL's GRPOTrainer / of vlmrl: {len(ids)} prompts of "
        f"{ids.shape[1]} tokens, {sizes.branches} completions of {new} each, a reward "
        f"in Python, no KL, AdamW, float32, {model.size / 1e6:.0f} M parameters"
    )
    settings = dict(new=new, samples=sizes.branches)
    peers = {"trl_step": (settings, dict(name="grpo", definition=definition))}
    return timing.compare(
        sizes.learns, model, params, dict(ids=ids), whole, s.rounds, peers
    )[0]


def agree(s: Settings) -> list[dict]:
    sizes = s.sizes
    tiny = policy.load("tiny", dtype=jnp.bfloat16)
    prompts = policy.prefixes(tiny, tiny.write(scenes.suite("test", sizes.items)))
    model, params = workloads.build(sizes.dull)
    texts, _ = workloads.texts(4, sizes.read)
    stops = workloads.endless(workloads.vocabulary_of(model))
    low = {n: p.astype(jnp.bfloat16) for n, p in params.items()}
    low = workloads.sharpened(model, low, texts, stops, sizes.new // 2)
    cases = {
        "tiny": (tiny.model, tiny.params, prompts, tiny.stops, 48),
        "random": (model, low, texts, stops, sizes.new // 2),
    }
    out = []
    for name, case in cases.items():
        away, nats, count = workloads.disagreement(*case)
        out.append(
            result(
                f"agree/{name}", float(away),
                f"share of {count} sampled tokens whose probability by the trainer's "
                "forward pass is not within 10 % of the sampler's, bfloat16, "
                f"{case[0].size / 1e6:.1f} M parameters, mean entropy {nats:.2f} nats",
                unit="share", bar=0.02, less=True,
            )
        )  # fmt: skip
    return out


SUITES: dict[str, Callable[[Settings], list[dict]]] = {
    "counts": counts,
    "step": step,
    "eval": evaluation,
    "slots": slots,
    "rollout": rollout,
    "training": training,
    "text": text,
    "grpo": grpo,
    "agree": agree,
    "page": page.suite,
    **device.SUITES,
}


def describe(results: list[dict], *, tiny: bool = False) -> dict:
    """Return the JSON of a run: date, machine, versions and results."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    kind = f"cpu-{cores}" if device.platform == "cpu" else (
        f"{device.device_kind.replace(' ', '-').lower()}-{jax.device_count()}"
    )  # fmt: skip
    theirs = {k: v for r in results for k, v in r.pop("versions", {}).items()}
    return dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine={"class": kind + "-toy" * tiny, "cpu": _cpu(), "cores": cores},
        versions={n: metadata.version(n) for n in ("vlmrl", "jax", "jaxlib", "numpy")}
        | {"python": platform.python_version()},
        peers=theirs,
        results=results,
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.machine()


def line(r: dict) -> str:
    """Format a result: value, bar, definition, seconds of each side."""
    lines = [f"{r['name']:22} {_judged(r)}", f"    {r['definition']}"]
    for side, seconds in (r["seconds"] or {}).items():
        middle = statistics.median(seconds)
        speed = f", {r['tokens'] / middle:.0f} new tokens/s" if "tokens" in r else ""
        lines.append(f"    {side}: {middle:.3f} s{speed}")
    return "\n".join(lines)


def _judged(r: dict) -> str:
    if r["value"] is None:
        return "NOT MEASURED"
    if r["bar"] is None:
        return f"{r['value']:8.3f}"
    good = r["value"] <= r["bar"] if r["less"] else r["value"] >= r["bar"]
    sign, reached = "at most" if r["less"] else "at least", "" if good else "NOT "
    return f"{r['value']:8.3f}  {sign} {r['bar']:.3g}: {reached}reached"


def newest(place: Path, machine: dict) -> tuple[Path, dict] | None:
    """Return the last file of the same machine class, or the file named."""
    if place.is_file():
        return place, _read(place)
    files = [(f, _read(f)) for f in place.glob("bench-*.json")]
    same = [x for x in files if x[1]["machine"]["class"] == machine["class"]]
    return max(same, key=lambda x: x[1]["date"], default=None)


def _read(file: Path) -> dict:
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        results["date"], results["machine"]["class"], results["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no result of `vlmrl bench`: {error}") from error
    return results


def regressions(before: dict, now: dict) -> list[str]:
    """Return a line for each result that is more than 5 % worse than before."""
    old = {r["name"]: r["value"] for r in before["results"]}
    out = []
    for r in now["results"]:
        was, value = old.get(r["name"]), r["value"]
        if was is None or value is None:
            continue
        lost = value / was - 1 if r["less"] else 1 - value / was
        if lost > WORSE:
            out.append(f"REGRESSION {r['name']}: {value:.3f}, was {was:.3f}")
    return out


def save(results: dict, directory: Path) -> Path:
    """Write bench-DATE-CLASS.json and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = results["date"].replace(":", "").partition("+")[0]
    path = directory / f"bench-{stamp}-{results['machine']['class']}.json"
    write_json(path, results)
    return path
