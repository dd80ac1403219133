"""`vlmrl judge` and `vlmrl ask`, as from a shell, against a scripted endpoint."""

import json
import logging
import multiprocessing
import time
from collections import Counter

import pytest

from tests.judges.server import body_of, item_of, serve, some_faults
from vlmrl.eval import records
from vlmrl.judges import agree, synthetic, verdicts
from vlmrl.main import cli

CANARY = "sk-canary-3141592653"


def letters(request):
    """A judge that reads the last capital letter of the think, and is right."""
    item = item_of(request)
    actual = [
        c for c in item["reasoning"].split("answer is ")[-1] if c in item["options"]
    ]
    letter = actual[0] if actual else "none"
    label = "consistent" if letter == item["answer"] else "inconsistent"
    label = "undecided" if letter == "none" else label
    output = {"conclusion": letter, "verdict": label, "confidence": 0.8}
    return body_of(json.dumps(output))


def policy(request):
    """A model that answers B and says why, or a judge where it is asked to judge."""
    if "json" in str(request["messages"][-1]["content"]).lower():
        return letters(request)
    return body_of("<think>Hm. So the answer is B.</think>\n<answer>B</answer>")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_synthetic_traces_rule_against_http_and_agreement(vlmrl, tmp_path, capsys):
    a, b, both = (tmp_path / n for n in ("a", "b", "both"))
    on = "--on=synthetic:60"
    vlmrl("judge", on, "--workdir", a)
    with serve(letters, some_faults(0.1)) as server:
        words = ["--judge=rule,http:m", f"--url={server.url}"]
        vlmrl("judge", on, *words, "--workdir", b)
        sent = len(server.bodies)
        before = (b / "verdicts.jsonl").read_bytes()
        vlmrl("judge", on, *words, "--workdir", b)
        assert len(server.bodies) == sent
        assert (b / "verdicts.jsonl").read_bytes() == before
    rows = lines(a / "verdicts.jsonl")
    assert len(rows) == len({r["id"] for r in rows}) == 60
    about = json.loads((b / "judge.json").read_text())
    undecided = sum(r["label"] == "undecided" for r in rows)
    assert about["saved by rule"] == pytest.approx(1 - undecided / 60)
    assert about["decided by"]["rule"] == 60 - undecided
    assert about["judge prompt"].startswith("judge-3 (")
    vlmrl("judge", "agree", a, b, "--workdir", both)
    built = json.loads((both / "agreement.json").read_text())
    names = [t["name"] for t in built["tables"]]
    assert names == ["agreement", "confusion-1", "differences", "truth"]
    assert built["items"] == 60
    shares = {row[1] for row in built["tables"][2]["rows"]}
    assert shares == {"consistent", "right"}
    first = built["tables"][0]["rows"][0]
    assert first[0] == "all" and first[2] == 60 and first[4] is not None
    assert (both / "tables" / "truth.md").is_file()
    assert "Judges against known conclusions" in capsys.readouterr().out


