"""Train one seed of one recipe: data, policy, optimizer, steps, checkpoints, export.

`run` is what `vlmrl train` calls, with a run directory; `train` is the same from Python
on a list of Examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jax
import optax

from vlmrl import metrics, perturb, sharding
from vlmrl.client.cache import Budget
from vlmrl.data import distributed, loader
from vlmrl.eval import records
from vlmrl.judges import named
from vlmrl.judges.judge import Judge
from vlmrl.loops import watch
from vlmrl.loops.evaluate import evaluator
from vlmrl.models import hf, peft, quant
from vlmrl.models import lora as adapters
from vlmrl.policy import Policy
from vlmrl.rl import check as recipe_check
from vlmrl.rl import loop, update
from vlmrl.rl import recipe as recipes
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.recipe_facts import recipe_facts
from vlmrl.run import checkpoint, directory, hosts
from vlmrl.run.phases import Phases, Stopped
from vlmrl.run.progress import SILENT, Display
from vlmrl.types import Example, Record, UserError

READ = (  # how a model is loaded
    "style",
    "buckets",
    "pixels",
    "dtype",
    "compute",
    "quantize",
)

NUMBERS = ("bool", "int", "float")  # kinds of column that keep_best may average


class Data(NamedTuple):
    """What is trained on, see `data.loader.mixture`."""

    source: str
    split: str
    size: int
    weights: Sequence[float] = ()
    texts: str = ""


class Evaluation(NamedTuple):
    """Evaluations on held-out examples while a run trains."""

    source: str  # '': the source that is trained on
    split: str
    size: int
    every: int  # steps between evaluations; 0: none
    conditions: Sequence[str]
    max_tokens: int
    start: bool = False  # also before the first step
    texts: str = ""


class Saving(NamedTuple):
    """When a checkpoint is written, and how many stay."""

    every: int  # steps
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
    data: Data
    evaluation: Evaluation
    saving: Saving
    logging: Logging = Logging()
    adapter: adapters.Adapter | None = None  # trained instead of all parameters


class TrainingData(NamedTuple):
    source: Any  # examples, or several sequences of them, see `loader.batches`
    weights: list[float] | None  # of several
    held_out: list[Example]


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
    held_out, best = settings["eval"], settings.get("keep_best", "")
    for name in held_out["conditions"]:
        perturb.check(name)
    column, _, condition = best.partition("/")
    kinds = {f for f, kind in Record.__annotations__.items() if kind in NUMBERS}
    if best and (column not in kinds or condition not in held_out["conditions"]):
        raise UserError(
            f"config.keep_best is '{best}', expected a number of the records and a "
            "condition of config.eval.conditions, as correct/base"
        )
    devices = jax.device_count() // max(1, settings["mesh"]["tensor"])
    pieces, prompts = recipe.judge.parts, settings["prompts"]
    for text, parts in (
        ("devices", devices),
        (f"devices in each of {pieces} parts (config.judge.parts)", devices * pieces),
        ("microbatches (config.learner.microbatches)", recipe.learner.microbatches),
    ):
        if prompts < 1 or prompts % parts:
            raise UserError(
                f"config.prompts is {prompts}, expected a multiple of the {parts} "
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
        quant.check(quantize)
    if compute and rank:
        raise UserError(
            f"config.compute is '{compute}' beside an adapter (config.lora.rank): its "
            "base does not learn, so expected compute='' and the base in config.dtype"
        )


def load_data(data: Data, held_out: Evaluation, where: Path) -> TrainingData:
    """Return the examples of a run. Procedural sources are written below `where`;
    others have been prepared there or elsewhere (`loader.examples_of`)."""

    def read():
        source, weights = loader.mixture(
            data.source, data.split, data.size, where, data.weights, data.texts
        )
        examples = loader.examples_of(
            held_out.source or data.source,
            held_out.split,
            held_out.size,
            where,
            held_out.texts,
        )
        return TrainingData(source, weights, list(examples))

    if hosts.first():  # the others read what the first one wrote
        read()
    hosts.wait("data")
    return read()


class Actor(NamedTuple):
    """The policy that is trained, and the way back to the model that it began as."""

    policy: Policy
    frozen: tuple[str, ...]  # parameters of the base under an adapter
    plain: Callable  # params -> parameters of that model, to measure and to export


def adapt(policy: Policy, adapter: adapters.Adapter | None, seed: int) -> Actor:
    """Return the Actor of a run: with an adapter, a fresh one on the policy's own
    parameters, which then take no gradient. Its `plain` merges the adapter, or, where
    that would copy a base in 8 bits into a wider type, adds it as layers are read."""
    if adapter is None:
        return Actor(policy, (), lambda params: params)
    base, model = policy.model, adapters.attach(policy.model, adapter)
    params = adapters.start(base, adapter, policy.params, jax.random.key(seed))
    actor = policy._replace(model=model, params=params)
    small = any(isinstance(p, quant.Int8) for p in policy.params.values())
    add = adapters.joined if small else adapters.merge
    return Actor(actor, tuple(base.table), lambda params: add(base, adapter, params))


def make_optimizer(
    training: Training, actor: Actor
) -> tuple[optax.GradientTransformation, update.TrainState]:
    """Return the optimizer of a run and its state before the first step."""
    options, ema = training.recipe.optimizer, bool(training.recipe.learner.ema)
    table = update.live_of(actor.policy.model.table, options.freeze)
    tx = update.optimizer(options, table, steps=training.steps)
    state = update.init_state(
        actor.policy.params, tx, freeze=options.freeze, ema=ema, offload=options.offload
    )
    return tx, state


def batches_of(data: TrainingData, mesh, *, seed: int, prompts: int, start: int):
    """Return (batches, example_at): this run's batches from a position of its data
    stream on, and the example at any position."""
    stream = loader.stream_of(data.source, seed=seed, weights=data.weights)
    index, count = sharding.part(mesh)
    batches = loader.batches(
        data.source,
        weights=data.weights,
        seed=seed,
        batch=prompts,
        start=start,
        process_index=index,
        process_count=count,
    )
    if count > 1:
        batches = distributed.whole_batches(
            batches, stream.__getitem__, index, hosts.whole
        )
    return loader.TimedIterator(batches), stream.__getitem__


class Evaluator(NamedTuple):
    """Evaluations of one run: records, learning curve, score."""

    training: Training
    workdir: Path
    seed: int
    measure: Callable  # see `loops.evaluate.evaluator`
    held_out: list[Example]
    plain: Callable  # see `Actor`
    phases: Phases

    def due(self, step: int) -> bool:
        """Return whether a run that is at `step` evaluates there."""
        every = self.training.evaluation.every
        if not step:
            return self.training.evaluation.start
        return bool(every) and (step % every == 0 or step == self.training.steps)

    def __call__(self, step: int, state: update.TrainState) -> float | None:
        """Write the records of a step, unless they are there; return the score by which
        the best checkpoint is kept."""
        folder = self.workdir / "records"
        path = folder / f"step-{step:06d}.parquet"
        if hosts.agree(not path.exists()):
            self.phases("eval", step)
            rows = self.measure(
                self.plain(update.averaged(state)),
                self.held_out,
                recipe=self.training.name,
                seed=self.seed,
                step=step,
                split=self.training.evaluation.split,
                **recipe_facts(self.training.recipe),
                progress=lambda n: self.phases("eval"),
            )
            if hosts.first():
                records.write(path, rows)
        if hosts.first():
            watch.course_of(self.workdir, folder, step)
        hosts.wait("records")  # all read what the first one wrote
        best = self.training.saving.best
        return score_of(path, best) if best else None


def run(
    policy: Policy,
    training: Training,
    *,
    workdir: Path,
    seed: int,
    data: TrainingData | None = None,
    phases: Phases | None = None,
    display: Display = SILENT,
) -> tuple[dict, list[Path]]:
    """Train one seed in a run directory, resuming from its newest checkpoint.

    Args:
      policy: its parameters become the run's, and are given up with its first update.
      data: None reads it (`load_data`).
      phases: of the run that this is part of.
      display: where progress is shown.
    Returns:
      (parameters, record files of its evaluations).
    Raises:
      Stopped: on request, the newest state saved.
    """
    phases = phases or Phases()
    folder = workdir / "records"
    if hosts.first():
        folder.mkdir(parents=True, exist_ok=True)
    data = data or load_data(
        training.data, training.evaluation, workdir.parent / "data"
    )
    measure = evaluator(
        policy,
        training.evaluation.conditions,
        max_tokens=training.evaluation.max_tokens,
        batch=min(16, len(data.held_out)),
        gather=training.recipe.sampling.gather_params,
    )
    actor = adapt(policy, training.adapter, seed)
    recipe = training.recipe
    judge, client = judge_of(recipe, workdir)
    freeze = (*recipe.optimizer.freeze, *actor.frozen)
    recipe = recipe._replace(
        judge=recipe.judge._replace(name=judge),
        optimizer=recipe.optimizer._replace(freeze=freeze),
    )
    training = training._replace(recipe=recipe)
    evaluate = Evaluator(
        training, workdir, seed, measure, data.held_out, actor.plain, phases
    )
    try:
        carry = _train(actor, training, data, evaluate, display)
    finally:
        if client:
            client.close()
    phases("checkpoint", training.steps)
    params = export(policy, training, actor, update.averaged(carry.state), workdir)
    return params, [folder / p.name for p in sorted(folder.glob("*.parquet"))]


def _train(
    actor: Actor,
    training: Training,
    data: TrainingData,
    evaluate: Evaluator,
    display: Display,
) -> loop.Carry:
    """Return the Carry after the last step; checkpoints, metrics, evaluations and
    sample rollouts are written on the way."""
    workdir, seed, phases = evaluate.workdir, evaluate.seed, evaluate.phases
    recipe, last, saving = training.recipe, training.steps, training.saving
    tx, state = make_optimizer(training, actor)
    carry = loop.begin(state, recipe, prompts=training.prompts)
    points = workdir / "checkpoints"
    restored = checkpoint.latest(points)
    if restored is not None:
        carry, _ = checkpoint.restore(points, restored, carry)
    batches, example_at = batches_of(
        data,
        actor.policy.mesh,
        seed=seed,
        prompts=training.prompts,
        start=carry.position,
    )
    steps = loop.train(
        actor.policy,
        recipe,
        batches,
        tx,
        carry,
        seed=seed,
        last=last,
        example_at=example_at,
        phase=phases,
    )
    if restored is not None:  # the fresh state is not read any more
        jax.tree.map(lambda x: x.delete(), state)
    save = checkpoint.Saver(
        points,
        keep=saving.keep,
        minutes=saving.minutes,
        saved=restored or 0,
        meta={"lora": training.adapter._asdict()} if training.adapter else None,
    )
    step = restored or 0
    try:
        with (
            metrics.Writer(
                workdir, restored=restored, **_log_options(training, seed, step)
            ) as writer,
            display.bar(f"train {training.name} seed {seed}", last, step) as advance,
        ):
            # Before the first step, or where a run was stopped before it evaluated.
            if evaluate.due(step):
                evaluate(step, carry.state)
            for done in steps:
                step, carry = done.step, done.carry
                phases.switch("log", step)
                row = _log(done, workdir, seed, training, phases, batches)
                writer.write(step, row)
                advance(1, f"reward {row['reward/total']:.2f}")
                score = evaluate(step, carry.state) if evaluate.due(step) else None
                phases("checkpoint", step)
                now = step % saving.every == 0 or step == last
                save(step, carry, score, now=now)
            save.finish()
    except Stopped:
        phases.switch("checkpoint")
        save(step, carry, None, now=step > 0)
        save.finish()
        raise
    return carry


def _log_options(training: Training, seed: int, step: int) -> dict:
    """Options of `metrics.Writer`; none where no step is left to log."""
    logging = training.logging
    if step >= training.steps:
        return {}
    wandb = {"project": logging.wandb, "name": f"{training.name}-{seed}"}
    return {
        "tensorboard": logging.tensorboard,
        "wandb": wandb if logging.wandb else None,
    }


def _log(done: loop.TrainStep, workdir, seed, training, phases, batches) -> dict:
    """Return a step's row of metrics; write its times and, where due, its rollouts."""
    step, every = done.step, training.logging.rollouts
    row = metrics.values(done.metrics)
    spent = phases.row()
    row |= {"seconds": spent["seconds"], "input_wait": batches.taken()}
    directory.append(workdir / "time.jsonl", {"step": step, **spent})
    if every and (step % every == 0 or step == training.steps):
        lag = int(row["lag"])
        watch.rollouts_of(
            workdir, done.samples, done.advantages, step=step, lag=lag, seed=seed
        )
    return row


