"""Prepare data sets, and look at them.

vlmrl data list                 every source: splits, tasks, licence
vlmrl data prepare NAME... [--source=DIR]
                                published sets as files under WORKDIR/data: downloaded
                                from a hub, or read from files that are already there;
                                goes on where it was stopped
vlmrl data prepare NAME --source=DIR
                                with a name of your own: your data (vlmrl/data/own.py
                                says what DIR holds)
vlmrl data prepare scenes --size=train=2400,validation=96
                                the procedural source, which is made on the spot
vlmrl data show NAME            some examples: questions, options, answers, and what the
                                conditions make of them; their pictures on one sheet,
                                WORKDIR/NAME-SPLIT.png
vlmrl data check NAME           counts against the published ones, letter balance,
                                duplicates, what was repaired and refused, by row
vlmrl data texts NAME [--model=NAME]
                                the misleading statements as a file, one line of JSON
                                per example, WORKDIR/NAME-SPLIT.texts.jsonl; with
                                --model those that a model behind --url rewrites. Read
                                by `show --texts=FILE` and by the `texts` fields of
                                configs, so that two labs can mislead with one file

What a condition wrote stands between « and ».
"""

from __future__ import annotations

import functools
from pathlib import Path

from vlmrl import perturb, shipped, user_code
from vlmrl.client import http
from vlmrl.data import check, fetch, loader, texts
from vlmrl.data import prepare as preparing
from vlmrl.data.sets import SETS, catalogue
from vlmrl.main import args
from vlmrl.main.endpoint import endpoint
from vlmrl.main.progress import bar
from vlmrl.prompts import preview
from vlmrl.types import UserError

HELP = "list, prepare, check and look at the data sets"
FLAGS = {
    "args": ("list | prepare NAME... | show NAME | check NAME | texts NAME", "what"),
    "workdir": ("runs/data", "directory to write into"),
    "split": ("", "splits, as train,test; default: all (show: one of them)"),
    "n": (6, "examples to show"),
    "conditions": ([], "conditions to show each example under, as base,wrong_caption"),
    "style": ("tiny", "prompt style of what is shown under conditions"),
    "size": ([], "scenes only: examples per split, as train=2400,validation=96"),
    "source": ("hub", "where published files are: hub, or a directory"),
    "repo": ("", "repository on the hub, instead of the pinned one"),
    "revision": ("", "its revision, instead of the pinned one"),
    "pins": ("third_party/datasets.json", "file of repositories, revisions, licences"),
    "seed": (0, "of what preparing draws: option order, suggestions, wrong answers"),
    "texts": ("", "file of statements to show instead of the prepared ones"),
    "model": ("", "name of the model that rewrites statements, at an endpoint"),
    "url": ("http://127.0.0.1:8000/v1", "base URL of the endpoint"),
    "key_env": ("", "environment variable that holds the endpoint's key"),
    "insecure": (False, "allow plain http to another machine"),
    "concurrency": (16, "requests in flight"),
}


def main(argv):
    listing = argv[:1] == ["list"]  # writes nothing, so it makes no directory
    flags = {k: v for k, v in FLAGS.items() if not (listing and k == "workdir")}
    _, workdir, f = args.parse(argv, flags)
    action, *names = f.args or [""]
    if action not in ("list", *ACTIONS):
        raise UserError(f"data: '{action}' is not one of list, {', '.join(ACTIONS)}")
    if action == "list":
        if names:
            raise UserError(f"data list: takes no name, not '{' '.join(names)}'")
        print(catalogue(fetch.pins(shipped.locate(f.pins))))
        return
    if not names or (action != "prepare" and len(names) != 1):
        wanted = "names of data sets" if action == "prepare" else "the name of one set"
        raise UserError(f"data {action}: takes {wanted}, not '{' '.join(names)}'")
    if f.n < 1:
        raise UserError(f"--n: expected at least 1, got {f.n}")
    perturb.check(*f.conditions)
    f.split = tuple(s for s in f.split.split(",") if s)
    for name in names:
        ACTIONS[action](name, f, workdir)


def prepare(name: str, f, workdir: Path) -> None:
    if loader.is_procedural(name):
        print(loader.prepare(name, preparing.sizes(f.size), workdir / "data"))
        return
    if f.size and (name in SETS or f.source != "hub"):
        raise UserError(f"--size: {name} has the examples it has; leave it out")
    pins = fetch.pins(shipped.locate(f.pins)) if name in SETS else {}
    pin = pins.get(name, fetch.Pin())
    pin = pin._replace(repo=f.repo or pin.repo, revision=f.revision or pin.revision)
    places = workdir / "data", workdir / "downloads"
    request = preparing.Request(name, *places, f.split, f.source, pin, f.seed)
    report = functools.partial(print, flush=True)
    print("\n".join(preparing.prepare(request, bar, report)))


def show(name: str, f, workdir: Path) -> None:
    footer, procedural = "", loader.is_procedural(name)
    if procedural:
        split = ",".join(f.split) or "validation"
        examples = list(loader.source_of(name)(split, f.n))
    else:
        split, stored, report = next(preparing.stored(name, f.split, workdir / "data"))
        examples = [stored[i] for i in range(min(f.n, len(stored)))]
        counts = ", ".join(f"{rule} {n}" for rule, n in report.rules.items())
        footer = f"\n\nstatement rules of the split: {counts}"
    if f.texts:
        examples = list(texts.apply(examples, texts.read(Path(f.texts))))
    shown = [preview.describe(e, f.conditions, f.style, procedural) for e in examples]
    path = workdir / f"{user_code.short(name)}-{split}.png"
    preview.write_contact_sheet(path, examples)
    text = "\n\n".join(shown)
    print(f"{text}{footer}\n\npictures: {path}")


def check_splits(name: str, f, workdir: Path) -> None:
    if loader.is_procedural(name):
        raise UserError(f"data check: {name} is made on the spot; its tests check it")
    for split, stored, report in preparing.stored(name, f.split, workdir / "data"):
        known = SETS[name].splits.get(split) if name in SETS else None
        print(check.summary(name, split, check.check(known, stored, report)))


def write_texts(name: str, f, workdir: Path) -> None:
    for split, stored, _ in preparing.stored(name, f.split, workdir / "data"):
        path = workdir / f"{name}-{split}.texts.jsonl"
        if not f.model:
            texts.write(path, map(texts.entry, stored))
            print(path)
            continue
        with (
            http.Client(endpoint(f, f.model)) as client,
            bar(f"{name} {split}: {f.model}", len(stored)) as advance,
        ):
            ask = lambda prompts: http.ask_texts(client, prompts, 128)  # noqa: E731
            fallbacks = texts.rewrite(stored, ask, f.model, path, advance)
        print(f"{path}: {fallbacks} sentences fell back to their templates")


ACTIONS = dict(prepare=prepare, show=show, check=check_splits, texts=write_texts)