def test_the_shipped_judge_by_name_alone_and_in_a_cascade(vlmrl, tmp_path):
    """On traces that it never saw; in the cascade it is asked what the rule left."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    on = f"--seed={synthetic.HELD_OUT}"
    vlmrl("judge", "--on=synthetic:240", on, "--judge=model:tiny", "--workdir", alone)
    (output,) = verdicts.read(alone).values()
    truth = [row.truth for row, _ in output.values()]
    actual = agree.against(
        truth, [verdict for _, verdict in output.values()], draws=200
    )
    assert actual.n == 240 and actual.kappa.value > 0.75 and actual.kappa.lo > 0.65
    assert actual.precision.value > 0.8 and actual.brier < 0.15
    assert min(share.value for share in actual.recall.values()) > 0.7
    sure, right, count = actual.calibration[-1]
    assert sure > 0.9 and right > 0.95 and count > 60
    words = ["judge", "--on=synthetic:60", on, "--judge=rule,model:tiny"]
    vlmrl(*words, "--workdir", both)
    first = lines(alone / "verdicts.jsonl")
    rows = lines(both / "verdicts.jsonl")
    asked = [r for r in rows if r["by"] != "rule"]
    assert 0 < len(asked) < 40
    assert {r["by"] for r in asked} == {first[0]["by"]}
    own = {r["id"]: r["label"] for r in first}
    assert all(r["label"] == own[r["id"]] for r in asked)
    about = json.loads((both / "judge.json").read_text())
    assert about["saved by rule"] == 1 - len(asked) / 60


def test_a_vote_joins_judges_that_were_asked_apart(vlmrl, tmp_path, refused):
    """Two that read the last letter outvote one that always says A; nobody is asked."""

    def stubborn(request):
        item = item_of(request)
        label = "consistent" if item["answer"] == "A" else "inconsistent"
        output = {"conclusion": "A", "verdict": label, "confidence": 1.0}
        return body_of(json.dumps(output))

    places = [tmp_path / name for name in ("a", "b", "c")]
    for place, model, answer in zip(
        places, ("m1", "m2", "m3"), (letters, letters, stubborn), strict=True
    ):
        with serve(answer) as server:
            words = [f"--judge=http:{model}", f"--url={server.url}"]
            vlmrl("judge", "--on=synthetic:24", *words, "--workdir", place)
    vlmrl("judge", "vote", *places, "--workdir", tmp_path / "v")
    first, _, third, voted = (
        lines(p / "verdicts.jsonl") for p in (*places, tmp_path / "v")
    )
    assert [r["label"] for r in voted] == [r["label"] for r in first]
    assert [r["label"] for r in third] != [r["label"] for r in first]
    assert {r["judge"] for r in voted} == {voted[0]["by"]}
    assert voted[0]["judge"].startswith("majority(http m1 judge-")
    assert {r["confidence"] for r in voted} == {2 / 3, 1.0}
    vlmrl("judge", "agree", tmp_path / "v", places[2], "--workdir", tmp_path / "g")
    output = refused("judge", "vote", *places[:2], workdir=tmp_path / "w")
    assert output == "vote: expected 3 or more judges, got 2"
    vlmrl("judge", "--on=synthetic:30", "--workdir", tmp_path / "more")
    output = refused(
        "judge", "vote", tmp_path / "more", *places, workdir=tmp_path / "w"
    )
    assert "has no verdict on 0-24" in output


@pytest.mark.slow
def test_a_served_model_is_evaluated_judged_and_labelled(
    vlmrl, tmp_path, monkeypatch, caplog, capfd
):
    monkeypatch.setenv("CANARY_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    run, judged = tmp_path / "run", tmp_path / "judged"
    with serve(policy) as server:
        at = [f"--url={server.url}", "--key_env=CANARY_KEY"]
        words = ["ask", *at, "--model=m", "--size=4", "--conditions=base,wrong_think"]
        vlmrl(*words, "--style=tiny", "--workdir", run)
        assert all(CANARY in h for h in server.headers)
        table = records.read(run / "records.parquet").to_pylist()
        assert Counter(r["condition"] for r in table) == {"base": 4, "wrong_think": 4}
        assert {r["predicted"] for r in table} == {1}
        sent = len(server.bodies)
        vlmrl(*words, "--style=tiny", "--workdir", run)
        assert len(server.bodies) == sent == 8
        vlmrl("judge", "--on", run, "--judge=http:m", *at, "--workdir", judged)
    again = records.read(judged / "records.parquet").to_pylist()
    assert {r["judge"][:16] for r in again} == {
        "http m judge-3:" + again[0]["judge"][15]
    }
    assert all(r["verdict"] == "consistent" for r in again if r["condition"] == "base")
    page = (run / "report.html").read_text()
    assert "letters from absent, prefill as user" in page
    for folder in (run, judged):
        for path in folder.rglob("*"):
            assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    out = capfd.readouterr()
    assert CANARY not in caplog.text + out.out + out.err
    sheet = tmp_path / "sheet"
    vlmrl("judge", "sheet", "--on", run, "--count=3", "--workdir", sheet)
    rows = lines(sheet / "sheet.jsonl")
    assert 1 <= len(rows) <= 3 and all(r["conclusion"] == "" for r in rows)
    filled = [r | {"conclusion": "B", "annotator": "ann"} for r in rows]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in filled))
    vlmrl("judge", "--on", path, "--workdir", tmp_path / "l")
    vlmrl("judge", "agree", tmp_path / "l", path, "--workdir", tmp_path / "m")


@pytest.fixture(scope="module")
def start():
    """Starts a command line in a process of its own, in which all is imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlmrl.main.ask", "vlmrl.main.judge"])

    def run(*words):
        child = context.Process(target=cli.main, args=([*map(str, words)],))
        child.start()
        return child

    return run


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ask", "judge"])
def test_an_evaluation_that_is_killed_goes_on_where_it_was(command, start, tmp_path):
    """Killed after the first reply, in the middle and near the end: one record per item
    in the end, and only what was in flight is asked again."""
    flight, total = 3, 12
    done = tmp_path / ("records.parquet" if command == "ask" else "verdicts.jsonl")
    with serve(policy if command == "ask" else letters) as server:
        words = [command, f"--url={server.url}", f"--concurrency={flight}"]
        words += ["--workdir", tmp_path]
        if command == "ask":
            words += ["--model=m", "--size=6", "--conditions=base,wrong_think"]
            words += ["--style=tiny"]
        else:
            words += ["--judge=http:m", f"--on=synthetic:{total}"]
        for stop in (1, 6, total):
            child = start(*words)
            while len(server.seen) < stop:
                assert child.is_alive(), child.exitcode
                time.sleep(0.001)
            child.kill()
            child.join()
            child.close()
            assert stop == total or not done.exists()
        child = start(*words)
        child.join()
        child.close()
        assert len(server.seen) == total
        assert len(server.bodies) <= total + 3 * flight
    if command == "ask":
        table = records.read(done).to_pylist()
        items = Counter((r["example"], r["condition"], r["sample"]) for r in table)
        assert all(r["finish"] == "stop" for r in table)
    else:
        table = lines(done)
        items = Counter(r["id"] for r in table)
        assert all(
            r["reason"] in ("", "the chain of thought concludes nothing") for r in table
        )
    assert len(items) == total and set(items.values()) == {1}
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "words, complaint",
    [
        ([], "--on: expected a run directory"),
        (["--on=synthetic:x"], "expected synthetic:COUNT"),
        (["--on=constructed:9"], "is now --on=synthetic:9"),
        (["--on=/nowhere"], "--on: expected a run directory, a label file"),
        (["--on=/nowhere.jsonl"], "/nowhere.jsonl: cannot read labels"),
        (
            ["--on=synthetic:2", "--judge=oracle"],
            "expected rule, model:DIR, http:MODEL or path",
        ),
        (["--on=synthetic:2", "--judge=rule:x"], "got 'rule:x'"),
        (["--on=synthetic:2", "--judge=http:a,http:b"], "one http judge at a time"),
        (["--on=synthetic:2", "--judge=http:m"], "an http judge needs a url"),
        (
            ["--on=synthetic:2", "--judge=http:m", "--url=http://example.com"],
            "plain http to another machine",
        ),
        (
            ["--on=synthetic:2", "--judge=http:m", "--url=https://example.com"]
            + ["--key_env=NO_SUCH_KEY"],
            "no environment variable NO_SUCH_KEY",
        ),
        (["agree"], "expected directories"),
        (["vote"], "expected directories"),
        (["agree", "/nowhere"], "/nowhere: holds no verdicts.jsonl"),
        (["agre"], "expected agree, vote or sheet, got 'agre'"),
        (["--on=synthetic:2", "--prompt=/nowhere"], "cannot read the judge prompt"),
    ],
)
def test_bad_input_is_refused(words, complaint, refused, tmp_path):
    assert complaint in refused("judge", *words, workdir=tmp_path / "w")


