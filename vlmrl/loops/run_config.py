"""What a run of GRPO is made of, as records, and the checks of a config for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax

from vlmrl import perturb
from vlmrl.answers import reading
from vlmrl.data import loader
from vlmrl.models import lora as adapters
from vlmrl.models import quant
from vlmrl.rl import check as recipe_check
from vlmrl.rl import recipe as recipes
from vlmrl.rl.recipe import Recipe
from vlmrl.types import Record, UserError

READ = (  # how a model is loaded
    "style",
    "tags",
    "pixels",
    "dtype",
    "compute",
    "quantize",
)

NUMBERS = ("bool", "int", "float")  # kinds of column that keep_best may average


class Data(NamedTuple):
    """What is trained on, see `data.loader.mixture`."""

    source: str  # several are parted by commas
    split: str = "train"
    size: int = 0  # examples of each; 0: all it has
    weights: Sequence[float] = ()  # share of each of several; equal if empty
    texts: str = ""  # file of misleading texts; '': the source's own


class Evaluation(NamedTuple):
    """Evaluations on held-out examples while a run trains."""

    source: str = ""  # '': the source that is trained on
    split: str = "validation"
    size: int = 0  # 0: all it has
    every: int = 0  # steps between evaluations; 0: none
    conditions: Sequence[str] = ("base",)
    max_tokens: int = 512
    start: bool = False  # also before the first step
    texts: str = ""  # file of misleading texts; '': the source's own


class Saving(NamedTuple):
    """When a checkpoint is written, and how many stay."""

    every: int = 0  # steps; 0: only after the last
    minutes: float = 0.0  # and after so many minutes without one; 0: never
    keep: int = 2
    best: str = ""  # also keep the best by a column over a condition: 'correct/base'


class Logging(NamedTuple):
    rollouts: int = 0  # steps between sample rollouts on disk; 0: none
    tensorboard: bool = False
    wandb: str = ""  # Weights & Biases project; '': none


class Training(NamedTuple):
    """A run of one recipe; each of its seeds is a `run`."""

    name: str  # of the recipe, in records, tables and figures
    recipe: Recipe
    steps: int
    prompts: int  # groups per step
    data: Data | None = None  # None: given as `TrainingData`
    evaluation: Evaluation = Evaluation()
    saving: Saving = Saving()
    logging: Logging = Logging()
    adapter: adapters.Adapter | None = None  # trained instead of all parameters


def from_config(settings: dict) -> Training:
    """Return the Training of a config's fields, without those of the model (READ,
    'model', 'mesh'), 'algorithm' and 'seeds'."""
    s = dict(settings)
    saving = Saving(
        s.pop("save_every"),
        s.pop("save_minutes", 0.0),
        s.pop("keep"),
        s.pop("keep_best", ""),
    )
    logging = Logging(
        s.pop("save_rollouts", 0), s.pop("tensorboard", False), s.pop("wandb", "")
    )
    lora = s.pop("lora", None)
    name, steps, prompts = s.pop("recipe"), s.pop("steps"), s.pop("prompts")
    data, evaluation = Data(**s.pop("data")), Evaluation(**s.pop("eval"))
    return Training(
        name,
        recipes.make(**s),
        steps,
        prompts,
        data,
        evaluation,
        saving,
        logging,
        adapters.Adapter(**lora) if lora and lora["rank"] else None,
    )


# Fields of a config that the recipe is not made of.
RUN_FIELDS = (
    *("algorithm", "recipe", "model", "mesh", "seeds", "steps", "prompts", *READ),
    *("data", "eval", "save_every", "save_minutes", "keep", "keep_best"),
    *("lora", "save_rollouts", "tensorboard", "wandb"),
)


def check(settings: dict) -> None:
    """Refuse a config that contradicts itself before anything is loaded."""
    recipe = recipe_check.check(
        {name: v for name, v in settings.items() if name not in RUN_FIELDS}
    )
    _check_data(settings)
    _check_model(settings)
    if settings["style"]:
        reading.check(settings["style"])
    held_out, best = settings["eval"], settings.get("keep_best", "")
    perturb.check(*held_out["conditions"])
    column, _, condition = best.partition("/")
    kinds = {f for f, kind in Record.__annotations__.items() if kind in NUMBERS}
    names = [perturb.short(name) for name in held_out["conditions"]]
    if best and (column not in kinds or perturb.short(condition) not in names):
        raise UserError(
            f"config.keep_best is '{best}', expected a number of the records and a "
            "condition of config.eval.conditions, as correct/base"
        )
    devices = jax.device_count() // max(1, settings["mesh"]["tensor"])
    check_prompts(settings["prompts"], recipe, devices)


def check_prompts(
    prompts: int, recipe: Recipe, devices: int, field: str = "config."
) -> None:
    pieces = recipe.judge.parts
    for text, parts in (
        ("devices", devices),
        (f"devices in each of {pieces} parts ({field}judge.parts)", devices * pieces),
        (f"microbatches ({field}learner.microbatches)", recipe.learner.microbatches),
    ):
        if prompts < 1 or prompts % parts:
            raise UserError(
                f"{field}prompts is {prompts}, expected a multiple of the {parts} "
                f"{text}"
            )


def _check_data(settings: dict) -> None:
    data, held_out = settings["data"], settings["eval"]
    names = loader.names_of(data["source"])
    if not names:
        raise UserError("config.data.source is '', expected the name of a data source")
    if len(names) > 1 and not held_out["source"]:
        raise UserError(
            f"config.eval.source is '', but config.data.source is several, "
            f"'{data['source']}': expected the name of a data source"
        )
    if data["split"] == held_out["split"] and (held_out["source"] or names[0]) in names:
        raise UserError(
            f"config.eval.split is '{data['split']}', the split that is trained on"
        )
    if 0 < data["size"] < settings["prompts"]:
        raise UserError(
            f"config.data.size is {data['size']}, fewer than the "
            f"{settings['prompts']} prompts of a step (config.prompts)"
        )


def _check_model(settings: dict) -> None:
    rank = settings.get("lora", {}).get("rank", 0)
    quantize, compute = settings.get("quantize"), settings["compute"]
    if rank < 0:
        raise UserError(f"config.lora.rank is {rank}, expected 0 or more")
    if quantize and not rank:
        raise UserError(
            f"config.quantize is '{quantize}', a base that can't learn, and "
            "config.lora.rank is 0: expected an adapter, or quantize=''"
        )
    if quantize:
        quant.check_method(quantize)
    if compute and rank:
        raise UserError(
            f"config.compute is '{compute}' beside an adapter (config.lora.rank): its "
            "base does not learn, so expected compute='' and the base in config.dtype"
        )
