"""Sample rollouts on disk: completions, the parameters that sampled them, rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmrl.files import atomic_write
from vlmrl.rl.rollouts import Sample
from vlmrl.types import UserError


def write(
    path: Path, samples: Sequence[Sample], advantages, *, step: int, lag: int, seed: int
) -> None:
    """Write the rollouts of one step as Parquet, whole or not at all.

    Args:
      samples: in branch order; advantages: float32[N, G] of them.
      step: of the update that learned from them; the parameters that sampled are
        those after update `weights_step` = step − 1 − lag.
    """
    count = np.asarray(advantages).shape[1]
    rows = [
        {
            "seed": seed,
            "step": step,
            "weights_step": step - 1 - lag,
            "example": s.example,
            "condition": s.condition,
            "sample": i % count,
            "prompt_hash": s.prompt_hash,
            "completion": s.text,
            "tokens": s.tokens,
            "stopped": s.stopped,
            "verdict": s.verdict,
            "reward": s.reward.total,
            "format": s.reward.format,
            "correct": s.reward.correct,
            "consistent": s.reward.consistent,
            "advantage": float(a),
            "terms": [{"name": k, "value": v} for k, v in s.terms.items()],
        }
        for i, (s, a) in enumerate(
            zip(samples, np.asarray(advantages).reshape(-1), strict=True)
        )
    ]
    table = pa.Table.from_pylist(rows, SCHEMA)
    try:
        atomic_write(path, lambda p: pq.write_table(table, p, compression="zstd"))
    except OSError as error:
        raise UserError(f"{path}: cannot write rollouts: {error.strerror}") from None


_TERM = pa.struct([("name", pa.string()), ("value", pa.float64())])
SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("weights_step", pa.int64()),
        ("example", pa.string()),
        ("condition", pa.string()),
        ("sample", pa.int64()),
        ("prompt_hash", pa.string()),
        ("completion", pa.string()),
        ("tokens", pa.int64()),
        ("stopped", pa.bool_()),
        ("verdict", pa.string()),
        ("reward", pa.float64()),
        ("format", pa.float64()),
        ("correct", pa.float64()),
        ("consistent", pa.float64()),
        ("advantage", pa.float64()),
        ("terms", pa.list_(_TERM)),
    ]
)
