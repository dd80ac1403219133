"""The whole job in small, on a laptop: fine-tune a vision-language model with GRPO and
see what that did to its robustness and its reasoning.

Evaluates the warm start under misleading captions and wrong chains of thought, trains
an accuracy-only and a faithfulness recipe, evaluates both, and leaves records.parquet,
metrics.json, tables/, figures/ and report.html in the run directory. The same command
again continues where it stopped.
"""

from __future__ import annotations

import time

from vlmrl.data import loader
from vlmrl.engine import policy as policies
from vlmrl.eval import records
from vlmrl.eval.evaluate import evaluator
from vlmrl.main import args, report
from vlmrl.main import train as training
from vlmrl.main.progress import CONSOLE, bar

HELP = "the whole job in small: evaluate, fine-tune with GRPO, evaluate, report"
FLAGS = {
    "config": ("configs/tiny/demo.py", "what the demo does"),
    "workdir": ("runs/demo", "run directory"),
}


def main(argv):
    config, workdir, _ = args.parse(argv, FLAGS)
    began = time.monotonic()
    c = config.to_dict()
    recipes = c["recipes"]
    for settings in recipes.values():
        training.check(settings)
    policy = policies.load(c["model"], style=c["style"])
    measure = evaluator(policy, c["conditions"], **c["kernel"])
    training.describe_run(workdir, c)
    first = next(iter(recipes.values()))
    sizes = {c["split"]: c["size"]}
    sizes |= {"ood": c["ood_size"]} if c["ood_size"] else {}
    where = loader.prepare(first["data"]["source"], sizes, workdir / "data")
    sets = {split: list(loader.load(where, split)) for split in sizes}
    report.write_images(workdir, sets[c["split"]])
    files = []

    def evaluate(params, recipe, seed, step):
        for split, examples in sets.items():
            path = workdir / "records" / f"{recipe}-seed-{seed}-{split}.parquet"
            path.parent.mkdir(exist_ok=True)
            files.append(path)
            if path.is_file():
                continue
            what = f"evaluate {recipe}, {split}"
            with bar(what, len(examples)) as advance:
                found = measure(
                    params,
                    examples,
                    recipe=recipe,
                    seed=seed,
                    step=step,
                    split=split,
                    progress=advance,
                )
            records.write(path, found)

    CONSOLE.print("1. The warm start, under every condition")
    evaluate(policy.params, "warm-start", 0, 0)
    for number, settings in enumerate(recipes.values(), 2):
        settings = dict(settings)
        name, steps = settings["recipe"], settings["steps"]
        CONSOLE.print(f"{number}. GRPO, recipe '{name}'")
        for key in ("algorithm", "model", "style", "buckets", "pixels", "mesh"):
            settings.pop(key)
        for seed in settings.pop("seeds"):
            params, during = training.train(
                policy, workdir=workdir / name / f"seed-{seed}", seed=seed, **settings
            )
            files.extend(during)
            evaluate(params, name, seed, steps)
    table = records.concat([records.read(f) for f in files])
    records.write(workdir / "records.parquet", table)
    minutes = (time.monotonic() - began) / 60
    info = _info(c, policy, minutes)
    report.build(workdir, table, report.read_images(workdir), info)
    CONSOLE.print(f"{minutes:.1f} minutes")


def _info(c: dict, policy, minutes: float) -> dict:
    recipes = list(c["recipes"].values())
    first = recipes[0]
    return {
        "title": "RL fine-tuning in small: what it does to robustness and reasoning",
        "summary": (
            "A small vision-language model of the Qwen2.5-VL architecture, before and "
            "after GRPO on procedural scenes, measured under misleading captions and "
            "wrong chains of thought on held-out images."
        ),
        "Model": f"{c['model']}, {policy.model.size / 1e6:.2f} M parameters",
        "Training": (
            f"{first['steps']} steps of {first['prompts']} prompts × "
            f"{first['group_size']} completions per recipe: "
            + ", ".join(f"{r['recipe']} (reward {r['reward']})" for r in recipes)
        ),
        "Seeds": ", ".join(map(str, first["seeds"])),
        "Test": f"{c['size']} examples, {len(c['conditions'])} conditions, greedy",
        "Time": f"{minutes:.1f} minutes in all",
    }
