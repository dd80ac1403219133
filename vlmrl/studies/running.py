"""Do the jobs of a study that are not done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from vlmrl import perturb, sharding, user_code
from vlmrl import policy as policies
from vlmrl.client import http
from vlmrl.data import texts
from vlmrl.eval import records, served
from vlmrl.eval.record_builder import RunLabels
from vlmrl.files import write_lines
from vlmrl.judges import agree, named, verdicts
from vlmrl.loops import judging, seeds
from vlmrl.loops.evaluate import (
    EvalPart,
    Evaluator,
    load_examples,
    settings_of,
    write_records,
)
from vlmrl.report import agreement, assemble, html, render
from vlmrl.run import directory, hosts
from vlmrl.run.phases import STOPPED_LINE, Phases, Stopped
from vlmrl.run.progress import SILENT, Display
from vlmrl.studies.estimates import estimate
from vlmrl.studies.jobs import SPEED, Job
from vlmrl.types import Example, Record, UserError

PICTURED = 600  # examples of a set whose images are kept for the page
JUDGED_AT_ONCE = 500  # items


def run(jobs: Sequence[Job], c: dict, workdir: Path, display: Display = SILENT) -> bool:
    """Do what is not done; return whether all is, False where a stop was requested.

    Jobs of one model follow each other, so that it is loaded once. What is done of a
    job stays: passes of an evaluation, replies, checkpoints. How long each job took
    goes into WORKDIR/jobs.jsonl. On several hosts all call this; what needs no
    accelerator is done by the first.
    """
    (workdir / "records").mkdir(parents=True, exist_ok=True)
    if hosts.first():
        for line in user_code.save(workdir, c):
            display.say(line)
    loaded: dict[str, policies.Policy] = {}
    for job in jobs:
        if not hosts.agree(not job.done):
            continue
        began, phases = time.monotonic(), Phases()
        if job.kind == "train":
            job.folder.mkdir(parents=True, exist_ok=True)
            seeds.check(job.config, job.folder)
            if not seeds.train(job.config, job.folder, display=display):
                return False
        else:
            try:
                with phases.watched(workdir / "hosts"):
                    if job.kind == "evaluate":
                        policy = _policy(job, c, loaded, display)
                        _evaluate(job, c, workdir, policy, display, phases)
                    else:
                        _by_first_host(job, c, workdir, display, phases)
            except Stopped:
                display.say(f"{job.name}: {STOPPED_LINE}")
                return False
        expected = estimate(job, c)
        done = {
            "job": job.name,
            "seconds": round(time.monotonic() - began, 1),
            "estimated": None if expected is None else round(expected.seconds, 1),
        }
        if hosts.first():
            directory.append(workdir / "jobs.jsonl", done)
    return True


def _by_first_host(job: Job, c: dict, workdir: Path, display, phases: Phases) -> None:
    """Do a job that needs no accelerator on the first host; the others wait, and a stop
    of it is theirs."""
    stopped = False
    if hosts.first():
        try:
            if job.kind == "ask":
                _ask(job, c, workdir, display, phases)
            else:
                _judge(job, display, phases)
        except Stopped:
            stopped = True
    if hosts.agree(stopped):
        raise Stopped(phases.name)


def _policy(job: Job, c: dict, loaded: dict, display: Display) -> policies.Policy:
    """Return the job's model; `loaded` holds the last one's weights, no others."""
    about = job.about
    key = about["model"], about.get("tags", "auto")
    if key not in loaded:
        loaded.clear()
        loaded[key] = policies.load(
            key[0],
            style=about["style"],
            tags=key[1],
            dtype="",
            pixels=about["pixels"],
            mesh=sharding.make_mesh(**c["mesh"]),
        )
        display.say(loaded[key].processor.about_tags())
    return loaded[key]._replace(style=about["style"])


def _evaluate(
    job: Job, c: dict, workdir: Path, policy: policies.Policy, display: Display,
    phases: Phases,
) -> None:  # fmt: skip
    about = job.about
    examples = _load(about, workdir)
    speed = {k: c["kernel"][k] for k in SPEED if k in c["kernel"]}
    speed["batch"] = min(speed["batch"], len(examples))
    decoding = {name: about[name] for name in ("temperature", "max_tokens")}
    settings = settings_of(decoding | about["kernel"] | speed)
    evaluator = Evaluator(policy, about["conditions"], settings)
    parts = [
        EvalPart(evaluator, examples, image, about["seed"])
        for image in ("", *about["images"])
    ]
    display.say(f"{job.name}: {evaluator.plan(examples).describe()}")
    labels = RunLabels(
        about["recipe"],
        about["seed"],
        split=about["split"],
        code=about.get("code", ""),
    )
    with display.bar(job.name, len(parts) * len(examples)) as advance:
        path = job.folder / f"{job.stem}.parquet"
        safe = phases.after("eval", advance)
        write_records(path, parts, policy.params, labels, safe)


def _load(about: dict, workdir: Path) -> Sequence[Example]:
    """Return the examples of a job; keep their images and perturbations for the
    release."""
    examples = load_examples(
        about["source"], about["split"], about["size"], workdir / "data"
    )
    seen = html.spread({f"{e.source}/{e.id}": e.task for e in examples}, PICTURED)
    shown = [e for e in examples if f"{e.source}/{e.id}" in seen and e.images]
    small = []
    for e in shown:
        with suppress(UserError):  # an image that can't be read is skipped later
            data = html.small(e.images[0], f"{e.source}/{e.id}")
            small.append(e._replace(images=(data,)))
    if not hosts.first():
        return examples
    assemble.write_images(workdir, small)
    path = workdir / "perturbations" / f"{about['source']}-{about['split']}.jsonl"
    path.parent.mkdir(exist_ok=True)
    release(path, examples, about["conditions"])
    return examples


def release(path: Path, examples: Sequence[Example], conditions: Sequence[str]) -> None:
    """Write what conditions make of examples, one line of JSON per example: the
    statements by option (`data.texts`) and, by condition, caption, prefill and added
    option, or why it does not apply. Whoever has the benchmark has the perturbed
    benchmark with it."""

    def changes(base: Example, name: str) -> dict:
        if reason := perturb.applies(base, name):
            return {"not_asked": reason}
        e = perturb.apply(base, name)
        return {
            "caption": e.caption,
            "prefill": e.prefill,
            "direct": e.direct,
            "options": list(e.options) if e.abstain >= 0 else None,
        }

    lines = (
        {
            "source": e.source,
            "example": e.id,
            "answer": e.answer,
            "suggested": e.suggested,
            "conditions": {n: changes(e, n) for n in conditions},
            "texts": texts.entry(e),
        }
        for e in examples
    )
    write_lines(path, lines)


def _ask(job: Job, c: dict, workdir: Path, display: Display, phases: Phases) -> None:
    about = job.about
    endpoint = http.Endpoint(about["url"], about["model"], key_env=c["key_env"])
    examples = _load(about, workdir)
    cache = workdir / "records" / f"{job.stem}.replies.jsonl"
    total = served.asked(examples, about["conditions"])
    with (
        http.Client(endpoint, cache=cache) as client,
        display.bar(job.name, total) as advance,
    ):
        rows = served.evaluate(
            client,
            examples,
            about["conditions"],
            served.ServedSettings(
                style=about["style"],
                prefill=about["prefill"],
                temperature=about["temperature"],
                max_tokens=about["max_tokens"],
            ),
            labels=RunLabels(
                about["recipe"], split=about["split"], code=about.get("code", "")
            ),
            progress=phases.after("eval", advance, alone=True),
        )
    records.write(job.folder / f"{job.stem}.parquet", rows)


def _judge(job: Job, display: Display, phases: Phases) -> None:
    """Judge the records of an evaluation again, as `vlmrl judge` does a run's."""
    about = job.about
    rows = records.read(about["on"]).to_pylist()
    old = [Record(**row) for row in rows]
    options = named.JudgeOptions(
        endpoint=http.Endpoint(about["url"], ""),
        params={"temperature": 0.0, "max_tokens": 2048},
        cache=job.folder / "replies.jsonl",
        brief=about["brief"],
    )
    job.folder.mkdir(parents=True, exist_ok=True)
    judges = named.named(about["judge"], options, field="config.judges")
    to_judge = verdicts.of_records(old)
    with (
        judges.client or nullcontext(),
        display.bar(job.name, len(to_judge)) as advance,
    ):
        items = [row.item for row in to_judge]
        safe = phases.after("eval", advance, alone=True)
        decided = named.judge_all(judges, items, JUDGED_AT_ONCE, safe)
        summary = named.summary(judges, decided)
    judging.write(job.folder, summary, to_judge, decided, old)


def judge_tables(jobs: Sequence[Job]) -> list[render.Table]:
    """Return the tables of how far judges agree, one set after the other, from their
    verdicts."""
    by_set: dict[str, list[Job]] = {}
    for job in jobs:
        if job.kind == "judge":
            by_set.setdefault(job.about["on"], []).append(job)
    names = [job.name for job in jobs]
    tables = []
    for number, judgings in enumerate(by_set.values()):
        raters = verdicts.gather([job.folder for job in judgings])
        for table in agreement.comparison(agree.compare(raters, "whole")):
            title = f"{table.title}: {names[number]}"
            name = f"{table.name}-{number}"
            tables.append(table._replace(name=name, title=title))
    return tables
