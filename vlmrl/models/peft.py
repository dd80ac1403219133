"""LoRA adapters ⇄ directories in the format of peft
(https://github.com/huggingface/peft)."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import einops
import jax
import jax.numpy as jnp
import numpy as np

from vlmrl.models import files, hf, lora
from vlmrl.models.api import Model
from vlmrl.types import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SUPPORTED = {
    "peft_type": "LORA",
    "use_dora": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "lora_bias": False,
}


def save(
    directory: str | os.PathLike, model: Model, adapter: lora.Adapter, params, base: str
) -> Path:
    """Write the adapters as a directory that peft loads onto `base`, a model's path or
    hub id.

    Raises:
      UserError: the directory exists already.
    """
    rows = lora.rows(model, adapter)
    modules = {
        name.removeprefix(lora.ROOT).rpartition(".lora_")[0]
        for p in rows.values()
        for name in p.stored_names
    }
    config = SUPPORTED | {
        "task_type": None,
        "base_model_name_or_path": str(base),
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
    }
    with hf.new_directory(directory) as partial:
        files.write(partial / WEIGHTS, hf.pending_tensors(rows, params))
        if jax.process_index() == 0:
            (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return Path(directory)


def load(
    directory: str | os.PathLike, model: Model, params, dtype=jnp.float32
) -> tuple[lora.Adapter, dict]:
    """Return (Adapter, params with it) of a directory that peft or `save` wrote.

    Raises:
      UserError: a kind of adapter that is not supported, or tensors that do not belong
        to the model.
    """
    file, weights = Path(directory) / CONFIG, Path(directory) / WEIGHTS
    config = files.read_json(file)
    for field, value in SUPPORTED.items():
        if (config.get(field) or value) != value:
            raise UserError(
                f"{file}: field '{field}': expected {value!r}, got {config[field]!r}"
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UserError(
            f"{file}: fields 'r' and 'lora_alpha': expected numbers, got {rank!r} and "
            f"{alpha!r}"
        )
    if config.get("use_rslora"):  # scaled by alpha / √rank
        alpha *= math.sqrt(rank)

    def row_name(name: str) -> str:
        """The name that `lora.rows` has, whichever transformers peft ran on."""
        hub = model.hub_name(name.removeprefix(lora.ROOT))
        return lora.ROOT + model.module_name(hub)

    stored = {row_name(n): t for n, t in files.read_header(weights).items()}
    linear = lora.rows(model, lora.Adapter(rank, alpha, ("*",)))
    targets = dict.fromkeys(
        name[len(lora.PREFIX) : -len(".a")]
        for name, p in linear.items()
        if stored.keys() & set(p.stored_names)
    )
    if not targets:
        raise UserError(f"{weights}: holds no adapter of a {model.family} layer")
    adapter = lora.Adapter(rank, alpha, tuple(targets))
    rows = lora.rows(model, adapter)
    tensors = hf.match_tensors(weights, f"adapters of {model.family}", rows, stored)
    arrays = {}
    for name, p in rows.items():
        layers = [
            einops.rearrange(files.read(t), p.layout, **p.sizes) for t in tensors[name]
        ]
        arrays[name] = (np.stack(layers) if p.stacked else layers[0]).astype(dtype)
    return adapter, params | lora.put_like(params, rows, arrays)
