"""What a study lacks on this machine: models, sets, keys and judges."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from vlmrl.data import loader
from vlmrl.data.sets import SETS
from vlmrl.models import registry
from vlmrl.studies.jobs import Job


def missing(jobs: Sequence[Job], c: dict, workdir: Path) -> list[str]:
    """Return what unfinished jobs need and is not there: a line for each thing, with
    the command that gets it."""
    lines: list[str] = []
    for job in jobs:
        if job.done:
            continue
        if job.kind == "evaluate":
            lines += _no_model(job.about["model"])
        if job.kind == "train":
            config = job.config or {}
            lines += _no_model(config["model"])
            source = config["data"]["source"]
            for part in (config["data"], config["eval"]):
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

    cached = huggingface_hub.try_to_load_from_cache(
        repo, "config.json", revision=revision
    )
    if isinstance(cached, str) and any(Path(cached).parent.glob("*.safetensors")):
        return []
    word = f" --revision {revision}" if revision else ""
    return [f"model {name}: hf download {repo}{word}"]


def _no_set(source: str, split: str, data_dir: Path) -> list[str]:
    if loader.is_procedural(source) or split in loader.splits_of(source, data_dir):
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
    if kind == "http" and not _responds(about["url"]):
        return [f"judge {name} at {about['url']}: vllm serve {name}"]
    return []


def _responds(url: str) -> bool:
    """Return whether an endpoint lists its models."""
    try:
        with urllib.request.urlopen(url.rstrip("/") + "/models", timeout=5) as reply:
            return reply.status == 200
    except urllib.error.HTTPError:
        return True  # it responds and asks for a key
    except (OSError, ValueError):
        return False
