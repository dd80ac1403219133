"""Print what a model is, without reading its weights: family, number of parameters,
memory by dtype, prompt style, and the number of chips it needs.

MODEL is 'tiny', a directory with a config.json, a run, or a hub id (org/name); those in
the list below are known without the hub.

The number of chips counts parameters and what training stores beside them, spread
evenly, and leaves a fifth of a chip's memory to activations and caches.

  inference      bfloat16: 2 bytes per parameter
  LoRA           base in bfloat16, 2 bytes; adapters with gradients and AdamW moments in
                 float32, 16 bytes per adapter parameter
  LoRA on int8   the same, linear layers of the base in 8 bits (config.quantize)
  full training  float32 parameters and gradients, AdamW moments: 16 bytes

  vlmrl inspect Qwen/Qwen2.5-VL-7B-Instruct
  vlmrl inspect runs/a/seed-0
"""

from __future__ import annotations

import math
from pathlib import Path

import jax

from vlmrl.main import args
from vlmrl.models import lora, quant, registry
from vlmrl.models.api import Model, linear
from vlmrl.types import UserError

HELP = "what a model is, its memory, and what fits where"
FLAGS = {
    "args": ("MODEL", "'tiny', a directory, a run, or a hub id"),
    "rank": (16, "of the LoRA adapters that are counted, on every linear text layer"),
}
GB = 1e9  # as vendors count
# Memory of a chip, GB: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and
# NVIDIA's data sheets.
CHIPS = {"v5e": 16, "v5p": 95, "v6e": 32, "A100": 80, "H100": 80, "H200": 141}
USED = 0.8  # share of a chip's memory that parameters and optimizer may take


def main(argv):
    _, _, other = args.parse(argv, FLAGS)
    if len(other.args) != 1:
        known = ", ".join(registry.published())
        raise UserError(f"vlmrl inspect takes one MODEL, as one of: {known}")
    if other.rank < 1:
        raise UserError(f"--rank: expected 1 or more, got {other.rank}")
    print(describe(other.args[0], other.rank))


def describe(name: str, rank: int = 16) -> str:
    """Return the text that the command prints."""
    known = registry.published()
    if name in known and not Path(name).is_dir():
        model = registry.build_model(known[name], name)
    else:
        model = registry.read_model(name)
    sizes = count(model)
    parts = "; ".join(f"{part} {n:,}" for part, n in sizes.items())
    added = adapters(model, rank)
    memory = ", ".join(f"{d} {_gb(n)}" for d, n in weights(model).items())
    lines = [
        name,
        f"family        {model.family}",
        f"parameters    {model.size:,} ({parts})",
        f"weights       {memory}",
        f"prompt style  {style(model)}",
        f"LoRA          {added:,} parameters at rank {rank} on linear text layers",
        "",
        f"{'chips needed':15}{'bytes':>10}"
        + "".join(f"{f'{c} {gb}':>10}" for c, gb in CHIPS.items()),
    ]
    for use, size in uses(model, added).items():
        cells = "".join(f"{chips(size, gb):>10}" for gb in CHIPS.values())
        lines.append(f"{use:15}{_gb(size):>10}{cells}")
    return "\n".join(lines)


def count(model: Model) -> dict[str, int]:
    """Return the number of parameters by part: vision (tower and merger, where there
    are any), text."""
    parts: dict[str, int] = {}
    for p in model.table.values():
        part = "vision" if p.role == "vision" else "text"
        parts[part] = parts.get(part, 0) + math.prod(p.shape)
    return parts


def weights(model: Model) -> dict[str, int]:
    """Return the bytes of the weights by dtype; int8 stores linear layers in 8 bits
    with float32 scales, the rest in bfloat16."""
    int8 = 0
    for p in model.table.values():
        leaves = jax.tree.leaves(quant.shapes_of(p)) if linear(p) else []
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
        int8 += size or 2 * math.prod(p.shape)
    return {"float32": 4 * model.size, "bfloat16": 2 * model.size, "int8": int8}


def adapters(model: Model, rank: int) -> int:
    """Return the number of parameters of adapters on every linear layer of the
    decoder."""
    rows = lora.rows(model, lora.Adapter(rank, rank))
    return sum(math.prod(p.shape) for p in rows.values())


def uses(model: Model, added: int) -> dict[str, int]:
    """Return bytes by use; see the module's docstring."""
    return {
        "inference": 2 * model.size,
        "LoRA": 2 * model.size + 16 * added,
        "LoRA on int8": weights(model)["int8"] + 16 * added,
        "full training": 16 * model.size,
    }


def chips(size: int, gb: float) -> int:
    """Return how many chips of `gb` GB store `size` bytes."""
    return max(1, math.ceil(size / (USED * gb * GB)))


def style(model: Model) -> str:
    """Return the default prompt style of a model."""
    return "tiny" if model.table["text.embed"].shape[0] <= 512 else "r1v"


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"
