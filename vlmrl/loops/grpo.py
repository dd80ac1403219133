"""Train one seed of one recipe: data, policy, optimizer, steps, checkpoints, export.

`run` is what `vlmrl train` calls, with a run directory; `train` is the same from Python
on a list of Examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from vlmrl import metrics, perturb, sharding, user_code
from vlmrl import policy as policies
from vlmrl.client.cache import Budget
from vlmrl.data import distributed, loader
from vlmrl.eval import records
from vlmrl.eval.record_builder import RunLabels
from vlmrl.judges import named
from vlmrl.judges.judge import Judge
from vlmrl.loops import watch
from vlmrl.loops.evaluate import (
    EvalPart,
    EvalSettings,
    Evaluator,
    load_examples,
    write_records,
)
from vlmrl.loops.run_config import Data, Evaluation, Training, check_prompts
from vlmrl.models import hf, peft, quant
from vlmrl.models import lora as adapters
from vlmrl.policy import Policy
from vlmrl.prompts import shapes
from vlmrl.prompts.scan import describe, scan
from vlmrl.rl import augment, loop, rollouts, update
from vlmrl.rl import check as recipe_check
from vlmrl.rl.recipe import Recipe
from vlmrl.rl.recipe_facts import recipe_facts
from vlmrl.run import checkpoint, directory, hosts
from vlmrl.run.phases import Phases, Stopped
from vlmrl.run.progress import SILENT, Display
from vlmrl.types import Example, Skip, UserError


class TrainingData(NamedTuple):
    source: Any  # examples, or several sequences of them, see `loader.batches`
    weights: list[float] | None  # of several
    held_out: list[Example]


def load_data(data: Data, held_out: Evaluation, where: Path) -> TrainingData:
    """Return the examples of a run. Procedural sources are written below `where`;
    others have been prepared there or elsewhere (`loader.examples_of`)."""

    def read():
        return loader.mixture(
            data.source, data.split, data.size, where, data.weights, data.texts
        )

    if hosts.first():  # the others read what the first one wrote
        read()
    hosts.wait("data")
    examples = load_examples(
        held_out.source or data.source,
        held_out.split,
        held_out.size,
        where,
        held_out.texts,
    )
    return TrainingData(*read(), examples)


class FittedData(NamedTuple):
    policy: Policy  # with the static shapes of the data
    data: TrainingData  # without what can't be learned from
    skips: list[Skip]


def fit_data(policy: Policy, training: Training, data: TrainingData) -> FittedData:
    """Scan the training examples under every condition of the mix: leave out what can't
    be asked and choose the static shapes of prompts."""
    names = list(
        dict.fromkeys(["base", *map(augment.condition_of, training.recipe.mix)])
    )

    def rows(example: Example):
        return perturb.conditioned(example, names).rows

    many = data.weights is not None
    sources, sizes, skips = [], [], []
    for source in data.source if many else [data.source]:
        scanned = scan(source, policy.processor, policy.style, rows)
        skips += scanned.skips.values()
        usable = scanned.indices
        sources.append(loader.Chosen(source, usable) if scanned.skips else source)
        whole = scanned.sizes[usable]
        whole[:, 0], whole[:, [1, 4, 5]] = scanned.longest[usable], 0
        sizes.append(whole)
    sizes = np.concatenate(sizes)
    if len(sizes):
        cost = shapes.costs(policy.processor.geometry, 1)
        chosen = shapes.training_shapes(sizes, cost, training.prompts)
        policy = policy._replace(shapes=chosen)
    data = data._replace(source=sources if many else sources[0])
    return FittedData(policy, data, skips)


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
    params = adapters.init(base, adapter, policy.params, jax.random.key(seed))
    actor = policy._replace(model=model, params=params)
    small = any(isinstance(p, quant.Int8) for p in policy.params.values())
    add = adapters.adapted_params if small else adapters.merge
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


def start(
    actor: Actor,
    training: Training,
    tx: optax.GradientTransformation,
    carry: loop.Carry,
    data: TrainingData,
    *,
    seed: int,
    phase: Callable[..., None] = lambda name, step=None: None,
) -> tuple[Iterator[loop.TrainStep], loader.TimedIterator]:
    """Return the steps of a run from `carry` on, and the batches that they read.

    Args:
      phase: see `rollouts.make_context`.
    """
    stream = loader.stream_of(data.source, seed=seed, weights=data.weights)
    index, count = sharding.part(actor.policy.mesh)
    batches = loader.batches(
        data.source,
        weights=data.weights,
        seed=seed,
        batch=training.prompts,
        start=carry.position,
        part=(index, count),
    )
    if count > 1:
        batches = distributed.whole_batches(
            batches, stream.__getitem__, index, hosts.whole
        )
    batches = loader.TimedIterator(batches)
    context = rollouts.make_context(
        actor.policy, training.recipe, batches, seed=seed, phase=phase
    )
    last = training.steps
    steps = loop.train(context, tx, carry, last=last, example_at=stream.__getitem__)
    return steps, batches


class PeriodicEvaluation(NamedTuple):
    """Evaluations of one run while it trains: records, learning curve, score."""

    training: Training
    workdir: Path
    seed: int
    part: EvalPart
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
        training, folder = self.training, self.workdir / "records"
        path = folder / f"step-{step:06d}.parquet"
        if hosts.agree(not path.exists()):
            self.phases("eval", step)
            split, facts = training.evaluation.split, recipe_facts(training.recipe)
            facts["code"] = user_code.stamp(training)
            write_records(
                path,
                [self.part],
                self.plain(update.averaged(state)),
                RunLabels(training.name, self.seed, step, split, **facts),
                lambda n: self.phases("eval"),
            )
        if hosts.first():
            watch.write_learning_curve(self.workdir, step)
        hosts.wait("records")  # all read what the first one wrote
        best = training.saving.best
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
    policy, data, skips = fit_data(policy, training, data)
    if hosts.first():
        directory.add_skips(workdir / "skips.jsonl", skips)
    if skips:
        display.say(describe(skips, len(skips) + _count(data)))
    evaluation = training.evaluation
    settings = EvalSettings(
        max_tokens=evaluation.max_tokens,
        batch=min(16, max(1, len(data.held_out))),
        gather_params=training.recipe.sampling.gather_params,
    )
    evaluator = Evaluator(policy, evaluation.conditions, settings)
    actor = adapt(policy, training.adapter, seed)
    recipe = training.recipe
    judge, client = judge_of(recipe, workdir)
    freeze = (*recipe.optimizer.freeze, *actor.frozen)
    recipe = recipe._replace(
        judge=recipe.judge._replace(name=judge),
        optimizer=recipe.optimizer._replace(freeze=freeze),
    )
    training = training._replace(recipe=recipe)
    part = EvalPart(evaluator, data.held_out)
    evaluate = PeriodicEvaluation(training, workdir, seed, part, actor.plain, phases)
    try:
        carry = _train(actor, training, data, evaluate, display)
    finally:
        if client:
            client.close()
    phases("checkpoint", training.steps)
    params = export(policy, training, actor, update.averaged(carry.state), workdir)
    return params, [folder / p.name for p in sorted(folder.glob("*.parquet"))]


def _count(data: TrainingData) -> int:
    many = data.weights is not None
    return sum(map(len, data.source if many else [data.source]))


class Trained(NamedTuple):
    policy: Policy  # with the trained parameters
    metrics: list[dict[str, float]]  # of every step


def train(
    policy: str | Policy,
    examples: Sequence[Example],
    reward: str | Callable = "grpo",
    *,
    steps: int = 50,
    prompts: int = 16,
    seed: int = 0,
    workdir: str | Path | None = None,
    **recipe,
) -> Trained:
    """Train a policy on examples with GRPO, or another recipe.

    With a `workdir` the run writes checkpoints and metrics there, exports the model to
    WORKDIR/model, and the same call resumes it.

    Args:
      policy: what `vlmrl.load` returns, or the name that it takes. Its own parameters
        stay as they are.
      examples: shuffled anew by `seed` in every epoch.
      reward: a key of `rl.rewards.REWARDS`, `path/to/file.py:name`, or a function of a
        `types.Completion` that returns a number or an `rl.rewards.Reward`.
      steps, prompts: updates, and prompts per update.
      recipe: fields of `rl.recipe.Recipe`, sections as mappings or records.

    Returns:
      Trained.

    Raises:
      UserError: fields that contradict each other, too few examples.
      UserCodeError: a function of one's own raised, or returned no finite number.

    >>> train("tiny", examples, reward=lambda completion: len(completion.text) / 100,
    ...     steps=10, sampling={"max_tokens": 72})
    """
    user_code.refresh()
    policy = policies.load(policy) if isinstance(policy, str) else policy
    chosen = recipe_check.check({**recipe, "reward.name": reward}, "recipe")
    check_prompts(prompts, chosen, sharding.batch_shards(policy.mesh), "")
    training = Training("train", chosen, steps, prompts)
    data = TrainingData(list(examples), None, [])
    actor = Actor(
        policy._replace(params=jax.tree.map(lambda x: x.copy(), policy.params)),
        (),
        lambda params: params,
    )
    if workdir is not None:
        workdir = Path(workdir)
        user_code.save(workdir, chosen)
        params, _ = run(actor.policy, training, workdir=workdir, seed=seed, data=data)
        rows = metrics.read(workdir / "metrics.jsonl")
        return Trained(policy._replace(params=params), rows)
    judge = chosen.judge.name
    if user_code.is_own(judge):
        judge = named.named(judge, field="recipe.judge.name").judge
        chosen = chosen._replace(judge=chosen.judge._replace(name=judge))
        training = training._replace(recipe=chosen)
    elif isinstance(judge, str) and judge not in ("", *recipe_check.JUDGES):
        raise UserError(
            f"recipe.judge.name={judge!r} keeps replies: expected a workdir"
        )
    fitted, data, _ = fit_data(actor.policy, training, data)
    actor = actor._replace(policy=fitted)
    tx, state = make_optimizer(training, actor)
    carry, rows = loop.begin(state, chosen, prompts=prompts), []
    for done in start(actor, training, tx, carry, data, seed=seed)[0]:
        carry = done.carry
        rows.append({"step": done.step, **metrics.values(done.metrics)})
    return Trained(policy._replace(params=update.averaged(carry.state)), rows)


def _train(
    actor: Actor,
    training: Training,
    data: TrainingData,
    evaluate: PeriodicEvaluation,
    display: Display,
) -> loop.Carry:
    """Return the Carry after the last step; checkpoints, metrics, evaluations and
    sample rollouts are written on the way."""
    workdir, seed, phases = evaluate.workdir, evaluate.seed, evaluate.phases
    last, saving = training.steps, training.saving
    tx, state = make_optimizer(training, actor)
    carry = loop.begin(state, training.recipe, prompts=training.prompts)
    points = workdir / "checkpoints"
    restored = checkpoint.latest(points)
    if restored is not None:
        carry, _ = checkpoint.restore(points, restored, carry)
    steps, batches = start(actor, training, tx, carry, data, seed=seed, phase=phases)
    if restored is not None:  # the fresh state is not read any more
        jax.tree.map(lambda x: x.delete(), state)
    save = checkpoint.Saver(
        points,
        keep=saving.keep,
        minutes=saving.minutes,
        saved=restored or 0,
        meta={
            "tags": actor.policy.processor.tags.mode,
            **({"lora": training.adapter._asdict()} if training.adapter else {}),
        },
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
                due = saving.every and step % saving.every == 0
                now = bool(due) or step == last
                save(step, carry, score, now=now)
            save.finish()
    except (Stopped, user_code.UserCodeError) as error:
        # A function that raises does so before the update, on every host alike; one
        # that raises on some hosts only would leave the others waiting.
        if isinstance(error, Stopped) or jax.process_count() == 1:
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
        watch.write_rollouts(
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
        plain = policy.processor.tags.mode == "plain"
        hf.save(
            target,
            policy.model,
            params,
            policy.source,
            policy.compute,
            plain_tags=plain,
        )
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
    condition = perturb.short(condition)
    return fmean(float(value) for name, value in pairs if name == condition)