def export(
    policy: Policy, training: Training, actor: Actor, params: dict, workdir: Path
) -> dict:
    """Write WORKDIR/model, and WORKDIR/adapter where one was trained, unless they are
    there; return the parameters of the model."""
    target = workdir / "adapter"
    if training.adapter and not hosts.agree(target.exists()):
        peft.save(target, policy.model, training.adapter, params, policy.source)
    target, params = workdir / "model", actor.plain(params)
    if not hosts.agree(target.exists()):
        hf.save(target, policy.model, params, policy.source, policy.compute)
    return params


def judge_of(recipe: Recipe, workdir: Path):
    """Return (the recipe's judge, loaded where it is one by name; the client of its
    endpoint, None without one). Replies are cached in workdir/replies.jsonl. Of several
    hosts the first alone asks; the others get a judge that is never asked."""
    judge, settings = recipe.judge.name, recipe.judge
    if not judge or not isinstance(judge, str) or judge in recipe_check.JUDGES:
        return judge, None
    endpoint = recipe_check.endpoint(settings)
    if jax.process_count() > 1:
        if any(
            k == "model" for k, _ in named.parse(judge, endpoint, "config.judge.name")
        ):
            raise UserError(
                f"config.judge.name={judge!r}: a model judges in runs of one process; "
                "serve it, and name http:MODEL"
            )
        if not hosts.first():
            return Judge(judge, lambda items: [], {}), None
    options = named.JudgeOptions(
        endpoint,
        params={"temperature": 0.0, "max_tokens": settings.max_tokens},
        seconds=settings.seconds,
        cache=workdir / "replies.jsonl",
        budget=Budget(settings.budget_tokens),
    )
    loaded = named.named(judge, options, field="config.judge.name")
    return loaded.judge, loaded.client


def score_of(path: Path, best: str) -> float:
    """Return the mean of a column of a record file over a condition, 'correct/base'."""
    column, _, condition = best.partition("/")
    table = records.read(path).select(["condition", column]).to_pydict()
    pairs = zip(table["condition"], table[column], strict=True)
    return fmean(float(value) for name, value in pairs if name == condition)
