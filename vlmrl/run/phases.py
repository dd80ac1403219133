"""Phases of a run: time by phase, requests to stop, and a watchdog.

A run calls `phases("rollout")` where a phase begins. The call ends the phase before, so
that every second of the main thread belongs to exactly one phase and their sum is the
wall time. It is also a safe point: where any host was asked to stop (SIGTERM), it
raises `Stopped` on all hosts at the same call. What was computed since the last update
is given up; it would come out again, to the bit, from the state that is then saved.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from vlmrl.files import atomic_write
from vlmrl.run import hosts

PHASES = ("start", "data", "rollout", "reward", "score", "update", "eval",
          "checkpoint", "compile", "log")  # fmt: skip

# Exit statuses that launchers know (`launch/`): try the same command again.
STOPPED, STUCK = 75, 70  # EX_TEMPFAIL, EX_SOFTWARE of sysexits.h
STOPPED_LINE = "stopped on request after a pass; the same command goes on"

# Work of JAX on a program before it runs, one event each; the second includes reading
# a compiled program back from the cache.
_COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Stopped(Exception):
    """A stop that was asked for, at a safe point that all hosts have reached."""


class Phases:
    """The seconds of each phase and the present phase of a run.

    Args:
      agree: bool → bool, does any host say so (`hosts.agree`).
      now: a clock in seconds.
    """

    def __init__(
        self,
        agree: Callable[[bool], bool] = hosts.agree,
        now: Callable[[], float] = time.monotonic,
    ):
        self._agree, self._now = agree, now
        self.name, self.step, self.calls = "start", 0, 0
        self.began = self.since = now()
        self.asked = False
        self.longest = (0.0, "start")  # between two safe points: seconds, phase
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._reported = dict(self.seconds)

    def __call__(self, name: str, step: int | None = None) -> None:
        """End the phase before and begin `name`; raise Stopped if asked to stop."""
        self.switch(name, step)
        # A host that was asked may be ahead of the others: they find out together.
        if self._agree(self.asked):
            raise Stopped(name)

    def after(
        self, name: str, advance: Callable[[int], None], alone: bool = False
    ) -> Callable[[int], None]:
        """Return `advance` with a safe point of a phase behind it.

        Args:
          alone: of work that one host does: the others are not asked.
        """

        def both(n: int) -> None:
            advance(n)
            if not alone:
                self(name)
            elif self.asked:
                raise Stopped(name)

        return both

    def switch(self, name: str, step: int | None = None) -> None:
        """Enter a phase without a safe point, as while a stop is carried out."""
        if name not in self.seconds:
            raise KeyError(f"phase '{name}' is none of {', '.join(PHASES)}")
        now = self._now()
        spent = now - self.since
        self.seconds[self.name] += spent
        self.longest = max(self.longest, (spent, self.name))
        self.name, self.since = name, now
        self.step = self.step if step is None else step
        self.calls += 1

    def compiled(self, seconds: float) -> None:
        """Count seconds of the present phase as 'compile'."""
        self.seconds["compile"] += seconds
        self.seconds[self.name] -= seconds

    def ask(self, *_) -> None:
        """Ask for a stop; also a signal handler."""
        self.asked = True

    @property
    def wall(self) -> float:
        return self._now() - self.began

    def row(self) -> dict[str, float]:
        """Return seconds by phase since the last call, 'seconds' being their sum, and
        this host's peak memory; for a row of metrics."""
        self.switch(self.name)
        new = {p: s - self._reported[p] for p, s in self.seconds.items()}
        self._reported = dict(self.seconds)
        # Linux counts KiB. https://man7.org/linux/man-pages/man2/getrusage.2.html
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        row = {f"seconds/{p}": s for p, s in new.items() if s}
        return {"seconds": sum(new.values()), **row, "host_gib": peak}

    def summary(self) -> dict:
        """Return the times of the whole run so far."""
        self.switch(self.name)
        return {
            "wall": self.wall,
            "phases": dict(self.seconds),
            "longest": {"seconds": self.longest[0], "phase": self.longest[1]},
        }

    @contextlib.contextmanager
    def watched(
        self, folder: Path | None = None, stuck_after: float = 0.0
    ) -> Iterator[None]:
        """Watch a run within the context: SIGTERM asks for a stop, compilation is
        a phase, and a phase of over `stuck_after` seconds ends the process (0: never).

        Args:
          folder: of a file per host with its state, `host-0.json` and so on, from which
            the others see who is behind. Removed at an orderly end.
        """
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, self.ask) if main else None
        thread = threading.get_ident()

        def heard(event: str, seconds: float, **_):
            if event in _COMPILING and threading.get_ident() == thread:
                self.compiled(seconds)

        jax.monitoring.register_event_duration_secs_listener(heard)
        dog = Watchdog(self, folder, stuck_after)
        dog.start()
        try:
            yield
        finally:
            dog.stop()
            jax.monitoring.unregister_event_duration_listener(heard)
            if main:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Watchdog:
    """A thread that writes down its host's phase, and ends the process if a phase lasts
    too long."""

    def __init__(
        self,
        phases: Phases,
        folder: Path | None,
        stuck_after: float,
        every: float = 10.0,
        exit: Callable[[int], None] = os._exit,
    ):
        self._phases, self._folder, self._exit = phases, folder, exit
        self._limit = stuck_after
        self._every = min(every, stuck_after / 4) if stuck_after else every
        self._index, self._who = jax.process_index(), hosts.name()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watchdog")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        if self._folder is not None:
            (self._folder / f"host-{self._index}.json").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._folder.rmdir()  # by the last to leave

    def _run(self) -> None:
        while not self._done.wait(self._every):
            self._say()
            if self._limit and self._spent() > self._limit:
                self._end()
                return

    def _spent(self) -> float:
        return self._phases._now() - self._phases.since

    def _say(self) -> None:
        if self._folder is None:
            return
        p = self._phases
        beat = {
            "host": self._who,
            "step": p.step,
            "phase": p.name,
            "calls": p.calls,
            "seconds": round(self._spent(), 1),
            "time": time.time(),
        }
        with contextlib.suppress(OSError):  # a full disk is for the run to find out
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"host-{self._index}.json"
            atomic_write(path, json.dumps(beat) + "\n")

    def _end(self) -> None:
        faulthandler.dump_traceback(all_threads=True)
        p = self._phases
        line = (
            f"vlmrl: stuck: {self._who} is in phase {p.name} of step {p.step} for "
            f"{self._spent():.0f} s (--stuck_after {self._limit:g})"
        )
        behind = self._behind()
        if behind:
            line += f"; furthest behind is {behind}"
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
        self._exit(STUCK)

    def _behind(self) -> str:
        """Return the host that has begun the fewest phases, '' if all are equal."""
        beats = []
        for path in self._folder.glob("host-*.json") if self._folder else ():
            with contextlib.suppress(OSError, ValueError):
                beats.append(json.loads(path.read_text()))
        calls = [b["calls"] for b in beats]
        if len(set(calls)) < 2:
            return ""
        last = min(beats, key=lambda b: b["calls"])
        return f"{last['host']}, in phase {last['phase']} of step {last['step']}"
