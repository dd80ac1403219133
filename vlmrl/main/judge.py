"""Judge the thinks of a run again, and measure how far judges agree.

  vlmrl judge --on=runs/x --judge=rule,http:Qwen/Qwen3-32B --url=http://127.0.0.1:8000/v1
      judges every record of a run: WORKDIR/records.parquet under the new judge, with
      WORKDIR/verdicts.jsonl and judge.json (prompt hash, cost, what a cascade saved)
  vlmrl judge --on=constructed:2000        2,000 traces whose conclusions are known
  vlmrl judge --on=labels.jsonl            traces that people labelled
  vlmrl judge agree A B C                  agreement of several such WORKDIRs (or label
      files), per condition, with intervals and paired tests (Holm-corrected); against
      the truth where it is known
  vlmrl judge vote A B C                   the majority of several such WORKDIRs, of
      judges behind different endpoints for one; asks nobody again
  vlmrl judge sheet --on=runs/x --count=200    a sheet of traces for people to label,
      drawn evenly over conditions from what the run wrote after its last step

Several judges, separated by commas, are a cascade: each is asked what those before it
left undecided. With --vote they are a majority. A judge is one of

  rule          cues, letters and option texts by rule
  model:DIR     a model of this project: the probabilities of two verdict tokens;
                model:tiny is the one that ships with it
  http:MODEL    a model behind an OpenAI-compatible endpoint at --url

The key of an endpoint is read from the environment variable that --key_env names.
Replies are kept in WORKDIR/replies.jsonl: a run that was killed, or whose budget was
spent, goes on where it was when the same command is given again.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from vlmrl.client import http
from vlmrl.client.cache import Budget
from vlmrl.eval import records
from vlmrl.judges import agree, constructed, judge, labels, verdicts
from vlmrl.judges.judge import LABELS
from vlmrl.judges.named import Named, named
from vlmrl.main import args
from vlmrl.main.progress import CONSOLE, bar
from vlmrl.report import agreement as tables
from vlmrl.report import assemble, render
from vlmrl.run.directory import describe_run
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
    "args": ("[agree PLACE ... | vote PLACE ... | sheet]", "what to do; none: judge"),
}
# What changes how a result is reached, not what it is.
_NOT_IN_CONFIG = (
    "args concurrency attempts budget_tokens budget_cost prompt_price completion_price"
    " again count reading"
).split()


def main(argv):
    _, workdir, flags = args.parse(argv, FLAGS)
    words = flags.args
    if words[:1] == ["agree"]:
        return run_agree(workdir, words[1:], flags.reading)
    if words[:1] == ["vote"]:
        return run_vote(workdir, words[1:])
    if words == ["sheet"]:
        return run_sheet(workdir, flags)
    if words:
        raise UserError(f"unexpected word '{words[0]}'; want agree, vote or sheet")
    return run_judge(workdir, flags)


# -- judge -----------------------------------------------------------------------------


def run_judge(workdir: Path, flags) -> None:
    found, rows = _load(flags.on, flags.seed)
    chosen = {k: v for k, v in vars(flags).items() if k not in _NOT_IN_CONFIG}
    whole, parts, client = _named(workdir, flags)
    with client or nullcontext():
        describe_run(workdir, chosen)
        with bar(f"judge {whole.name}", len(rows)) as advance:
            said = []
            step = max(500, 20 * flags.concurrency)
            for start in range(0, len(rows), step):
                part = [r.item for r in rows[start : start + step]]
                said += judge.ask(whole, part)
                advance(len(part))
        spent = client.spent._asdict() if client else {}
    left = sum(v.reason == http.SPENT for v in said)
    if left:
        raise UserError(
            f"{left} of {len(rows)} items were not judged: {http.SPENT} "
            f"({spent['prompt_tokens'] + spent['completion_tokens']} tokens); raise it "
            "and run again, what was replied is kept"
        )
    about = {
        "judge": whole.name,
        **whole.about,
        "labels": Counter(v.label for v in said),
        "reasons": Counter(v.reason for v in said if v.label == "undecided"),
        "decided by": Counter(v.judge for v in said if v.label != "not_applicable"),
        "spent": spent,
    }
    if len(parts) > 1 and not flags.vote:
        about["saved by " + parts[0].name] = judge.saving(said, parts[0])
    _finish(workdir, rows, said, whole.name, about, found)


def _finish(workdir: Path, rows, said, name: str, about: dict, found) -> None:
    """Files and tables of what a judge said, records under it where there are any."""
    verdicts.write(workdir / verdicts.NAME, rows, said, name)
    assemble.write_json(workdir / "judge.json", about)
    CONSOLE.print_json(json.dumps(about))
    if found:
        made = judge.apply_verdicts(found, said, name)
        records.write(workdir / "records.parquet", made)
        shown = {k: str(v) for k, v in about.items() if v and k != "spent"}
        assemble.write_json(
            workdir / "info.json", {"title": f"Judged by {name}", **shown}
        )
    held = [(r, v) for r, v in zip(rows, said, strict=True) if r.truth]
    if held:
        _show([tables.quality({name: held})], workdir)


def _load(on: str, seed: int) -> tuple[list[Record], list[verdicts.Row]]:
    """Records, if `on` has them, and the rows to judge."""
    if not on:
        raise UserError("--on: must be given, a run, a label file or constructed:2000")
    name, _, count = on.partition(":")
    if name == "constructed":
        if count and not (count.isdecimal() and int(count)):
            raise UserError(f"--on {on}: want constructed:COUNT, e.g. constructed:2000")
        made = constructed.traces(int(count or 2000), seed)
        return [], verdicts.of_traces(made)
    if on.endswith(".jsonl"):
        return [], verdicts.of_labels(labels.read(on))
    if not Path(on).is_dir():
        raise UserError(f"--on {on}: no such run directory")
    table = assemble.find_records(Path(on))
    found = [Record(**row) for row in table.to_pylist()]
    return found, verdicts.of_records(found)


def _named(workdir: Path, flags) -> Named:
    return named(
        flags.judge,
        vote=flags.vote,
        endpoint=http.Endpoint(
            flags.url,
            "",
            key_env=flags.key_env,
            insecure=flags.insecure,
            concurrency=flags.concurrency,
            attempts=flags.attempts,
        ),
        params={"temperature": flags.temperature, "max_tokens": flags.max_tokens},
        cache=workdir / "replies.jsonl",
        budget=Budget(
            flags.budget_tokens,
            flags.budget_cost,
            flags.prompt_price,
            flags.completion_price,
        ),
        again=flags.again,
        prompt_file=flags.prompt,
        sure=flags.sure,
        brief=flags.brief,
        field="--judge",
    )


# -- sheet -----------------------------------------------------------------------------


def run_sheet(workdir: Path, flags) -> None:
    found, rows = _load(flags.on, flags.seed)
    if found:  # of a run that was evaluated while it trained, what it ended with
        rows = verdicts.of_records(_ended(found))
    items = [(r.item, r.condition, r.cluster) for r in rows if r.reading == "whole"]
    path = workdir / "sheet.jsonl"
    n = labels.write_sheet(path, items, n=flags.count, seed=flags.seed)
    CONSOLE.print(f"{n} traces to label: {path}", soft_wrap=True, markup=False)


def _ended(found: list[Record]) -> list[Record]:
    """The records at the last step of each split, recipe and seed."""
    last: dict[tuple, int] = {}
    for r in found:
        key = (r.split, r.recipe, r.seed)
        last[key] = max(last.get(key, r.step), r.step)
    return [r for r in found if r.step == last[r.split, r.recipe, r.seed]]


# -- several judges --------------------------------------------------------------------


def run_agree(workdir: Path, places: list[str], reading: str) -> None:
    if reading not in verdicts.READINGS:
        raise UserError(f"--reading: '{reading}' is none of whole, sampled")
    raters = _raters("agree", places)
    keys = [
        key
        for key in verdicts.shared(raters, [reading])
        if all(said[key][1].label != "not_applicable" for said in raters.values())
    ]
    if not keys:
        raise UserError("agree: the raters share no item that applies to all of them")
    truth = verdicts.truths(raters)
    made = []
    if len(raters) > 1:
        rows = [next(iter(raters.values()))[key][0] for key in keys]
        said = [
            agree.codes([said[key][1].label for key in keys])
            for said in raters.values()
        ]
        ratings = agree.Ratings(
            tuple(raters),
            np.stack(said, 1),
            np.array([r.cluster for r in rows]),
            np.array([r.condition for r in rows]),
        )
        known = [LABELS.index(truth[k]) if k in truth else -1 for k in keys]
        made.append(tables.between(ratings))
        made += tables.confusions(ratings)
        made.append(tables.differences(ratings, np.array(known)))
    held = {
        name: [
            (row._replace(truth=truth[key]), verdict)
            for key, (row, verdict) in said.items()
            if key in truth and key[1] == reading
        ]
        for name, said in raters.items()
    }
    if any(held.values()):
        made.append(tables.quality({n: said for n, said in held.items() if said}))
    if not made:
        raise UserError("agree: one rater and no truth; name another to compare with")
    numbers = {"items": len(keys), "tables": [t._asdict() for t in made]}
    assemble.write_json(workdir / "agreement.json", numbers)
    _show(made, workdir)


def run_vote(workdir: Path, places: list[str]) -> None:
    """The majority of judges that were asked apart; asks nobody again."""
    raters = _raters("vote", places)
    if len(raters) < 3:
        raise UserError(f"vote: {len(raters)} judges; want 3 or more for a majority")
    first = next(iter(raters.values()))
    for name, said in raters.items():
        if lack := [key for key in first if key not in said]:
            raise UserError(f"vote: {name} has no verdict on {lack[0][0]}")
    name = judge.majority_name(list(raters))
    rows = [row for row, _ in first.values()]
    found = [
        judge.elected([said[key][1] for said in raters.values()], name) for key in first
    ]
    describe_run(workdir, {"vote": list(raters)})
    about = {"judge": name, "labels": Counter(v.label for v in found)}
    _finish(workdir, rows, found, name, about, _records(Path(places[0])))


def _raters(what: str, places: list[str]) -> dict[str, verdicts.Said]:
    if not places:
        raise UserError(f"{what}: name the directories (or label files) to compare")
    return verdicts.gather(places)


def _records(place: Path) -> list[Record]:
    path = place / "records.parquet"
    if not path.is_file():
        return []
    return [Record(**row) for row in records.read(path).to_pylist()]


def _show(made: list[render.Table], workdir: Path) -> None:
    render.write(workdir / "tables", made)
    for table in made:
        CONSOLE.print(render.terminal(table))
