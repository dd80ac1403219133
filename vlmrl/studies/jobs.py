"""The work behind a study: what it needs, how long it takes, and doing it.

A job ends in record files; it is done when they are there. Evaluations are named by
what decides their numbers (model, style, decoding, set, conditions, image
perturbations, kernel), so studies that ask for the same one share it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmrl import perturb, sharding
from vlmrl import policy as policies
from vlmrl.client import http
from vlmrl.data import distort, loader, texts
from vlmrl.data.sets import SETS
from vlmrl.eval import records, served
from vlmrl.eval.record_builder import RunLabels
from vlmrl.files import atomic_write, json_lines
from vlmrl.loops import seeds
from vlmrl.loops.evaluate import (
    OPTIONS,
    EvalPart,
    EvalSettings,
    Evaluator,
    load_examples,
    write_records,
)
from vlmrl.main import args, judge
from vlmrl.models import registry
from vlmrl.report import assemble, html, render
from vlmrl.run.phases import STOPPED
from vlmrl.run.progress import SILENT, Display
from vlmrl.types import Example

# The tiny model's own sizes first; then those of published models and long prompts.
BUCKETS = policies.BUCKETS._replace(
    prefix=(*policies.BUCKETS.prefix, 256, 512, 1024, 1536, 2048, 4096, 8192),
    branch=(*policies.BUCKETS.branch, 128, 256, 512, 1024, 2048),
    images=(1, 2, 4),
    windows=(*policies.BUCKETS.windows, 16, 36, 64, 100, 144, 256, 400, 1024),
)
SPEED = ("batch", "slots", "gather")  # of a kernel: what changes no number
PICTURED = 600  # examples of a set whose images are kept for the page
IMAGE_TOKENS, TEXT_TOKENS = 1000, 250  # assumed of an example in estimates


class Job(NamedTuple):
    """One thing to do. `about` is what decides its result, as JSON-ready data."""

    kind: str  # 'evaluate', 'train', 'judge' or 'ask'
    name: str
    about: dict
    folder: Path  # of what it leaves

    @property
    def files(self) -> list[Path]:
        """Its record files, those that are there."""
        if self.kind == "train":
            return sorted(self.folder.glob("seed-*/records/*.parquet"))
        path = self.folder / f"{self.stem}.parquet"
        return [path] if path.is_file() else []

    @property
    def stem(self) -> str:
        digest = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode())
        safe = "".join(ch if ch.isalnum() or ch in "-." else "_" for ch in self.name)
        return f"{safe}-{digest.hexdigest()[:10]}"

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do; `recorded` is enough for tables."""
        if self.kind == "train":
            models = list(self.folder.glob("seed-*/model"))
            return len(models) >= self.about["seeds"]
        return self.recorded

    @property
    def recorded(self) -> bool:
        if self.kind == "train":
            last = f"seed-*/records/step-{self.about['steps']:06d}.parquet"
            return len(list(self.folder.glob(last))) >= self.about["seeds"]
        if self.kind == "judge":
            return (self.folder / "verdicts.jsonl").is_file()
        return bool(self.files)


# -- planning --------------------------------------------------------------------------


def plan(c: dict, workdir: Path) -> list[Job]:
    """The jobs of a study's config, in the order they run."""
    return KINDS[c["kind"]](c, workdir)


def _evaluations(c: dict, workdir: Path, kind: str = "evaluate") -> list[Job]:
    jobs = []
    for model in c["models"]:
        for part in c["sets"]:
            about = {
                **{k: model[k] for k in model if k != "name"},
                **part,
                "recipe": model["name"],
                "conditions": list(c["conditions"]),
                "images": list(c["images"]),
                "seed": c["seed"],
                "kernel": {k: v for k, v in c["kernel"].items() if k not in SPEED},
            }
            if kind == "ask":
                about |= {"prefill": c["prefill"], "url": c["url"]}
            name = f"{model['name']} on {part['source']} {part['split']}"
            jobs.append(Job(kind, name, about, workdir / "records"))
    return jobs


def _trainings(c: dict, workdir: Path) -> list[Job]:
    small = c["models"] and c["models"][0]["model"] == "tiny"
    out = []
    for name in c["recipes"]:
        words = ["runlocal"] * small + [f"name={name}", f"seeds={c['seeds']}"]
        config = f"{c['recipe_file']}:{','.join(words)}"
        steps = args.load_config(config).steps
        about = {"config": config, "seeds": c["seeds"], "steps": steps}
        out.append(Job("train", f"recipe {name}", about, workdir / "train" / name))
    return out


