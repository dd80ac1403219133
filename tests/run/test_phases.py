"""Time by phase, stops at safe points, and the watchdog."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from vlmrl.run import phases
from vlmrl.run.phases import Phases, Stopped, Watchdog


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def spend(self, seconds):
        self.seconds += seconds


def test_every_second_belongs_to_one_phase():
    clock = Clock()
    run = Phases(agree=bool, now=clock)
    clock.spend(2)
    for step in (1, 2):
        for name, seconds in (("data", 1), ("rollout", 5), ("update", 3)):
            run(name, step)
            clock.spend(seconds)
        row = run.row()
        assert row.pop("host_gib") > 0
        start = {"seconds/start": 2.0} if step == 1 else {}
        assert row == {
            "seconds": 9.0 + sum(start.values()),
            **start,
            "seconds/data": 1.0,
            "seconds/rollout": 5.0,
            "seconds/update": 3.0,
        }
    actual = run.summary()
    assert actual["wall"] == 20 == sum(actual["phases"].values())
    assert actual["longest"] == {"seconds": 5.0, "phase": "rollout"}
    with pytest.raises(KeyError, match="phase 'lunch' is none of start, data"):
        run("lunch")


def test_compiling_is_booked_apart_and_the_sum_stays():
    run = Phases()
    with run.watched():
        run("rollout")
        jax.jit(lambda x: jnp.cos(x) @ x + os.getpid())(jnp.ones((7, 7)))
        run("update")
        time.sleep(0.2)
    actual = run.summary()
    assert actual["phases"]["compile"] > 0
    assert actual["phases"]["rollout"] >= 0
    assert 0.2 <= actual["phases"]["update"] < 0.4 + actual["wall"] / 2
    assert sum(actual["phases"].values()) == pytest.approx(actual["wall"], rel=0.01)


def test_a_stop_waits_for_the_next_safe_point():
    run = Phases(agree=bool)
    before = signal.getsignal(signal.SIGTERM)
    with run.watched():
        run("rollout", 3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.asked and run.name == "rollout"
        run.switch("log")  # no safe point
        with pytest.raises(Stopped, match="reward"):
            run("reward")
        run.switch("checkpoint")  # the stop itself is not stopped
    assert signal.getsignal(signal.SIGTERM) == before


def test_hosts_stop_where_any_was_asked():
    asked = iter([False, True])
    run = Phases(agree=lambda mine: next(asked))  # another host was, not this one
    run("data")
    with pytest.raises(Stopped):
        run("rollout")


def test_the_watchdog_names_phase_and_host(tmp_path, capfd):
    ended = []
    run = Phases(agree=bool)
    run("data", 5)
    other = {"host": "host 1 of 2 (b)", "step": 4, "phase": "reward", "calls": 0}
    (tmp_path / "host-1.json").write_text(json.dumps(other))
    dog = Watchdog(run, tmp_path, 0.2, exit=ended.append)
    dog.start()
    dog._thread.join(10)
    assert ended == [phases.STUCK]
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith(f"vlmrl: stuck: {os.uname().nodename} is in phase data of ")
    assert "step 5 for 0 s (--stuck_after 0.2); furthest behind is host 1 of 2" in last
    assert last.endswith("in phase reward of step 4")
    beat = json.loads((tmp_path / "host-0.json").read_text())
    assert (beat["phase"], beat["step"], beat["calls"]) == ("data", 5, 1)


def test_a_run_that_moves_is_left_alone(tmp_path):
    ended = []
    run = Phases(agree=bool)
    folder = tmp_path / "hosts"
    dog = Watchdog(run, folder, 0.4, exit=ended.append)
    dog.start()
    for _ in range(10):
        run("data")
        time.sleep(0.1)
    dog.stop()
    assert ended == [] and not folder.exists()


HANGS = """
import time
from vlmrl.run.phases import Phases
run = Phases()
with run.watched(None, 1.0):
    run("data", 7)
    time.sleep(600)
"""


def test_a_worker_that_hangs_dies_loudly():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == phases.STUCK and time.monotonic() - began < 250
    assert "phase data of step 7" in done.stderr.splitlines()[-1]
    assert "time.sleep" in done.stderr or "<string>" in done.stderr  # where it hung
