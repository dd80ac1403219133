"""Convert a model between formats, change its dtype, or merge an adapter into it.

The source is 'tiny', a directory in Hugging Face's format, a hub id (org/name), what
`vlmrl convert --format=orbax` made, or a run directory with checkpoints/:
WORKDIR/seed-N of `vlmrl train`, WORKDIR/RECIPE/seed-N of `vlmrl demo`, WORKDIR of a
supervised run.

The target holds config.json and the tokenizer, and the weights: as safetensors, which
transformers and vLLM load (hf), or below checkpoints/ in Orbax's format, which loads
fast onto many machines (orbax). `--adapter DIR` adds a LoRA adapter in peft's format to
the weights, in float32.

  vlmrl convert --source runs/a/seed-0 --target out
  vlmrl convert --source Qwen/Qwen2.5-VL-7B-Instruct --target out --format orbax
  vlmrl convert --source base --adapter adapter --target merged
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlmrl.main import args
from vlmrl.models import hf, lora, peft, registry, weights
from vlmrl.run import checkpoint
from vlmrl.types import UserError

HELP = "a model between formats and dtypes; adapters merged"
FLAGS = {
    "source": (None, "'tiny', a directory, a hub id, or a run with checkpoints/"),
    "target": (None, "directory to make; it must not exist"),
    "format": ("hf", "of the weights written: hf (safetensors) or orbax"),
    "dtype": ("", "of the weights written: float32 or bfloat16; as they are if unset"),
    "adapter": ("", "directory of a LoRA adapter, merged into the weights"),
    "step": (0, "checkpoint of a run to convert; 0 is its newest"),
}
FORMATS = ("hf", "orbax")


def main(argv):
    _, _, flags = args.parse(argv, FLAGS)
    for flag in ("source", "target"):
        if not getattr(flags, flag):
            raise UserError(f"--{flag}: must be given; see --help")
    for flag, known in (("dtype", weights.DTYPES), ("format", FORMATS)):
        value = getattr(flags, flag)
        if value not in (*known, FLAGS[flag][0]):
            raise UserError(f"--{flag}: expected {' or '.join(known)}, got '{value}'")
    print(convert(**{name: getattr(flags, name) for name in FLAGS}))


def convert(
    source: str,
    target: str,
    format: str = "hf",
    dtype: str = "",
    adapter: str = "",
    step: int = 0,
) -> Path:
    """Write the directory `target` and return it; arguments as in FLAGS.

    Raises:
      UserError: `source` is no model, has no such step, or holds other tensors than its
        config.json says; `target` exists or cannot be written.
    """
    if Path(target).exists():
        raise UserError(f"--target {target}: exists already; choose a new directory")
    checkpoints = registry.CHECKPOINTS
    if not (Path(source) / checkpoints).is_dir():
        runs = sorted(str(p.parent) for p in Path(source).glob(f"**/{checkpoints}"))
        if runs:
            raise UserError(
                f"--source {source}: holds runs; give one: {', '.join(runs)}"
            )
        if step:
            raise UserError(f"--step: {source} has no {checkpoints}/ to choose from")
    base = registry.resolve(source)
    model, params = weights.load(source, dtype=dtype or None, step=step)
    if adapter:
        params = lora.merge(model, *peft.load(adapter, model, params))
    # The dtype of most of the numbers: norms may be wider.
    dtype = dtype or np.dtype(max(params.values(), key=lambda x: x.size).dtype)
    plain = weights.run_meta(source, step).get("tags") == "plain"
    try:
        if format == "hf":
            return hf.save(target, model, params, base, dtype, plain_tags=plain)
        with hf.new_directory(target) as partial:
            hf.copy_side_files(base, partial, dtype, plain)
            checkpoint.save(partial / checkpoints, 0, {"params": params})()
        return Path(target)
    except OSError as error:
        raise UserError(f"--target {target}: {error.strerror or error}") from error
