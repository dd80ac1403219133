"""Judge the thinks of a run again, and measure how far judges agree.

  vlmrl judge --on=runs/x --judge=rule,http:Qwen/Qwen3-32B --url=http://127.0.0.1:8000/v1
      judges every record of a run: WORKDIR/records.parquet under the new judge, with
      WORKDIR/verdicts.jsonl and judge.json (prompt hash, cost, what a cascade saved)
  vlmrl judge --on=constructed:2000        2,000 traces whose conclusions are known
  vlmrl judge --on=labels.jsonl            traces that people labelled
  vlmrl judge agree A B C                  agreement of several such WORKDIRs (or label
      files), per condition, with intervals; against the truth where it is known
  vlmrl judge sheet --on=runs/x --count=200    a sheet of traces for people to label

Several judges, separated by commas, are a cascade: each is asked what those before it
left undecided. With --vote they are a majority. A judge is one of

  rule          cues, letters and option texts by rule
  model:DIR     a model of this project: the probabilities of two verdict tokens
  http:MODEL    a model behind an OpenAI-compatible endpoint at --url

The key of an endpoint is read from the environment variable that --key_env names.
Replies are kept in WORKDIR/replies.jsonl: a run that was killed, or whose budget was
spent, goes on where it was when the same command is given again.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmrl.eval import records
from vlmrl.judges import agree, chat, constructed, http, judge, labels, prompt, rule
from vlmrl.judges.judge import Item, Judge, Verdict
from vlmrl.judges.ledger import Budget
from vlmrl.main import args, report
from vlmrl.main.progress import CONSOLE, bar
from vlmrl.main.train import describe_run
from vlmrl.report import render
from vlmrl.types import Record, UserError

HELP = "judge thinks again by rule, model or HTTP; agreement of judges"
FLAGS = {
    "workdir": (None, "directory to write into"),
    "on": ("", "a run directory, a label file (.jsonl), or constructed[:COUNT]"),
    "judge": ("rule", "rule, model:DIR, http:MODEL; several: a cascade"),
    "vote": (False, "several judges vote instead"),
    "url": ("", "base URL of the endpoint, e.g. http://127.0.0.1:8000/v1"),
    "key_env": ("", "environment variable that holds the endpoint's key"),
    "insecure": (False, "allow plain http to another machine"),
    "concurrency": (16, "requests in flight"),
    "attempts": (5, "per request"),
    "max_tokens": (2048, "of a reply"),
    "temperature": (0.0, "of a reply"),
    "budget_tokens": (0, "tokens to spend at most; 0: no limit"),
    "budget_cost": (0.0, "money to spend at most; 0: no limit"),
    "prompt_price": (0.0, "per million prompt tokens"),
    "completion_price": (0.0, "per million completion tokens"),
    "again": (False, "ask again what failed before"),
    "prompt": ("", "judge prompt file, instead of the project's own"),
    "brief": (False, "a model judge is asked by the prompt's short part"),
    "sure": (0.5, "probability below which a model judge is undecided"),
    "count": (200, "rows of a sheet"),
    "seed": (0, "of constructed traces and of a sheet's draw"),
    "reading": ("whole", "agree on the 'whole' think, or on the 'sampled' part"),
    "args": ("[agree DIR_OR_LABELS ... | sheet]", "what to do; nothing: judge"),
}
# What changes how a result is reached, not what it is.
_NOT_IN_CONFIG = (
    "args concurrency attempts budget_tokens budget_cost prompt_price completion_price"
    " again count reading"
).split()


class Row(NamedTuple):
    """A reading to judge, and what is known of it."""

    item: Item
    reading: str  # 'whole' or 'sampled'
    condition: str
    cluster: str
    truth: str | None  # a label, where it is known


def main(argv):
    _, workdir, flags = args.parse(argv, FLAGS)
    words = flags.args
    if words[:1] == ["agree"]:
        return run_agree(workdir, words[1:], flags.reading)
    if words == ["sheet"]:
        return run_sheet(workdir, flags)
    if words:
        raise UserError(f"unexpected word '{words[0]}'; want agree, sheet or nothing")
    return run_judge(workdir, flags)


# -- judge -----------------------------------------------------------------------------


def run_judge(workdir: Path, flags) -> None:
    found, rows = _load(flags.on, flags.seed)
    chosen = {k: v for k, v in vars(flags).items() if k not in _NOT_IN_CONFIG}
    with ExitStack() as stack:
        judges, client = _judges(workdir, flags, stack)
        first, whole = judges[0], judges[0]
        if flags.vote and len(judges) > 1:
            whole = judge.majority(judges)
        elif len(judges) > 1:
            for other in judges[1:]:
                whole = judge.cascade(whole, other)
        describe_run(workdir, chosen)
        with bar(f"judge {whole.name}", len(rows)) as advance:
            verdicts = []
            step = max(500, 20 * flags.concurrency)
            for start in range(0, len(rows), step):
                part = [r.item for r in rows[start : start + step]]
                verdicts += judge.ask(whole, part)
                advance(len(part))
        spent = client.spent._asdict() if client else {}
    left = sum(v.reason == http.SPENT for v in verdicts)
    if left:
        raise UserError(
            f"{left} of {len(rows)} items were not judged: {http.SPENT} "
            f"({spent['prompt_tokens'] + spent['completion_tokens']} tokens); raise it "
            "and run again, what was replied is kept"
        )
    _write_verdicts(workdir / "verdicts.jsonl", rows, verdicts, whole.name)
    about = {
        "judge": whole.name,
        **whole.about,
        "labels": Counter(v.label for v in verdicts),
        "reasons": Counter(v.reason for v in verdicts if v.label == "undecided"),
        "decided by": Counter(v.judge for v in verdicts if v.label != "not_applicable"),
        "spent": spent,
    }
    cascaded = len(judges) > 1 and not flags.vote
    if cascaded:
        about["saved by " + first.name] = judge.saving(verdicts, first)
    report.write_json(workdir / "judge.json", about)
    CONSOLE.print_json(json.dumps(about))
    if found:
        made = judge.apply_verdicts(found, verdicts, whole.name)
        records.write(workdir / "records.parquet", made)
    if any(r.truth for r in rows):
        held = [(r, v) for r, v in zip(rows, verdicts, strict=True) if r.truth]
        _show([_quality_table({whole.name: held})], workdir)


def _load(on: str, seed: int) -> tuple[list[Record], list[Row]]:
    """Records, if `on` has them, and the rows to judge."""
    if not on:
        raise UserError("--on: must be given, a run, a label file or constructed:2000")
    name, _, count = on.partition(":")
    if name == "constructed":
        if count and not (count.isdecimal() and int(count)):
            raise UserError(f"--on {on}: want constructed:COUNT, e.g. constructed:2000")
        made = constructed.traces(int(count or 2000), seed)
        return [], [Row(t.item, "whole", t.kind, t.item.id, t.label) for t in made]
    if on.endswith(".jsonl"):
        return [], [_labelled(one) for one in labels.read(on)]
    if not Path(on).is_dir():
        raise UserError(f"--on {on}: no such run directory")
    table = report.find_records(Path(on))
    found = [Record(**row) for row in table.to_pylist()]
    rows = []
    for r in found:
        cluster = f"{r.source}/{r.cluster}"
        whole, own = judge.readings(r)
        rows.append(Row(whole, "whole", r.condition, cluster, None))
        rows.append(Row(own, "sampled", r.condition, cluster, None))
    return found, rows


def _labelled(one: labels.Labelled) -> Row:
    settled = one.conclusion
    truth = None if settled is None else labels.label(settled, one.item)
    return Row(one.item, "whole", one.condition, one.cluster, truth)


def _judges(workdir: Path, flags, stack: ExitStack):
    """The judges that --judge names, and the client of those behind an endpoint."""
    given = prompt.load(flags.prompt or prompt.DEFAULT)
    out: list[Judge] = []
    client = None
    for word in flags.judge.split(","):
        kind, _, name = word.strip().partition(":")
        if kind == "rule" and not name:
            out.append(rule.JUDGE)
        elif kind == "model" and name:
            from vlmrl.engine import policy as policies
            from vlmrl.judges import model

            found = policies.load(name)
            out.append(model.make(found, given, sure=flags.sure, brief=flags.brief))
        elif kind == "http" and name:
            if client is not None:
                raise UserError(
                    "--judge: one http judge per run; `agree` compares runs"
                )
            client = stack.enter_context(_client(workdir, name, flags))
            params = {"temperature": flags.temperature, "max_tokens": flags.max_tokens}
            out.append(chat.make(client, given, params=params))
        else:
            raise UserError(f"--judge: '{word}' is none of rule, model:DIR, http:MODEL")
    return out, client


def _client(workdir: Path, name: str, flags) -> http.Client:
    if not flags.url:
        raise UserError("--url: must be given with an http judge")
    endpoint = http.Endpoint(
        flags.url,
        name,
        key_env=flags.key_env,
        insecure=flags.insecure,
        concurrency=flags.concurrency,
        attempts=flags.attempts,
    )
    budget = Budget(
        flags.budget_tokens,
        flags.budget_cost,
        flags.prompt_price,
        flags.completion_price,
    )
    cache = workdir / "replies.jsonl"
    return http.Client(endpoint, cache=cache, budget=budget, again=flags.again)


def _write_verdicts(path: Path, rows: list[Row], verdicts: list[Verdict], name: str):
    part = path.with_name(path.name + ".partial")
    with open(part, "w", encoding="utf-8") as file:
        for row, v in zip(rows, verdicts, strict=True):
            line = {
                "id": row.item.id.removesuffix("#sampled"),
                "reading": row.reading,
                "condition": row.condition,
                "cluster": row.cluster,
                "truth": row.truth,
                "judge": name,
                "by": v.judge,
                "label": v.label,
                "conclusion": v.conclusion,
                "confidence": None if math.isnan(v.confidence) else v.confidence,
                "reason": v.reason,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(part, path)


# -- sheet -----------------------------------------------------------------------------


def run_sheet(workdir: Path, flags) -> None:
    _, rows = _load(flags.on, flags.seed)
    items = [(r.item, r.condition, r.cluster) for r in rows if r.reading == "whole"]
    path = workdir / "sheet.jsonl"
    n = labels.write_sheet(path, items, n=flags.count, seed=flags.seed)
    CONSOLE.print(f"{n} traces to label: {path}", soft_wrap=True, markup=False)


# -- agree -----------------------------------------------------------------------------


def run_agree(workdir: Path, places: list[str], reading: str) -> None:
    if reading not in ("whole", "sampled"):
        raise UserError(f"--reading: '{reading}' is none of whole, sampled")
    if not places:
        raise UserError("agree: name the directories (or label files) to compare")
    raters: dict[str, dict[str, tuple[Row, Verdict]]] = {}
    for place in places:
        for name, said in _ratings(Path(place), reading).items():
            if name in raters:
                name = f"{name} ({place})"
            raters[name] = said
    shared = set.intersection(*(set(said) for said in raters.values()))
    ids = [i for i in next(iter(raters.values())) if i in shared]
    ids = [
        i
        for i in ids
        if all(r[i][1].label != "not_applicable" for r in raters.values())
    ]
    if not ids:
        raise UserError("agree: the raters share no item that applies to all of them")
    made, numbers = [], {"items": len(ids)}
    if len(raters) > 1:
        rows = [next(iter(raters.values()))[i][0] for i in ids]
        said = [agree.codes([r[i][1].label for i in ids]) for r in raters.values()]
        ratings = agree.Ratings(
            tuple(raters),
            np.stack(said, 1),
            np.array([r.cluster for r in rows]),
            np.array([r.condition for r in rows]),
        )
        made.append(_between_table(ratings))
        made += _confusions(ratings)
    truth = {i: row.truth for r in raters.values() for i, (row, _) in r.items()}
    held = {
        name: [(row._replace(truth=truth[i]), v) for i, (row, v) in said.items()]
        for name, said in raters.items()
    }
    held = {n: [(r, v) for r, v in said if r.truth] for n, said in held.items()}
    if any(held.values()):
        made.append(_quality_table({n: said for n, said in held.items() if said}))
    if not made:
        raise UserError("agree: one rater and no truth; name another to compare with")
    numbers["tables"] = [t._asdict() for t in made]
    report.write_json(workdir / "agreement.json", numbers)
    _show(made, workdir)


def _ratings(place: Path, reading: str) -> dict[str, dict[str, tuple[Row, Verdict]]]:
    """rater → id → (row, verdict) of a judged directory or a label file."""
    if place.suffix == ".jsonl" and place.is_file():
        out: dict[str, dict] = {}
        for one in labels.read(place):
            row = _labelled(one)
            for who, option in one.said.items():
                name = labels.label(option, one.item)
                verdict = Verdict(name, option, math.nan, "", who)
                out.setdefault(f"{who} (person)", {})[one.item.id] = row, verdict
        return out
    path = place / "verdicts.jsonl"
    if not path.is_file():
        raise UserError(f"{place}: holds no verdicts.jsonl; run vlmrl judge first")
    found: dict[str, dict] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            v = json.loads(line)
            if v["reading"] != reading:
                continue
            item = Item(v["id"], "", (), "", -1)
            row = Row(item, reading, v["condition"], v["cluster"], v["truth"])
            sure = math.nan if v["confidence"] is None else float(v["confidence"])
            verdict = Verdict(v["label"], v["conclusion"], sure, v["reason"], v["by"])
            found.setdefault(v["judge"], {})[v["id"]] = row, verdict
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: row {number} is not a verdict") from None
    if not found:
        raise UserError(f"{path}: no verdicts of the reading '{reading}'")
    return found


# -- tables ----------------------------------------------------------------------------


def _cell(interval):
    """(value, lo, hi), None where there is no value."""
    if interval is None or np.isnan(interval.value):
        return None
    return float(interval.value), float(interval.lo), float(interval.hi)


def _between_table(ratings: agree.Ratings) -> render.Table:
    rows = [
        (
            row["condition"],
            " · ".join(row["raters"]),
            row["n"],
            *(_cell(row.get(name)) for name in ("strict", "cohen", "fleiss")),
        )
        for row in agree.between(ratings)
    ]
    columns = ["condition", "raters", "n", "strict", "Cohen's κ", "Fleiss' κ"]
    kinds = ["text", "text", "count", "interval", "interval", "interval"]
    return render.Table(
        "agreement",
        "Agreement of judges",
        "In per cent (κ × 100), with 95 % intervals over clusters. Labels: consistent, "
        "inconsistent, undecided. A dash: κ is not defined where one label is all.",
        tuple(zip(columns, kinds, strict=True)),
        rows,
    )


def _confusions(ratings: agree.Ratings) -> list[render.Table]:
    out = []
    first, others = ratings.raters[0], ratings.raters[1:]
    for k, other in enumerate(others, 1):
        counts = agree.confusion(ratings.labels[:, 0], ratings.labels[:, k])
        rows = [(n, *map(int, c)) for n, c in zip(agree.LABELS, counts, strict=True)]
        columns = (("", "text"), *((n, "count") for n in agree.LABELS))
        out.append(
            render.Table(
                f"confusion-{k}",
                f"{first} (rows) by {other} (columns)",
                "Items.",
                columns,
                rows,
            )
        )
    return out


def _quality_table(held: dict[str, list[tuple[Row, Verdict]]]) -> render.Table:
    rows = []
    for name, said in held.items():
        kinds = ["all", *dict.fromkeys(r.condition for r, _ in said)]
        for kind in kinds:
            part = [(r, v) for r, v in said if kind in ("all", r.condition)]
            part = [(r, v) for r, v in part if v.label != "not_applicable"]
            found = agree.against(
                [r.truth for r, _ in part],
                [v for _, v in part],
                [r.cluster for r, _ in part],
            )
            brier = None if math.isnan(found.brier) else found.brier
            shares = (found.precision, found.coverage, found.accuracy, found.kappa)
            rows.append((name, kind, found.n, *map(_cell, shares), brier))
    return render.Table(
        "truth",
        "Judges against known conclusions",
        "In per cent, with 95 % intervals. Precision: right, of what was decided. "
        "Coverage: decided, of what has a conclusion. Brier: mean squared error of the "
        "confidence; a dash where the judge gives none.",
        (
            *(("judge", "text"), ("kind", "text"), ("n", "count")),
            *(
                (n, "interval")
                for n in ("precision", "coverage", "accuracy", "κ × 100")
            ),
            ("Brier", "number"),
        ),
        rows,
    )


def _show(made: list[render.Table], workdir: Path) -> None:
    render.write(workdir / "tables", made)
    for table in made:
        CONSOLE.print(render.terminal(table))
