"""Measure the engine: against rows that share nothing, against a loop over conditions,
and against what people would use instead, on the same work.

What is compared runs in turn, round by round, in one go; a ratio is the median over
rounds of (seconds of the other) / (seconds of this), so that a machine that slows down
slows down both. Peers run in processes of their own, in environments their scripts in
third_party/peers/ make, and load the very weights that run here.

  counts    FLOPs counted by XLA and bytes of cache, grouped against replicated rows
  step      a policy-gradient step: 1,024 image tokens, 64 of text, 8 completions of 256
  eval      10 conditions in one pass against one after the other; 0 … 256 new tokens
  rollout   8 samples of 64 tokens behind 1,024 image tokens, against transformers
  training  the step against transformers' forward and backward pass in torch
  text      16 prompts of 32 tokens, 64 new ones each, 121 M parameters, against
            transformers
  grpo      a whole GRPO step, 4 prompts of 32 tokens, 8 completions of 64 each, 10 M
            parameters, against TRL's
  agree     how often bfloat16's sampler and trainer differ by more than 10 % on a token

Results are one JSON file with date, machine class, versions and definitions. Its ratios
are compared with the newest earlier file of the same class: more than 5 % worse is said
and makes the exit status 1.

  vlmrl bench counts step --rounds 5
  vlmrl bench --out third_party/peers/results
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.data import scenes
from vlmrl.engine import policy
from vlmrl.main import args, workloads
from vlmrl.types import UserError

HELP = "speed and cost beside replicated rows, loops and peers"
FLAGS = {
    "rounds": (5, "how often each side runs, in turn, after one run to warm up"),
    "out": ("", "directory for the JSON file; without it, it is only printed"),
    "against": ("", "earlier JSON file, or directory of them; default: --out"),
    "args": ("[SUITE ...]", "suites to run; all of them if none is named"),
}
PEERS = args.CHECKOUT / "third_party" / "peers"
WORSE = 0.05  # share of a ratio that makes a regression
NEW = (0, 16, 64, 256)  # new tokens per condition in `eval`


def main(argv):
    _, _, other = args.parse(argv, FLAGS)
    unknown = [name for name in other.args if name not in SUITES]
    if unknown:
        raise UserError(
            f"no suite '{unknown[0]}'; there are {', '.join(SUITES)}; see --help"
        )
    if other.rounds < 1:
        raise UserError(f"--rounds is {other.rounds}, want 1 or more")
    results = []
    for name in other.args or SUITES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results += SUITES[name](other.rounds)
    found = describe(results)
    print(table(found))
    worse = []
    previous = newest(Path(other.against or other.out or "."), found["machine"])
    if previous is not None:
        worse = regressions(previous[1], found)
        print(f"against {previous[0].name}: {'; '.join(worse) or 'no regression'}")
    if other.out:
        print(f"written: {save(found, Path(other.out))}")
    return 1 if worse else 0


# -- suites: each returns results ------------------------------------------------------


def result(name, value, definition, *, unit="ratio", bar=None, seconds=None) -> dict:
    """One number: a higher ratio is better; `bar` is what it should reach (a share of
    cost should stay below it)."""
    return dict(
        name=name, value=value, unit=unit, bar=bar, definition=definition,
        seconds=seconds,
    )  # fmt: skip


def counts(rounds) -> list[dict]:
    c = workloads.counts(workloads.sees())
    return [
        result(
            "counts/step", c.step[0] / c.step[1],
            "FLOPs of the gradient of 8 completions of one prompt, as a group / as 8 "
            "rows; 1,024 + 64 tokens, 256 each; vision tower included",
            unit="share", bar=0.35,
        ),
        result(
            "counts/eval", c.evaluation[0] / c.evaluation[1],
            "FLOPs of reading 10 conditions (64 tokens each behind 1,088 shared), in "
            "one pass / in ten",
            unit="share", bar=0.30,
        ),
        result(
            "counts/cache", c.cache[0] / c.cache[1],
            "bytes of keys and values of the prefix of 8 completions, group / rows",
            unit="share", bar=0.125,
        ),
    ]  # fmt: skip


def step(rounds) -> list[dict]:
    config = workloads.sees()
    model, params = workloads.build(config)
    one = workloads.gradient(model, workloads.scored(config))
    many = workloads.gradient(model, workloads.scored(config, workloads.BRANCHES))
    far = max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(*(jax.device_get(f(params)).values() for f in (one, many)),
                        strict=True)
        if np.any(b)
    )  # fmt: skip
    seconds = interleave(
        {"group": lambda: one(params), "rows": lambda: many(params)}, rounds
    )
    return [
        result(
            "step", ratio(seconds, "rows", "group"),
            "seconds of 8 replicated rows / of the group, forward and backward, "
            f"float32, {model.size / 1e6:.0f} M parameters; gradients agree to "
            f"{far:.0e} normwise",
            bar=2.2, seconds=seconds,
        )
    ]  # fmt: skip


def evaluation(rounds) -> list[dict]:
    """Definitions: P prompt, P₀ shared, q own tokens, T new ones; c is the cost of a
    decoded token in tokens of reading, measured in the one pass."""
    config = workloads.sees()
    model, params = workloads.build(config)
    v, shared = workloads.CONDITIONS, len(workloads.prompt(config).ids)
    own = workloads.OWN
    together = workloads.asked(config)
    alone = workloads.asked(config, [0], together=False)
    out, reading = [], None
    for new in NEW:
        once = workloads.sampler(model, together, v, new)
        single = workloads.sampler(model, alone, 1, new)

        def loop(single=single):
            return [single(params) for _ in range(v)]

        seconds = interleave(
            {"one pass": lambda once=once: once(params), "loop": loop}, rounds
        )
        least = statistics.median(seconds["one pass"])
        reading = reading or least
        token = reading / (shared + v * own)
        c = (least - reading) / (v * new) / token if new else 0.0
        bound = v * (shared + own + c * new) / (shared + v * (own + c * new))
        found = ratio(seconds, "loop", "one pass")
        out.append(
            result(
                f"eval/{new}", found,
                f"seconds of {v} conditions one after the other / in one pass, {new} "
                f"new tokens each; bound {bound:.2f} with c = {c:.2f}",
                bar=max(0.8 * bound, 4.0 if new == 0 else 0.0), seconds=seconds,
            )
        )  # fmt: skip
    return out


def rollout(rounds) -> list[dict]:
    config, new = workloads.sees(), 64
    model, params = workloads.build(config)
    row = workloads.prompt(config)
    group = workloads.prompted(config)
    ours = workloads.sampler(model, group, workloads.BRANCHES, new)
    inputs = dict(
        ids=row.ids[None],
        patches=row.pictures[0].patches,
        grid=np.array([row.pictures[0].grid]),
        image=workloads.IMAGE,
    )
    with peer(
        "transformers_generate", config, model, params, inputs,
        new=new, samples=workloads.BRANCHES,
    ) as theirs:  # fmt: skip
        seconds = interleave(
            {"vlmrl": lambda: ours(params), "transformers": theirs}, rounds
        )
    speed = workloads.BRANCHES * new / statistics.median(seconds["vlmrl"])
    return [
        result(
            "rollout", ratio(seconds, "transformers", "vlmrl"),
            f"seconds of transformers' generate / of vlmrl: one prompt of "
            f"{len(row.ids)} tokens (1,024 of the image), {workloads.BRANCHES} samples "
            f"of {new} tokens, float32, reading included; {speed:.0f} new tokens/s",
            bar=2.0, seconds=seconds,
        )
    ]  # fmt: skip


def training(rounds) -> list[dict]:
    config = workloads.sees()
    model, params = workloads.build(config)
    group = workloads.scored(config)
    ours = workloads.gradient(model, group)
    row = workloads.prompt(config)
    count = workloads.BRANCHES
    inputs = dict(
        ids=np.concatenate([np.tile(row.ids, (count, 1)), group.branches.ids], axis=1),
        patches=np.tile(row.pictures[0].patches, (count, 1)),
        grid=np.array([row.pictures[0].grid] * count),
        image=workloads.IMAGE,
    )
    with peer(
        "transformers_step", config, model, params, inputs, new=workloads.LENGTH
    ) as theirs:
        seconds = interleave(
            {"vlmrl": lambda: ours(params), "transformers": theirs}, rounds
        )
    return [
        result(
            "training", ratio(seconds, "transformers", "vlmrl"),
            "seconds of transformers' forward and backward pass over 8 rows / of the "
            "group, float32, log-probs of 256 tokens each, no rematerialisation",
            seconds=seconds,
        )
    ]  # fmt: skip


def text(rounds) -> list[dict]:
    config, new = workloads.reads(), 64
    model, params = workloads.build(config)
    group, ids = workloads.texts()
    ours = workloads.sampler(model, group, len(ids), new)
    with peer(
        "transformers_generate", config, model, params, dict(ids=ids), new=new
    ) as theirs:
        seconds = interleave(
            {"vlmrl": lambda: ours(params), "transformers": theirs}, rounds
        )
    speed = {k: len(ids) * new / statistics.median(s) for k, s in seconds.items()}
    return [
        result(
            "text", ratio(seconds, "transformers", "vlmrl"),
            f"seconds of transformers' generate / of vlmrl: {len(ids)} prompts of "
            f"{ids.shape[1]} tokens, {new} new ones each, float32, reading included, "
            f"{model.size / 1e6:.0f} M parameters; new tokens/s: "
            + ", ".join(f"{k} {v:.0f}" for k, v in speed.items()),
            bar=1.0, seconds=seconds,
        )
    ]  # fmt: skip


def agree(rounds) -> list[dict]:
    tiny = policy.load("tiny", dtype=jnp.bfloat16)
    prompts = policy.prefixes(tiny, tiny.write(scenes.suite("test", 32)))
    config = workloads.reads(4096, 768, 6, 12, 4, 2304)
    model, params = workloads.build(config)
    texts, _ = workloads.texts(4)
    sharp = workloads.sharpened(model, params, texts)
    low = {n: p.astype(jnp.bfloat16) for n, p in sharp.items()}
    stops = workloads.endless(config["vocab_size"])
    cases = {
        "tiny": (tiny.model, tiny.params, prompts, tiny.stops, 48),
        "random": (model, low, texts, stops, 32),
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
                unit="share", bar=0.02,
            )
        )  # fmt: skip
    return out


SUITES: dict[str, Callable] = {
    "counts": counts,
    "step": step,
    "eval": evaluation,
    "rollout": rollout,
    "training": training,
    "text": text,
    "agree": agree,
}


# -- timing ----------------------------------------------------------------------------


def interleave(sides: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side, in turn, `rounds` times, after a run of each to warm up.
    A side that returns a float says its own time (a peer, in its own process)."""
    out = {name: [] for name in sides}
    for turn in range(-1, rounds):
        for name, run in sides.items():
            begin = time.perf_counter()
            found = jax.block_until_ready(run())
            spent = time.perf_counter() - begin
            if turn >= 0:
                out[name].append(found if isinstance(found, float) else spent)
    return out


