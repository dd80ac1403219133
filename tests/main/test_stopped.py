"""A run that is stopped or killed in any phase, and started again, ends as one that
never was: to the bit, no example skipped and none twice.

As a script, `python tests/main/test_stopped.py DIRECTORY`, this file makes the runs:
every start is a process of its own, forked before threads exist, that sends itself a
signal at its place. SIGTERM comes where a phase begins, SIGKILL where it ends, its work
done and lost; in `checkpoint` while the step is being written. A chain goes on from
what the one before it left.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
TERM, KILL, STOPPED = int(signal.SIGTERM), int(signal.SIGKILL), 75
STEPS, PROMPTS = 8, 4

# Every phase once by each signal: (phase, step). 'compile': the first program of a
# start. Killed runs go on from the newest of steps 2, 4, 6; stopped ones from where
# they were.
ASKED = (
    ("compile", 1),
    ("rollout", 2),
    ("reward", 2),
    ("checkpoint", 2),
    ("score", 3),
    ("update", 4),
    ("eval", 4),
)
KILLED = (
    ("compile", 1),
    ("rollout", 1),
    ("reward", 1),
    ("score", 2),
    ("checkpoint", 2),
    ("update", 3),
    ("eval", 4),
)
RANDOM = 3  # and killed so often at a random change of phase
PAIR = (("asked", "rollout", 2), ("killed", "update", 4))  # of two, the second one

CONFIG = "configs/tiny/both.py:runlocal"
FIELDS = {
    "steps": STEPS,
    "prompts": PROMPTS,
    "group_size": 4,
    "max_tokens": 16,
    "unroll": False,
    "save_rollouts": 1,
    "save_every": 2,
    "loss.kl_weight": 0.01,
    "loss.entropy_weight": 0.01,
    "data.size": STEPS * PROMPTS,
    "eval.size": 4,
    "eval.every": 4,
    "eval.conditions": ("base", "wrong_think"),
    "eval.max_tokens": 16,
}


# -- one start -------------------------------------------------------------------------


def arm(how: str, phase: str, step: int) -> None:
    """Has this process sent a signal at its place; 'any' is the step-th change of
    phase."""
    import jax

    from vlmrl import checkpoint
    from vlmrl.phases import Phases

    number = TERM if how == "asked" else KILL
    at: list[Phases] = []
    plain, save = Phases.switch, checkpoint.save

    def fire(here: bool) -> None:
        nonlocal number
        if here and number:
            number, sent = 0, number
            os.kill(os.getpid(), sent)

    def switch(self, name, now=None):
        at[:] = [self]
        if phase == "any":
            fire(self.calls == step)
        elif how == "killed" and phase != "checkpoint":
            fire((self.name, self.step) == (phase, step))
        plain(self, name, now)
        fire(how == "asked" and (self.name, self.step) == (phase, step))

    def saved(directory, now, *state, **options):
        wait = save(directory, now, *state, **options)
        fire(how == "killed" and (phase, step) == ("checkpoint", now))
        return wait

    def heard(event, seconds, **_):
        compiled = phase == "compile" and event.endswith("backend_compile_duration")
        fire(bool(compiled and at and at[0].name == "rollout"))

    Phases.switch, checkpoint.save = switch, saved
    jax.monitoring.register_event_duration_secs_listener(heard)


def begin(workdir: Path, words: list[str], fault: tuple | None, log: Path) -> int:
    """Starts a run as from a shell; returns its process id."""
    if child := os.fork():
        return child
    status, before = 1, set(sys.modules)
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from vlmrl.main import cli

        if fault:
            arm(*fault)
        fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        run = ["train", "--config", CONFIG, "--workdir", str(workdir)]
        status = cli.main([*run, *fields, *words])
        imported = sorted(set(sys.modules) - before)
        log.with_suffix(".modules").write_text(json.dumps(imported))
    finally:
        sys.stdout.flush()
        os._exit(status)


def end(process: int, patience: float = 0.0) -> int:
    """Exit status, or minus the signal; with patience it is killed after so long, as a
    launcher does with what a dead process left."""
    until = time.monotonic() + patience
    while patience and time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    if patience:
        os.kill(process, KILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def chain(top: Path, name: str, faults) -> list[int]:
    """Exit statuses of starts in one run directory, the last one undisturbed."""
    logs = (top / f"{name}-{i}.log" for i in range(len(faults) + 1))
    return [
        end(begin(top / name, [], fault, log))
        for fault, log in zip([*faults, None], logs, strict=True)
    ]


def pair(top: Path, name: str, faults) -> list[list[int]]:
    """The same with two processes that are one run; the second gets the signal."""
    found = []
    for i, fault in enumerate([*faults, None]):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        joined = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
        both = [
            begin(
                top / name,
                [*joined, "--process", str(p)],
                fault if p else None,
                top / f"{name}-{i}-{p}.log",
            )
            for p in range(2)
        ]
        second = end(both[1])
        found.append([end(both[0], 60.0 if second == -KILL else 0.0), second])
    return found


def main(directory: str) -> None:
    import vlmrl.main.cli
    import vlmrl.main.train  # noqa: F401

    top, rng = Path(directory), np.random.default_rng(8)
    killed = [("killed", *at) for at in KILLED]
    killed += [("killed", "any", int(rng.integers(3, 20))) for _ in range(RANDOM)]
    found = {"straight": chain(top, "straight", [])}
    for module in json.loads((top / "straight-0.modules").read_text()):
        with contextlib.suppress(ImportError):  # once for all that follow
            importlib.import_module(module)
    found["asked"] = chain(top, "asked", [("asked", *at) for at in ASKED])
    found["killed"] = chain(top, "killed", killed)
    found["pair"] = pair(top, "pair", [])
    found["pair-stopped"] = pair(top, "pair-stopped", PAIR)
    (top / "statuses.json").write_text(json.dumps(found))


# -- what is left ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(directory of all run directories, exit statuses of their starts)."""
    top = tmp_path_factory.mktemp("stopped")
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # 28 starts of one program
    }
    words = [sys.executable, __file__, str(top)]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return top, json.loads((top / "statuses.json").read_text())


