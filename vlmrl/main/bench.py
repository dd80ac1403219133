"""Measure the engine: against rows that share nothing, against a loop over conditions,
and against what people would use instead, on the same work.

What is compared runs in turn, round by round, in one go; a ratio is the median over
rounds of (seconds of the other) / (seconds of this), so that a machine that slows down
slows down both. Peers run in processes of their own, in environments their scripts in
third_party/peers/ make, and load the very weights that run here. What could not be
measured is said, and makes the exit status 1.

On CPUs, all of them by default:
  counts    FLOPs counted by XLA and bytes of cache, grouped against replicated rows
  step      a policy-gradient step: 1,024 image tokens, 64 of text, 8 completions of 256
  eval      10 conditions in one pass against one after the other; 0 … 256 new tokens
  slots     768 samples of long-tailed lengths in 16 slots: how many slot-steps write
  rollout   8 samples of 64 tokens behind 1,024 image tokens, against transformers
  training  the step against transformers' forward and backward pass in torch
  text      16 prompts of 32 tokens, 64 new ones each, 121 M parameters, against
            transformers, vLLM and tunix; what bounds it
  grpo      a whole GRPO step, 4 prompts of 32 tokens, 8 completions of 64 each, 9 M
            parameters, against TRL's
  agree     how often bfloat16's sampler and trainer differ by more than 10 % on a token
  page      the report of 20,000 records: seconds to write it and to its first view
On a GPU, all of them by default, with random weights of --models' shapes:
  decode    a decoding step against what memory and arithmetic allow, at 64 and at 512
            branches, and against transformers' generate
  update    the update step: share of the arithmetic peak (MFU)
  phases    a GRPO step of Geometry3K's shape, by phase

Results are one JSON file with date, machine class, versions and definitions. Its values
are compared with the newest earlier file of the same class: more than 5 % worse is said
and makes the exit status 1. --tiny runs everything at toy sizes, to see that it works.

  vlmrl bench counts step --rounds 5
  vlmrl bench --out third_party/peers/results
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from vlmrl.bench import device, suites, workloads
from vlmrl.main import args
from vlmrl.types import UserError

HELP = "speed and cost beside replicated rows, loops and peers"
FLAGS = {
    "rounds": (5, "how often each side runs, in turn, after one run to warm up"),
    "out": ("", "directory for the JSON file; without it, it is only printed"),
    "against": ("", "earlier JSON file, or directory of them; default: --out"),
    "models": (
        ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"],
        "shapes for decode, update and phases (see `vlmrl plan`)",
    ),
    "tiny": (False, "toy sizes"),
    "args": ("[SUITE ...]", "suites to run; those of this kind of machine by default"),
}


def main(argv):
    _, _, other = args.parse(argv, FLAGS)
    unknown = [name for name in other.args if name not in suites.SUITES]
    if unknown:
        raise UserError(
            f"no suite '{unknown[0]}'; there are {', '.join(suites.SUITES)}; see --help"
        )
    if other.rounds < 1:
        raise UserError(f"--rounds is {other.rounds}, expected 1 or more")
    cpu = jax.default_backend() == "cpu"
    default = [n for n in suites.SUITES if (n in device.SUITES) != cpu]
    heavy = [n for n in other.args if n in device.SUITES]
    if heavy and cpu and not other.tiny:
        raise UserError(f"{heavy[0]}: needs a GPU, or --tiny to see that it works")
    sizes = workloads.TINY if other.tiny else workloads.FULL
    settings = suites.Settings(sizes, other.rounds, other.models, other.tiny)
    results = []
    for name in other.args or default:
        print(f"{name} ...", file=sys.stderr, flush=True)
        done = suites.SUITES[name](settings)
        print(*map(suites.line, done), sep="\n", flush=True)  # whatever comes after
        results += done
    report = suites.describe(results, tiny=other.tiny)
    machine = report["machine"]
    print(f"{report['date']}  {machine['class']}  {machine['cpu']}")
    worse = []
    previous = suites.newest(Path(other.against or other.out or "."), machine)
    if previous is not None:
        worse = suites.regressions(previous[1], report)
        print(f"against {previous[0].name}: {'; '.join(worse) or 'no regression'}")
    if other.out:
        print(f"written: {suites.save(report, Path(other.out))}")
    return 1 if worse or any(r["value"] is None for r in results) else 0
