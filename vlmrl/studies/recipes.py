"""Train several recipes from one start over seeds and evaluate them alike: the demo,
the dynamics study and the remedies are configs of it.

Every result is a file of the run directory and is not computed again, so the same
command resumes a study where it stopped.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import jax

from vlmrl import perturb, user_code
from vlmrl import policy as policies
from vlmrl.data import loader
from vlmrl.eval import records
from vlmrl.eval.record_builder import RunLabels
from vlmrl.loops import grpo, run_config
from vlmrl.loops.evaluate import (
    EvalPart,
    Evaluator,
    settings_of,
    write_records,
)
from vlmrl.report import assemble, claim, render
from vlmrl.rl.recipe_facts import recipe_facts
from vlmrl.run import directory
from vlmrl.run.progress import SILENT, Display
from vlmrl.studies import claims, remedies
from vlmrl.types import UserError

# Fields of a recipe that the study decides.
OWN = ("algorithm", "model", *run_config.READ, "mesh")
SHARED = {"quantize": "", "dtype": "float32", "compute": ""}  # how the model is held


class Outcome(NamedTuple):
    report: assemble.Report
    verdicts: list[render.Table]  # on claims and on remedies, where asked for
    minutes: float


def run(
    workdir: Path, c: dict, *, display: Display = SILENT, verdicts: bool = False
) -> Outcome:
    """Train and evaluate every recipe of a study, and write its report.

    Args:
      c: fields of the config: about, recipes, model, style, tags, split, size,
        perturbed_size, ood_size, conditions and kernel.
      display: where progress is shown.
      verdicts: also write the tables of claims and of remedies.
    """
    began = time.monotonic()
    recipes = c["recipes"]
    _check(recipes)
    perturb.check(*c["conditions"])
    policy = policies.load(c["model"], style=c["style"], tags=c["tags"])
    display.say(policy.processor.about_tags())
    settings = settings_of(c["kernel"])
    every, base = (
        Evaluator(policy, names, settings) for names in (c["conditions"], ("base",))
    )
    for line in directory.describe_run(workdir, c):
        display.say(line)
    first = next(iter(recipes.values()))
    sizes = {c["split"]: c["size"]}
    sizes |= {"ood": c["ood_size"]} if c["ood_size"] else {}
    where = loader.prepare(first["data"]["source"], sizes, workdir / "data")
    sets = {split: list(loader.load(where, split)) for split in sizes}
    perturbed = {c["split"]: c["perturbed_size"] or c["size"], "ood": 0}
    assemble.write_images(workdir, sets[c["split"]])
    files = []

    def evaluate(params, recipe, seed, step, **facts):
        for split, examples in sets.items():
            path = workdir / "records" / f"{recipe}-seed-{seed}-{split}.parquet"
            files.append(path)
            if path.is_file():
                continue
            n = perturbed[split]
            parts = [EvalPart(every, examples[:n]), EvalPart(base, examples[n:])]
            labels = RunLabels(recipe, seed, step, split, **facts)
            with display.bar(f"evaluate {recipe}, {split}", len(examples)) as advance:
                write_records(path, parts, params, labels, advance)

    display.say("1. The warm start, under every condition")
    evaluate(policy.params, "warm-start", 0, 0, stage="start")
    for number, given in enumerate(recipes.values(), 2):
        settings = {name: v for name, v in given.items() if name not in OWN}
        seeds = settings.pop("seeds")
        training = run_config.from_config(settings)
        name, steps = training.name, training.steps
        facts = recipe_facts(training.recipe) | {"code": user_code.stamp(given)}
        display.say(f"{number}. GRPO, recipe '{name}'")
        for seed in seeds:
            own = jax.tree.map(lambda x: x.copy(), policy.params)
            params, during = grpo.run(
                policy._replace(params=own),
                training,
                workdir=workdir / name / f"seed-{seed}",
                seed=seed,
                display=display,
            )
            files.extend(during)
            evaluate(params, name, seed, steps, **facts)
    table = records.concat([records.read(f) for f in files])
    records.write(workdir / "records.parquet", table)
    minutes = (time.monotonic() - began) / 60
    info = c["about"] | _info(c, policy, minutes)
    report = claims.build_report(workdir, info, table=table)
    tables = []
    if verdicts:
        tables = [
            claim.as_table(report.claims),
            remedies.as_table(remedies.judge(table, split=c["split"])),
        ]
        render.write(workdir / "tables", tables)
    return Outcome(report, tables, minutes)


def _check(recipes: dict[str, dict]) -> None:
    for name, settings in recipes.items():
        run_config.check(settings)
        for field, shared in SHARED.items():
            if settings[field] != shared:
                raise UserError(
                    f"config.recipes.{name}.{field} is '{settings[field]}', expected "
                    f"'{shared}': the recipes of a study share one model"
                )


def _info(c: dict, policy, minutes: float) -> dict:
    recipes = list(c["recipes"].values())
    first = recipes[0]
    return {
        "Model": f"{c['model']}, {policy.model.size / 1e6:.2f} M parameters",
        "Training": (
            f"{first['prompts']} prompts × {first['sampling']['group_size']} "
            "completions a step: "
            + ", ".join(
                f"{r['recipe']} ({r['steps']} steps, reward {r['reward']['name']})"
                for r in recipes
            )
        ),
        "Seeds": ", ".join(map(str, first["seeds"])),
        "Test": (
            f"{c['size']} examples, {c['perturbed_size'] or c['size']} of them under "
            f"{len(c['conditions'])} conditions, greedy"
        ),
        "Time": f"{minutes:.1f} minutes in all",
    }