def _judgements(c: dict, workdir: Path) -> list[Job]:
    """The evaluations, then every judge on each of them."""
    jobs = _evaluations(c, workdir)
    out = list(jobs)
    for job in jobs:
        for name in c["judges"]:
            safe = name.replace("/", "_").replace(":", "-")
            about = {
                "on": str(job.folder / f"{job.stem}.parquet"),
                "judge": name,
                "url": c["url"],
                "brief": c["brief"],
            }
            folder = workdir / "judges" / f"{job.stem}-{safe}"
            out.append(Job("judge", f"judge {name} of {job.name}", about, folder))
    return out


def _questions(c: dict, workdir: Path) -> list[Job]:
    """Served models; in small the tiny model, which is not behind an API, is read by
    the evaluation of every other study."""
    local = all(m["model"] == "tiny" for m in c["models"])
    return _evaluations(c, workdir, "evaluate" if local else "ask")


KINDS: dict[str, Callable[[dict, Path], list[Job]]] = {
    "evaluate": _evaluations,
    "train": _trainings,
    "judge": _judgements,
    "ask": _questions,
}


def missing(jobs: Sequence[Job], c: dict, workdir: Path) -> list[str]:
    """What isn't there and is needed by a job that isn't done: one line each, with the
    command that gets it."""
    lines: list[str] = []
    for job in jobs:
        if job.done:
            continue
        if job.kind == "evaluate":
            lines += _no_model(job.about["model"])
        if job.kind == "train":
            settings = args.load_config(job.about["config"]).to_dict()
            lines += _no_model(settings["model"])
            source = settings["data"]["source"]
            for part in (settings["data"], settings["eval"]):
                for name in loader.names_of(part["source"] or source):
                    lines += _no_set(name, part["split"], job.folder / "data")
        if job.kind in ("evaluate", "ask"):
            about = job.about
            lines += _no_set(about["source"], about["split"], workdir / "data")
        if job.kind == "ask":
            lines += _no_key(job.about["url"], c["key_env"])
        if job.kind == "judge":
            lines += _no_judge(job.about)
    return list(dict.fromkeys(lines))


def _no_model(name: str) -> list[str]:
    if name == "tiny" or Path(name).is_dir():
        return []
    if (hub := registry.hub_id(name)) is None:
        return [f"model {name}: no such directory; a hub id is written 'org/name'"]
    repo, revision = hub
    import huggingface_hub

    held = huggingface_hub.try_to_load_from_cache(
        repo, "config.json", revision=revision
    )
    if isinstance(held, str) and any(Path(held).parent.glob("*.safetensors")):
        return []
    word = f" --revision {revision}" if revision else ""
    return [f"model {name}: hf download {repo}{word}"]


def _no_set(source: str, split: str, data_dir: Path) -> list[str]:
    if source in loader.SOURCES or split in loader.splits_of(source, data_dir):
        return []
    get = f"vlmrl data prepare {source}"
    if source not in SETS:
        get += " --source=DIR"
    return [f"set {source}: {get}"]  # which prepares all its splits


def _no_key(url: str, variable: str) -> list[str]:
    if not variable or os.environ.get(variable):
        return []
    return [f"key of {url}: export {variable}=..."]


def _no_judge(about: dict) -> list[str]:
    kind, _, name = about["judge"].partition(":")
    if kind == "model":
        return _no_model(name)
    if kind == "http" and not _answers(about["url"]):
        return [f"judge {name} at {about['url']}: vllm serve {name}"]
    return []


def _answers(url: str) -> bool:
    """Whether an endpoint lists its models."""
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/models", timeout=5) as reply:
            return reply.status == 200
    except urllib.error.HTTPError:
        return True  # it is there, and wants a key
    except (OSError, ValueError):
        return False


# -- estimates -------------------------------------------------------------------------


class Estimate(NamedTuple):
    seconds: float
    memory: float  # bytes per device