def ratio(seconds: dict[str, list[float]], other: str, this: str) -> float:
    """Median over rounds of other / this: how many times faster this is."""
    pairs = zip(seconds[other], seconds[this], strict=True)
    return statistics.median(a / b for a, b in pairs)


@contextlib.contextmanager
def peer(name, config, model, params, inputs, *, new, samples=1):
    """A peer at work in a process of its own: gives a function that has it run once
    and returns its seconds. Its script says what it is given."""
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="vlmrl-bench-") as place:
        directory = workloads.write(Path(place), config, model, params)
        np.savez(Path(place) / "inputs.npz", **inputs)
        words = [
            *(sys.executable, str(PEERS / f"{name}.py"), "--model", str(directory)),
            *("--inputs", f"{place}/inputs.npz", "--new", str(new)),
            *("--samples", str(samples), "--threads", str(threads), "--serve"),
        ]
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

        def answer() -> dict:
            for line in process.stdout:
                if line.startswith("{"):  # what else is printed is the peer's chatter
                    return json.loads(line)
            raise UserError(
                f"peer {name} ended with status {process.wait()}; what it said is above"
            )

        def once() -> float:
            process.stdin.write("go\n")
            process.stdin.flush()
            return float(answer()["seconds"])

        try:
            answer()  # it is ready
            yield once
        finally:
            process.stdin.close()
            process.wait()


