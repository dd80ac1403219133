"""Judging beside other work: nothing waits past the set time, nothing is lost."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.judges.server import serve
from vlmrl.client.http import Client, Endpoint
from vlmrl.judges import chat, rule
from vlmrl.judges.async_judge import AsyncJudge
from vlmrl.judges.judge import Judge, JudgeItem, Verdict, ask, cascade
from vlmrl.types import UserError

ROOT = Path(__file__).resolve().parents[2]


def items(first, count):
    """Items that the scripted server can judge: thinks end in what they conclude."""
    options = ("left", "right")
    return [
        JudgeItem(f"i{k}", "Where?", options, f"Case {k} #{'AB'[k % 2]}", 0)
        for k in range(first, first + count)
    ]


def waiting(gate, began=None):
    """A judge that says 'consistent' once the gate is open."""

    def judge(asked):
        if began is not None:
            began.release()
        assert gate.wait(20)
        return [Verdict("consistent", 0, 1.0, "", "w") for _ in asked]

    return Judge("w", judge, {})


def test_parts_come_back_in_order_as_if_asked_at_once():
    parts = [items(0, 3), [], items(3, 4)]
    pending = AsyncJudge(rule.JUDGE, 5.0)
    for part in parts:
        pending.submit(part)
    actual = pending.collect()
    assert repr(actual.verdicts) == repr(ask(rule.JUDGE, [*parts[0], *parts[2]]))
    assert actual.late == 0 and actual.waited < 5
    assert pending.collect().verdicts == []


def test_it_works_while_other_work_goes_on():
    gate, began = threading.Event(), threading.Semaphore(0)
    pending = AsyncJudge(waiting(gate, began), 10.0)
    start = time.monotonic()
    pending.submit(items(0, 2))
    pending.submit(items(2, 2))
    assert time.monotonic() - start < 5
    assert began.acquire(timeout=5) and began.acquire(timeout=5)  # both at once
    gate.set()
    actual = pending.collect()
    assert [v.label for v in actual.verdicts] == ["consistent"] * 4 and actual.late == 0


def test_a_judge_that_hangs_costs_the_set_time_and_no_more():
    gate = threading.Event()
    pending = AsyncJudge(waiting(gate), 0.2, most=2)
    empty, excused = (
        items(0, 1)[0]._replace(think=""),
        items(0, 1)[0]._replace(applicable=False),
    )
    try:
        pending.submit([*items(0, 2), empty, excused])
        start = time.monotonic()
        actual = pending.collect()
        assert time.monotonic() - start < 10 and actual.waited >= 0.2
        assert [v.label for v in actual.verdicts] == ["undecided"] * 3 + [
            "not_applicable"
        ]
        assert [v.reason for v in actual.verdicts[1:3]] == [
            "no verdict within 0.2 s",
            "there is no chain of thought",
        ]
        assert actual.late == 2
        # it still hangs: a second part may try, a third would pile up
        pending.submit(items(0, 1))
        pending.submit(items(1, 1))
        actual = pending.collect()
        assert [v.reason for v in actual.verdicts] == [
            "no verdict within 0.2 s",
            "the judge is still busy with earlier items",
        ]
        assert actual.late == 2 and sum(
            t.name == "judge" for t in threading.enumerate()
        )
    finally:
        gate.set()
    end = time.monotonic() + 5
    while any(t.name == "judge" for t in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    pending.submit(items(0, 1))  # it has come round
    assert pending.collect().verdicts[0].label == "consistent"


def test_what_no_item_could_survive_is_raised():
    def broken(asked):
        raise UserError("https://x: refuses the key in $KEY (status 401)")

    pending = AsyncJudge(Judge("b", broken, {}), 5.0)
    pending.submit(items(0, 1))
    with pytest.raises(UserError, match="refuses the key"):
        pending.collect()
    with pytest.raises(UserError, match="judge seconds: expected more than 0, got 0"):
        AsyncJudge(rule.JUDGE, 0.0)


def test_parts_share_an_endpoint_and_slow_items_fail_alone(tmp_path):
    """Behind an endpoint: a limit for all parts together, the slow items undecided with
    their reason, the rest judged, and nothing that was replied asked again."""
    slow = (b"Case 3 ", b"Case 21 ")

    def kind(body, nth):
        return "slow" if any(s in body for s in slow) and nth == 0 else "ok"

    with serve(kind=kind) as server:
        server.slow_seconds = 20.0
        at = Endpoint(server.url, "m", concurrency=4, attempt_seconds=30.0)
        with Client(at, cache=tmp_path / "c") as client:
            pending = AsyncJudge(
                cascade(rule.JUDGE, chat.make(client, seconds=1.0)), 1.0
            )
            start = time.monotonic()
            for k in range(0, 30, 10):
                pending.submit(items(k, 10))
            actual = pending.collect()
            assert time.monotonic() - start < 15
            assert server.most_open <= 4 and actual.late == 2
            for k, verdict in enumerate(actual.verdicts):
                if k in (3, 21):
                    assert verdict.reason == "no reply within 1 s"
                else:
                    assert verdict.label == ("consistent", "inconsistent")[k % 2], k
            before = len(server.bodies)
            pending.submit(items(0, 30))
            assert pending.collect().late == 0 and len(server.bodies) == before + 2


def test_closing_a_client_ends_what_others_wait_for():
    with serve(kind=lambda b, n: "slow") as server:
        server.slow_seconds = 20.0
        client = Client(Endpoint(server.url, "m"))
        pending = AsyncJudge(chat.make(client), 0.2)
        pending.submit(items(0, 2))
        assert pending.collect().late == 2
        client.close()
        end = time.monotonic() + 5
        while any(t.name == "judge" for t in threading.enumerate()):
            assert time.monotonic() < end
            time.sleep(0.01)


HANGS = """
import time
from vlmrl.judges.async_judge import AsyncJudge
from vlmrl.judges.judge import JudgeItem, Judge
pending = AsyncJudge(Judge("h", lambda items: time.sleep(60), {}), 0.1)
pending.submit([JudgeItem("i", "?", ("a", "b"), "So a.", 0)])
print(pending.collect().verdicts[0].reason)
"""


def test_a_judge_that_hangs_does_not_hold_up_the_end_of_the_program():
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "no verdict within 0.1 s\n", done.stderr
    assert time.monotonic() - start < 30