def estimate(job: Job, c: dict) -> Estimate | None:
    """Of an evaluation: prompts at the device's sustained FLOP/s, decoding at its
    memory bandwidth, once per batch and token; weights in bfloat16, cut over the mesh's
    tensor axis and gathered over fsdp, and a third besides. None for a job it can't
    tell."""
    if job.kind != "evaluate" or (size := _parameters(job.about["model"])) is None:
        return None
    about, kernel = job.about, job.about["kernel"]
    device, mesh = c["device"], c["mesh"]
    examples = about["size"] or _examples(about["source"], about["split"]) or 1000
    conditions = len(about["conditions"]) * (1 + len(about["images"]))
    branches = conditions * kernel["samples"]
    read = IMAGE_TOKENS * (1 + len(about["images"])) + TEXT_TOKENS * conditions
    flops = 2.0 * size * examples * (read + branches * about["max_tokens"] / 2)
    passes = math.ceil(examples / 16) * about["max_tokens"] * 0.6
    seconds = flops / (device["flops"] * device["count"])
    seconds += passes * 2 * size / (device["bandwidth"] * device["count"])
    shares = [n if n > 0 else device["count"] for n in (mesh["fsdp"], mesh["tensor"])]
    copies = 1 + 1 / shares[0] if shares[0] > 1 else 1
    return Estimate(seconds, copies * 2 * size * 1.33 / shares[1])


def _parameters(name: str) -> int | None:
    known = registry.published()
    if name in known and not Path(name).is_dir():
        return registry.build_model(known[name], name)[1].size
    if name == "tiny" or Path(name).is_dir():
        return registry.read_model(name).size
    return 8_300_000_000  # of the 7B models here, tuned from one base


def _examples(source: str, split: str) -> int | None:
    if split in loader.splits_of(source, loader.ROOT):
        return len(loader.examples_of(source, split, 0, loader.ROOT))
    return SETS[source].splits.get(split) if source in SETS else None


def told(jobs: Sequence[Job], c: dict) -> str:
    """The plan in words."""
    left = [job for job in jobs if not job.done]
    lines = [f"{c['title']}: {len(jobs)} jobs, {len(jobs) - len(left)} done"]
    total, most = 0.0, 0.0
    for job in left:
        found = estimate(job, c)
        about = ""
        if found is not None:
            total, most = total + found.seconds, max(most, found.memory)
            about = f"  about {_time(found.seconds)}"
        lines.append(f"  {job.kind:9}{job.name}{about}")
    if total:
        device = c["device"]
        lines.append(
            f"  in all about {_time(total)} and {most / 1e9:.1f} GB of weights per "
            f"device, on {device['count']} device(s) of {device['flops']:.0e} FLOP/s "
            "(config.device); without what has no estimate"
        )
        if most > device["memory"]:
            lines.append(
                f"  that is more than the {device['memory'] / 1e9:.0f} GB of a device "
                "(config.device.memory): raise config.mesh.tensor"
            )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


# -- doing -----------------------------------------------------------------------------