def said(top: Path, name: str) -> str:
    return "\n".join(
        f"{p.name}: {p.read_text()[-1500:]}" for p in sorted(top.glob(f"{name}*.log"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("start, phase", list(enumerate(p for p, _ in ASKED)))
def test_sigterm_in_every_phase_ends_with_a_save(ran, start, phase):
    top, statuses = ran
    assert statuses["asked"][start] == STOPPED, said(top, f"asked-{start}")
    log = (top / f"asked-{start}.log").read_text()
    step = ASKED[start][1]
    assert f"of step {step}; the same command goes on" in log or (
        phase == "checkpoint" and f"phase data of step {step + 1};" in log
    )
    assert "longest section that a stop must wait for: " in log


@pytest.mark.slow
@pytest.mark.parametrize("start, phase", list(enumerate(p for p, _ in KILLED)))
def test_sigkill_in_every_phase(ran, start, phase):
    top, statuses = ran
    assert statuses["killed"][start] == -KILL, said(top, f"killed-{start}")


@pytest.mark.slow
def test_every_other_start_ended_as_it_should(ran):
    top, statuses = ran
    assert statuses["straight"] == [0], said(top, "straight")
    assert statuses["asked"][-1] == 0, said(top, "asked")
    assert statuses["killed"][len(KILLED) :] == [-KILL] * RANDOM + [0]
    assert statuses["pair"] == [[0, 0]], said(top, "pair")
    asked, killed, last = statuses["pair-stopped"]
    assert asked == [STOPPED, STOPPED], said(top, "pair-stopped-0")
    assert killed[1] == -KILL and killed[0] not in (0, STOPPED), killed
    assert last == [0, 0], said(top, "pair-stopped-2")


def files(seed: Path) -> dict[str, bytes]:
    """What is compared byte by byte."""
    names = ("model/*", "rollouts/*", "course.jsonl")
    return {
        str(p.relative_to(seed)): p.read_bytes()
        for name in names
        for p in seed.glob(name)
    }


def metrics_of(seed: Path) -> list[dict]:
    rows = map(json.loads, (seed / "metrics.jsonl").read_text().splitlines())
    times = ("seconds", "input_wait")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, one",
    [("asked", "straight"), ("killed", "straight"), ("pair-stopped", "pair")],
)
def test_it_ends_as_a_run_that_was_never_stopped(ran, name, one):
    from vlmrl import checkpoint
    from vlmrl.eval import records

    top, _ = ran
    found, wanted = (top / n / "seed-0" for n in (name, one))
    states = [checkpoint.restore(p / "checkpoints", STEPS)[0] for p in (found, wanted)]
    assert states[0].keys() == states[1].keys()
    for leaf in ("state/params/text.embed", "state/step", "position"):
        assert leaf in states[0]
    assert any("opt_state" in leaf for leaf in states[0])
    for leaf, value in states[1].items():
        np.testing.assert_array_equal(states[0][leaf], value, err_msg=leaf)
    assert metrics_of(found) == metrics_of(wanted)
    assert [row["step"] for row in metrics_of(found)] == list(range(1, STEPS + 1))
    assert files(found) == files(wanted)
    assert len(files(found)) > STEPS + 2
    for step in (4, 8):
        tables = [
            records.read(p / "records" / f"step-{step:06d}.parquet")
            for p in (found, wanted)
        ]
        assert tables[0].equals(tables[1]) and tables[0].num_rows == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["straight", "asked", "killed", "pair-stopped"])
def test_no_example_is_skipped_or_repeated(ran, name):
    """One epoch of data, in steps that were done over and over: each example once."""
    paths = sorted((ran[0] / name / "seed-0" / "rollouts").glob("*.parquet"))
    ids = [i for p in paths for i in pq.read_table(p)["example"].to_pylist()]
    assert len(ids) == STEPS * PROMPTS * FIELDS["group_size"]
    assert Counter(Counter(ids).values()) == {FIELDS["group_size"]: STEPS * PROMPTS}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(*sys.argv[1:])