# -- results ---------------------------------------------------------------------------


def describe(results: list[dict]) -> dict:
    """The JSON of a run: when, where, with what, and the results."""
    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0))
    kind = f"cpu-{cores}" if device.platform == "cpu" else (
        f"{device.device_kind.replace(' ', '-').lower()}-{jax.device_count()}"
    )  # fmt: skip
    return dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine={"class": kind, "cpu": _cpu(), "cores": cores},
        versions={n: metadata.version(n) for n in ("vlmrl", "jax", "jaxlib", "numpy")}
        | {"python": platform.python_version()},
        results=results,
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.machine()


def table(found: dict) -> str:
    rows = []
    for r in found["results"]:
        bar = ""
        if r["bar"] is not None:
            below = r["unit"] == "share"
            good = r["value"] <= r["bar"] if below else r["value"] >= r["bar"]
            sign = "at most" if below else "at least"
            bar = f"{sign} {r['bar']:.3g}: {'reached' if good else 'NOT reached'}"
        rows.append(f"{r['name']:22} {r['value']:8.3f}  {bar}\n    {r['definition']}")
    head = f"{found['date']}  {found['machine']['class']}  {found['machine']['cpu']}"
    return "\n".join([head, *rows])


def newest(place: Path, machine: dict) -> tuple[Path, dict] | None:
    """The last file of the same machine class, or the file named."""
    if place.is_file():
        return place, _read(place)
    files = [(f, _read(f)) for f in place.glob("bench-*.json")]
    same = [x for x in files if x[1]["machine"]["class"] == machine["class"]]
    return max(same, key=lambda x: x[1]["date"], default=None)


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        found["date"], found["machine"]["class"], found["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is no result of `vlmrl bench`: {error}") from error
    return found


def regressions(before: dict, now: dict) -> list[str]:
    """Results more than 5 % worse than before, a line each."""
    old = {r["name"]: r["value"] for r in before["results"]}
    out = []
    for r in now["results"]:
        was, value = old.get(r["name"]), r["value"]
        if was is None:
            continue
        lost = value / was - 1 if r["unit"] == "share" else 1 - value / was
        if lost > WORSE:
            out.append(f"REGRESSION {r['name']}: {value:.3f}, was {was:.3f}")
    return out


def save(found: dict, directory: Path) -> Path:
    """Writes bench-DATE-CLASS.json."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = found["date"].replace(":", "").partition("+")[0]
    path = directory / f"bench-{stamp}-{found['machine']['class']}.json"
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return beside.rename(path)