def run(jobs: Sequence[Job], c: dict, workdir: Path, display: Display = SILENT) -> int:
    """Does what isn't done; the exit status, not 0 where a training was stopped. Jobs
    of one model follow each other, so it is loaded once; how long each took goes into
    WORKDIR/jobs.jsonl."""
    held: dict[str, policies.Policy] = {}
    (workdir / "records").mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if job.done:
            continue
        began = time.monotonic()
        if job.kind == "evaluate":
            _evaluate(job, c, workdir, held, display)
        elif job.kind == "ask":
            _ask(job, c, workdir, display)
        elif job.kind == "train":
            config = args.load_config(job.about["config"]).to_dict()
            job.folder.mkdir(parents=True, exist_ok=True)
            seeds.check(config, job.folder)
            if not seeds.train(config, job.folder, display=display):
                return STOPPED
        else:
            _judge(job)
        expected = estimate(job, c)
        line = {
            "job": job.name,
            "seconds": round(time.monotonic() - began, 1),
            "estimated": None if expected is None else round(expected.seconds, 1),
        }
        with open(workdir / "jobs.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return 0


def _evaluate(job: Job, c: dict, workdir: Path, held: dict, display: Display) -> None:
    about = job.about
    key = about["model"]
    if key not in held:
        held.clear()  # one model's weights at a time
        mesh = sharding.make_mesh(**c["mesh"])
        held[key] = policies.load(
            key, style=about["style"], dtype="", buckets=BUCKETS, mesh=mesh
        )
    policy = held[key]._replace(style=about["style"])
    examples = _load(about, workdir)
    speed = {k: c["kernel"][k] for k in SPEED if k in c["kernel"]}
    speed["batch"] = min(speed["batch"], len(examples))
    settings = EvalSettings(
        temperature=about["temperature"],
        max_tokens=about["max_tokens"],
        options=max(OPTIONS, 1 + max(len(e.options) for e in examples)),
        **about["kernel"],
        **speed,
    )
    evaluator = Evaluator(policy, about["conditions"], settings)
    parts = [
        EvalPart(evaluator, [_under(e, image, about["seed"]) for e in examples], image)
        for image in ("", *about["images"])
    ]
    labels = RunLabels(about["recipe"], about["seed"], split=about["split"])
    with display.bar(job.name, len(parts) * len(examples)) as advance:
        path = job.folder / f"{job.stem}.parquet"
        write_records(path, parts, policy.params, labels, advance)


def _under(example: Example, image: str, seed: int) -> Example:
    """The example under an image perturbation, its condition still base."""
    if not image:
        return example
    return distort.distort(example, image, seed)._replace(condition=example.condition)


def _load(about: dict, workdir: Path) -> list[Example]:
    """The examples of a job; images and perturbations are kept for the release."""
    examples = load_examples(
        about["source"], about["split"], about["size"], workdir / "data"
    )
    seen = html.spread({f"{e.source}/{e.id}": e.task for e in examples}, PICTURED)
    shown = [e for e in examples if f"{e.source}/{e.id}" in seen and e.images]
    small = [
        e._replace(images=(html.small(e.images[0], f"{e.source}/{e.id}"),))
        for e in shown
    ]
    assemble.write_images(workdir, small)
    path = workdir / "perturbations" / f"{about['source']}-{about['split']}.jsonl"
    path.parent.mkdir(exist_ok=True)
    release(path, examples, about["conditions"])
    return examples


def release(path: Path, examples: Sequence[Example], conditions: Sequence[str]) -> None:
    """Writes what conditions make of examples, one line of JSON per example: the
    statements by option (`data.texts`) and, by condition, caption, prefill and added
    option. Whoever has the benchmark has the perturbed benchmark with it."""

    def changes(e: Example) -> dict:
        return {
            "caption": e.caption,
            "prefill": e.prefill,
            "direct": e.direct,
            "options": list(e.options) if e.abstain >= 0 else None,
        }

    lines = (
        {
            "source": e.source,
            "example": e.id,
            "answer": e.answer,
            "suggested": e.suggested,
            "conditions": {n: changes(perturb.apply(e, n)) for n in conditions},
            "texts": texts.entry(e),
        }
        for e in examples
    )
    atomic_write(path, json_lines(lines))


def _ask(job: Job, c: dict, workdir: Path, display: Display) -> None:
    about = job.about
    endpoint = http.Endpoint(about["url"], about["model"], key_env=c["key_env"])
    examples = _load(about, workdir)
    cache = workdir / "records" / f"{job.stem}.replies.jsonl"
    total = len(examples) * len(about["conditions"])
    with (
        http.Client(endpoint, cache=cache) as client,
        display.bar(job.name, total) as advance,
    ):
        found = served.evaluate(
            client,
            examples,
            about["conditions"],
            served.ServedSettings(
                style=about["style"],
                prefill=about["prefill"],
                temperature=about["temperature"],
                max_tokens=about["max_tokens"],
            ),
            labels=RunLabels(about["recipe"], split=about["split"]),
            progress=advance,
        )
    records.write(job.folder / f"{job.stem}.parquet", found)


def _judge(job: Job) -> None:
    """The judge's own command on a run that holds the records."""
    on = job.folder / "on"
    on.mkdir(parents=True, exist_ok=True)
    records.write(on / "records.parquet", records.read(job.about["on"]))
    words = [f"--on={on}", f"--judge={job.about['judge']}", f"--workdir={job.folder}"]
    if job.about["judge"].startswith("http:"):
        words.append(f"--url={job.about['url']}")
    if job.about["brief"] and job.about["judge"].startswith("model:"):
        words.append("--brief")
    judge.main(words)


def extra_tables(jobs: Sequence[Job], workdir: Path) -> list[render.Table]:
    """Tables that need more than records: the agreement of judges, from verdicts."""
    by_set: dict[str, list[Path]] = {}
    for job in jobs:
        if job.kind == "judge":
            by_set.setdefault(job.about["on"], []).append(job.folder)
    made = []
    for number, folders in enumerate(by_set.values()):
        where = workdir / "judges" / f"agreement-{number}"
        where.mkdir(parents=True, exist_ok=True)
        judge.main(["agree", *map(str, folders), f"--workdir={where}"])
        found = json.loads((where / "agreement.json").read_text())["tables"]
        for one in found:
            rows = [tuple(_cell(v) for v in row) for row in one["rows"]]
            columns = tuple(tuple(column) for column in one["columns"])
            title = f"{one['title']}: {jobs[number].name}"
            name = f"{one['name']}-{number}"
            made.append(render.Table(name, title, one["note"], columns, rows))
    return made


def _cell(value):
    if isinstance(value, list):
        return tuple(np.nan if v is None else v for v in value)
    return value
