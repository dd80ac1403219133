"""Sample rollouts on disk."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from vlmrl.rl import rollout_log
from vlmrl.rl.rewards import Reward
from vlmrl.rl.rollouts import Sample
from vlmrl.types import UserError

SAMPLES = [
    Sample("e0", "base", f"text {i}", Reward(1.1, 1, 1, None), None, "0ab", "", 3, True)
    for i in range(4)
]


def test_rows_say_which_weights_wrote_them(tmp_path):
    some = [*SAMPLES[:3], SAMPLES[3]._replace(terms={"evidence": 0.5}, verdict="x")]
    path = tmp_path / "step.parquet"
    rollout_log.write(path, some, np.arange(4.0).reshape(2, 2), step=7, lag=1, seed=2)
    rows = pq.read_table(path).to_pylist()
    assert [r["sample"] for r in rows] == [0, 1, 0, 1]
    assert {(r["step"], r["weights_step"], r["seed"]) for r in rows} == {(7, 5, 2)}
    assert [r["advantage"] for r in rows] == [0, 1, 2, 3]
    assert rows[0]["consistent"] is None and rows[0]["prompt_hash"] == "0ab"
    assert rows[3]["terms"] == [{"name": "evidence", "value": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["step.parquet"]


def test_a_place_that_cannot_be_written(tmp_path):
    path = tmp_path / "none" / "step.parquet"
    with pytest.raises(UserError, match="cannot write rollouts: .*No such file"):
        rollout_log.write(path, SAMPLES, np.zeros((2, 2)), step=1, lag=0, seed=0)
