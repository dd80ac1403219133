"""Models by name: names → directories, config.json → family.

A model is named by 'tiny' or 'tiny_judge', which ship with the project, a directory, a
hub id ('org/name', 'org/name@revision'), or a directory with checkpoints/ (a run of
this package, or what `vlmrl convert` makes).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from vlmrl.models import files, internvl, qwen2_5_vl, qwen3_vl, text
from vlmrl.models.api import Model
from vlmrl.types import UserError

# model_type → function of (parsed config.json, its name in errors)
FAMILIES = {
    qwen2_5_vl.FAMILY: qwen2_5_vl.model,
    qwen3_vl.FAMILY: qwen3_vl.model,
    internvl.FAMILY: internvl.model,
    **dict.fromkeys(text.FAMILIES, text.model),
}
TINY = Path(__file__).parents[1] / "tiny" / "model"  # ships with the project
SHIPPED = {"tiny": TINY, "tiny_judge": TINY.with_name("judge")}
FACTS = Path(__file__).parent / "facts"
CHECKPOINTS = "checkpoints"  # where a directory holds parameters in Orbax's format
# What a model directory holds beside weights; copied on export.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def resolve(name: str | os.PathLike) -> Path:
    """Return the directory with a model's config.json and tokenizer; for a run of this
    package, that of the model it started from.

    Raises:
      UserError: there is no such directory, or no config.json in it.
    """
    path = directory(name, weights=False)
    return _start_model(path) if (path / CHECKPOINTS).is_dir() else path


def has_weights(name: str | os.PathLike) -> bool:
    """Return whether a model has weights, in whatever format; a config and a tokenizer
    may stand alone."""
    path = directory(name, weights=True)
    return (path / CHECKPOINTS).is_dir() or files.has_weights(path)


def read_model(name: str | os.PathLike) -> Model:
    """Return the `api.Model` of a checkpoint's config.json."""
    path = resolve(name) / "config.json"
    return build_model(files.read_json(path), str(path))


def hub_id(name: str | os.PathLike) -> tuple[str, str | None] | None:
    """Return (repository, revision) of 'org/name' or 'org/name@revision'; None for any
    other name."""
    hub = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", str(name))
    return hub and (hub[1], hub[2])


def directory(name: str | os.PathLike, weights: bool) -> Path:
    """Return a model's directory; from the hub, with its weights or without.

    Raises:
      UserError: there is none, or it has no config.json.
    """
    path = SHIPPED.get(str(name)) or Path(name).expanduser()
    if not path.is_dir() and (hub := hub_id(name)):
        path = _download(*hub, weights)
    if not path.is_dir():
        raise UserError(
            f"model '{name}': no such directory (or use 'tiny', or a hub id 'org/name')"
        )
    if not (path / "config.json").is_file() and not (path / CHECKPOINTS).is_dir():
        raise UserError(f"model '{name}': {path} holds no config.json")
    return path


def _download(repo: str, revision: str | None, weights: bool) -> Path:
    """Return huggingface_hub's cache of a hub id: its side files, and with `weights`
    its safetensors too."""
    import huggingface_hub

    patterns = [*SIDE_FILES, *(["*.safetensors", files.INDEX] if weights else [])]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=patterns
            )
        )
    except Exception as e:  # its errors have no common class, and many lines
        reason = " ".join(str(e).split())[:300] or type(e).__name__
        raise UserError(
            f"model '{repo}': no such directory, and not from the hub: {reason}"
        ) from e


def _start_model(run: Path) -> Path:
    """Return the directory of the model a run started from: its config.json and
    tokenizer are those of every checkpoint of the run."""
    if (run / "start").is_dir():  # a supervised run from random weights wrote its own
        return resolve(run / "start")
    for directory in (run, *run.absolute().parents[:2]):
        path = directory / "config.json"
        config = files.read_json(path) if path.is_file() else {}
        if "model_type" in config and directory == run:
            return run  # parameters that were converted, with their side files
        if config.get("model"):
            return resolve(config["model"])
    raise UserError(
        f"{run}: no config.json here or above names the model that the run started from"
    )


def build_model(raw: dict, where: str) -> Model:
    """Return the `api.Model` of a parsed config.json; `where` names it in errors."""
    kind = str(raw.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(
            f"{where}: model_type '{kind}' is not supported; "
            "supported: " + ", ".join(sorted(FAMILIES))
        )
    return FAMILIES[kind](raw, where)


def published() -> dict[str, dict]:
    """Return hub id → the fields of its config.json that shape the model, of models
    that are known without the hub (`facts/*.json`)."""

    def override(base, top):
        return base | {
            key: override(base[key], value)
            if isinstance(value, dict) and key in base
            else value
            for key, value in top.items()
        }

    facts = [json.loads(path.read_text()) for path in sorted(FACTS.glob("*.json"))]
    return {
        name: override(family["shared"], own)
        for family in facts
        for name, own in family["models"].items()
    }
