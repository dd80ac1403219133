"""The jobs of a study: what has to be measured or trained for it.

A job ends in record files; it is done when they are there. Evaluations are named by
what decides their numbers (model, style, decoding, set, conditions, image
perturbations, kernel), so studies that ask for the same one share it. What a job needs:
`missing.py`; how long it takes: `estimates.py`; doing it: `running.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vlmrl import perturb, shipped, user_code
from vlmrl.answers import reading
from vlmrl.data import distort, loader
from vlmrl.judges import named
from vlmrl.types import UserError

SPEED = ("batch", "slots", "gather_params")  # of a kernel: what changes no number


class Job(NamedTuple):
    """One unit of work; `about` is what decides its result, as JSON-ready data."""

    kind: str  # 'evaluate', 'train', 'judge' or 'ask'
    name: str
    about: dict
    folder: Path  # where its results go
    config: dict | None = None  # of a training run, as `about["config"]` reads

    @property
    def files(self) -> list[Path]:
        """Its record files that exist."""
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


def studies() -> list[str]:
    """Return the config files of the paper's studies."""
    files = sorted(shipped.locate("configs/paper").glob("*.py"))
    return [
        f"configs/paper/{file.name}"
        for file in files
        if "common.study(" in file.read_text(encoding="utf-8")
    ]


def plan(
    c: dict, workdir: Path, load_config: Callable[[str], dict] | None = None
) -> list[Job]:
    """Return the jobs of a study's config, in the order they run.

    Args:
      load_config: reads the config of a recipe, 'configs/x.py:arg'; for studies of kind
        'train' alone.
    Raises:
      UserError: an unknown kind.
    """
    if c["kind"] not in KINDS:
        kinds = ", ".join(KINDS)
        raise UserError(f"config.kind is '{c['kind']}', expected one of {kinds}")
    if c["kind"] == "train":
        return _trainings(c, workdir, load_config)
    return KINDS[c["kind"]](c, workdir)


def _evaluations(c: dict, workdir: Path, kind: str = "evaluate") -> list[Job]:
    jobs = []
    perturb.check(*c["conditions"])
    for image in c["images"]:
        distort.distortion_of(image)
    for model in c["models"]:
        if model.get("style"):
            reading.check(model["style"])
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
            if loader.is_procedural(part["source"]):
                loader.source_of(part["source"])
            if own := user_code.stamp(about):
                about["code"] = own
            if kind == "ask":
                about |= {"prefill": c["prefill"], "url": c["url"]}
            else:
                about["pixels"] = list(c["pixels"])
            name = f"{model['name']} on {part['source']} {part['split']}"
            jobs.append(Job(kind, name, about, workdir / "records"))
    return jobs


def _trainings(c: dict, workdir: Path, load_config) -> list[Job]:
    small = c["models"] and c["models"][0]["model"] == "tiny"
    out = []
    for name in c["recipes"]:
        words = ["runlocal"] * small + [f"name={name}", f"seeds={c['seeds']}"]
        words += ["rehearse", f"url={c['url']}"] if c.get("rehearse") else []
        path = f"{c['recipe_file']}:{','.join(words)}"
        config = load_config(path)
        about = {"config": path, "seeds": c["seeds"], "steps": config["steps"]}
        folder = workdir / "train" / name
        out.append(Job("train", f"recipe {name}", about, folder, config))
    return out


def _judgements(c: dict, workdir: Path) -> list[Job]:
    """Return the evaluations, then every judge on each of them."""
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
            if user_code.is_own(name):
                named.parse(name, field="config.judges")
                about["code"] = user_code.stamp(name)
            folder = workdir / "judges" / f"{job.stem}-{safe}"
            out.append(Job("judge", f"judge {name} of {job.name}", about, folder))
    return out


def _questions(c: dict, workdir: Path) -> list[Job]:
    """Return the evaluations of served models. At toy size the model is not behind an
    API, and the evaluation of every other study serves."""
    local = all(m["model"] == "tiny" for m in c["models"])
    return _evaluations(c, workdir, "evaluate" if local else "ask")


KINDS: dict[str, Callable[..., list[Job]]] = {
    "evaluate": _evaluations,
    "train": _trainings,
    "judge": _judgements,
    "ask": _questions,
}