def test_a_spent_budget_is_said_and_leaves_nothing_finished(refused, tmp_path):
    with serve(letters) as server:
        words = ["judge", "--on=synthetic:20", "--judge=http:m", "--max_tokens=50"]
        words += [f"--url={server.url}", "--budget_tokens=5000"]
        output = refused(*words, workdir=tmp_path)
    assert "items were not judged: the budget is spent" in output
    assert not (tmp_path / "verdicts.jsonl").exists()
    assert 0 < len(lines(tmp_path / "replies.jsonl")) < 20


def test_bad_labels_name_their_row(refused, tmp_path):
    path = tmp_path / "l.jsonl"
    row = {
        "id": "1",
        "condition": "base",
        "cluster": "c",
        "question": "?",
        "options": {"A": "left", "B": "right"},
        "think": "So A.",
        "answer": "A",
        "conclusion": "A",
        "annotator": "ann",
        "note": "",
    }
    for change, complaint in [
        ({"conclusion": "C"}, "line 1: conclusion: expected none or one of A, B"),
        ({"conclusion": ""}, "nothing is labelled"),
        ({"answer": "Z"}, "an answer among them"),
        ({"think": 3}, "line 1: think: expected a text, got 3"),
    ]:
        path.write_text(json.dumps(row | change) + "\n")
        assert complaint in refused("judge", "--on", path, workdir=tmp_path / "w")
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    output = refused("judge", "--on", path, workdir=tmp_path / "w")
    assert "line 2: 'ann' labels 1 twice" in output
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"think": "x"}) + "\n")
    output = refused("judge", "--on", path, workdir=tmp_path / "w")
    assert "line 2: 1 differs from an earlier line" in output
