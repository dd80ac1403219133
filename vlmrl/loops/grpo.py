"""Train one seed of one recipe: data, policy, optimizer, steps, checkpoints."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import jax

from vlmrl import metrics, perturb, sharding
from vlmrl import policy as policies
from vlmrl.client.cache import Budget
from vlmrl.data import loader, shares
from vlmrl.eval import records
from vlmrl.judges import named
from vlmrl.judges.judge import Judge
from vlmrl.loops import watch
from vlmrl.loops.evaluate import evaluator
from vlmrl.models import hf, peft, quant
from vlmrl.models import lora as adapters
from vlmrl.rl import check as recipe_check
from vlmrl.rl import loop, update
from vlmrl.rl import recipe as recipes
from vlmrl.run import checkpoint, directory, hosts
from vlmrl.run.phases import Phases, Stopped
from vlmrl.run.progress import SILENT, Display
from vlmrl.types import Record, UserError

DECAYS = ("constant", "cosine", "linear")

READ = (  # how a model is loaded
    "style",
    "buckets",
    "pixels",
    "dtype",
    "compute",
    "quantize",
)

NUMBERS = ("bool", "int", "float")  # kinds of column that keep_best may average


def check(settings: dict) -> None:
    """Refuse a config that contradicts itself before anything is loaded."""
    for field, value, known in (
        ("optimizer.decay", settings["optimizer"]["decay"], DECAYS),
    ):
        if value not in known:
            names = ", ".join(known)
            raise UserError(f"config.{field} is '{value}', want one of {names}")
    data, held_out = settings["data"], settings["eval"]
    names = loader.names_of(data["source"])
    if not names:
        raise UserError("config.data.source is '', want the name of a data source")
    if len(names) > 1 and not held_out["source"]:
        raise UserError(
            f"config.eval.source: must be given where config.data.source is several, "
            f"'{data['source']}'"
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
    for name in held_out["conditions"]:
        perturb.check(name)
    recipe_check.check(settings)
    rank = settings.get("lora", {}).get("rank", 0)
    if rank < 0:
        raise UserError(f"config.lora.rank is {rank}, want 0 or more")
    quantize = settings.get("quantize")
    if quantize and not rank:
        raise UserError(
            f"config.quantize is '{quantize}', a base that can't learn, and "
            "config.lora.rank is 0: want an adapter, or quantize=''"
        )
    if quantize:
        quant.check(quantize)
    if settings["compute"] and rank:
        raise UserError(
            f"config.compute is '{settings['compute']}' beside an adapter "
            "(config.lora.rank), whose base learns nothing: want compute='' and the "
            "base in config.dtype"
        )
    best = settings.get("keep_best", "")
    column, _, condition = best.partition("/")
    kinds = {f for f, kind in Record.__annotations__.items() if kind in NUMBERS}
    if best and (column not in kinds or condition not in held_out["conditions"]):
        raise UserError(
            f"config.keep_best is '{best}', want a number of the records and a "
            "condition of config.eval.conditions, as correct/base"
        )
    devices = jax.device_count() // max(1, settings["mesh"]["tensor"])
    pieces = settings.get("judging", {}).get("parts", 1)
    for what, parts in (
        ("devices", devices),
        (f"devices in each of {pieces} parts (config.judging.parts)", devices * pieces),
        ("microbatches", settings["microbatches"]),
    ):
        if settings["prompts"] < 1 or settings["prompts"] % parts:
            raise UserError(
                f"config.prompts is {settings['prompts']}, want a multiple of the "
                f"{parts} {what}"
            )


def datasets(data: dict, eval: dict, where: Path):
    """(source and weights to train on, as `loader.batches` takes them; held-out
    examples to evaluate on). Procedural sources are written below `where`; others have
    been prepared there or elsewhere (`loader.examples_of`)."""
    source, weights = loader.mixture(
        data["source"],
        data["split"],
        data["size"],
        where,
        data["weights"],
        data["texts"],
    )
    held_out = loader.examples_of(
        eval["source"] or data["source"],
        eval["split"],
        eval["size"],
        where,
        eval["texts"],
    )
    return source, weights, list(held_out)


def adapted(policy: policies.Policy, how: adapters.Adapter | None, seed: int):
    """(the policy that is trained, plain): with an adapter, a fresh one on the policy's
    own parameters, which then take no gradient. plain(params) gives parameters of the
    policy as it was, to measure and to export: with the adapter merged, or, where that
    would be a wide copy of a base in 8 bits, added as layers are read."""
    if how is None:
        return policy, lambda params: params
    model, base = adapters.attach(policy.model, how), policy.model
    params = adapters.start(base, how, policy.params, jax.random.key(seed))
    actor = policy._replace(model=model, params=params)
    small = any(isinstance(p, quant.Int8) for p in policy.params.values())
    add = adapters.joined if small else adapters.merge
    return actor, lambda params: add(base, how, params)


def train(
    policy: policies.Policy,
    *,
    workdir: Path,
    seed: int,
    recipe: str,
    steps: int,
    prompts: int,
    optimizer: dict,
    data: dict,
    eval: dict,
    save_every: int,
    keep: int,
    save_minutes: float = 0.0,
    keep_best: str = "",
    phases: Phases | None = None,
    display: Display = SILENT,
    lora: dict | None = None,
    save_rollouts: int = 0,
    tensorboard: bool = False,
    wandb: str = "",
    **settings,
) -> tuple[dict, list[Path]]:
    """One seed of one recipe: (parameters, record files of its evaluations).

    Args:
      save_every, save_minutes: a checkpoint every so many steps, and when so many
        minutes have passed without one; 0 minutes for never.
      keep, keep_best: how many checkpoints stay, and what the best of all is told by,
        as 'correct/base': a column of its records, averaged over a condition.
      policy: its parameters become the run's, and are given up with its first update.
      phases: of the run this is part of.
      display: where progress is shown.
      lora: rank, alpha and targets of an adapter to train; rank 0 for none.
      save_rollouts: steps between kept rollouts, 0 for never.
      settings: of the recipe (`rl.recipe.Recipe`).
    Raises:
      Stopped: on request, the newest state saved.
    """
    phases = phases or Phases()
    if hosts.first():
        workdir.mkdir(parents=True, exist_ok=True)
    if hosts.first():  # the others find it there
        datasets(data, eval, workdir.parent / "data")
    hosts.wait("data")
    source, weights, held_out = datasets(data, eval, workdir.parent / "data")
    run_eval = evaluator(
        policy,
        eval["conditions"],
        max_tokens=eval["max_tokens"],
        batch=min(16, len(held_out)),
        gather=settings.get("gather", True),
    )

    opts = dict(optimizer)
    rate = update.schedule(
        peak=opts.pop("peak"),
        warmup=opts.pop("warmup"),
        steps=steps,
        decay=opts.pop("decay"),
    )
    how = adapters.Adapter(**lora) if lora and lora["rank"] else None
    actor, plain = adapted(policy, how, seed)
    settings["judge"], client = judge_of(settings, workdir)
    base = tuple(policy.model.table) if actor is not policy else ()
    freeze = settings["freeze"] = (*opts.pop("freeze", ()), *base)
    offload = opts.pop("offload", False)
    table = update.live_of(actor.model.table, freeze)
    tx = update.optimizer(rate, table=table, **opts)
    averages = bool(settings.get("ema"))
    state = update.init_state(
        actor.params, tx, freeze=freeze, ema=averages, offload=offload
    )
    carry = loop.begin(state, prompts=prompts, **settings)
    points = workdir / "checkpoints"
    restored = checkpoint.latest(points)
    if restored is not None:
        carry, _ = checkpoint.restore(points, restored, carry)
    at = loader.stream_of(source, seed=seed, weights=weights).__getitem__
    index, count = sharding.part(policy.mesh)
    batches = loader.batches(
        source,
        weights=weights,
        seed=seed,
        batch=prompts,
        start=carry.position,
        process_index=index,
        process_count=count,
    )
    if count > 1:
        batches = shares.whole(batches, at, index, hosts.whole)
    batches = loader.Waited(batches)
    run = loop.train(
        actor,
        batches,
        tx,
        carry,
        seed=seed,
        steps=steps,
        at=at,
        phase=phases,
        **settings,
    )
    if restored is not None:  # what was loaded and begun is no longer read
        jax.tree.map(lambda x: x.delete(), state)
    kept = workdir / "records"
    if hosts.first():
        kept.mkdir(exist_ok=True)

    def evaluated(step: int, state) -> float | None:
        """Records of a step, unless they are there; the score for keep_best."""
        path = kept / f"step-{step:06d}.parquet"
        if hosts.agree(not path.exists()):
            phases("eval", step)
            found = run_eval(
                plain(update.averaged(state)),
                held_out,
                recipe=recipe,
                seed=seed,
                step=step,
                split=eval["split"],
                progress=lambda n: phases("eval"),
            )
            if hosts.first():
                records.write(path, found)
        if hosts.first():
            watch.course_of(workdir, kept, step)
        hosts.wait("records")  # all read what the first one wrote
        return score_of(path, keep_best) if keep_best else None

    save = checkpoint.Saver(
        points,
        keep=keep,
        minutes=save_minutes,
        saved=restored or 0,
        meta={"lora": how._asdict()} if how else None,
    )
    step = restored or 0

    def due(step: int) -> bool:
        return bool(eval["every"]) and (step % eval["every"] == 0 or step == steps)

    logs: dict = {"tensorboard": tensorboard}
    logs["wandb"] = {"project": wandb, "name": f"{recipe}-{seed}"} if wandb else None
    logs = logs if step < steps else {}  # else nothing is left to log
    try:
        with (
            metrics.Writer(workdir, restored=restored, **logs) as writer,
            display.bar(f"train {recipe} seed {seed}", steps, step) as advance,
        ):
            # At its start, or where a run was stopped before it got to this.
            if due(step) if step else eval.get("start"):
                evaluated(step, carry.state)
            for step, carry, numbers, samples, advantages in run:
                phases.switch("log", step)
                row = metrics.values(numbers)
                spent = phases.row()
                row |= {"seconds": spent["seconds"], "input_wait": batches.taken()}
                writer.write(step, row)
                directory.append(workdir / "time.jsonl", {"step": step, **spent})
                advance(1, f"reward {row['reward/total']:.2f}")
                if save_rollouts and (step % save_rollouts == 0 or step == steps):
                    lag = int(row["lag"])
                    watch.rollouts_of(
                        workdir, samples, advantages, step=step, lag=lag, seed=seed
                    )
                score = evaluated(step, carry.state) if due(step) else None
                phases("checkpoint", step)
                save(step, carry, score, now=step % save_every == 0 or step == steps)
            save.finish()
    except Stopped:
        phases.switch("checkpoint")
        save(step, carry, None, now=step > 0)
        save.finish()
        raise
    finally:
        if client:
            client.close()
    phases("checkpoint", step)
    target, params = workdir / "adapter", update.averaged(carry.state)
    if how and not hosts.agree(target.exists()):
        peft.save(target, policy.model, how, params, policy.source)
    target, params = workdir / "model", plain(params)
    if not hosts.agree(target.exists()):
        hf.save(target, policy.model, params, policy.source, policy.compute)
    return params, [kept / p.name for p in sorted(kept.glob("*.parquet"))]


def judge_of(settings: dict, workdir: Path):
    """(the recipe's judge, loaded where it is one by name; the client of its endpoint,
    None without one). Replies are kept in workdir/replies.jsonl. Of several hosts the
    first alone asks; the others have a judge of no use."""
    judge = settings.get("judge", recipes.DEFAULTS["judge"])
    if not judge or not isinstance(judge, str) or judge in recipe_check.JUDGES:
        return judge, None
    how = recipes.Judging(**settings.get("judging", {}))
    endpoint = recipe_check.endpoint(how)
    if jax.process_count() > 1:
        if any(k == "model" for k, _ in named.parse(judge, endpoint, "config.judge")):
            raise UserError(
                f"config.judge={judge!r}: a model judges in runs of one process; "
                "serve it, and name http:MODEL"
            )
        if not hosts.first():
            return Judge(judge, lambda items: [], {}), None
    options = named.JudgeOptions(
        endpoint,
        params={"temperature": 0.0, "max_tokens": how.max_tokens},
        seconds=how.seconds,
        cache=workdir / "replies.jsonl",
        budget=Budget(how.budget_tokens),
    )
    named_judge = named.named(judge, options, field="config.judge")
    return named_judge.judge, named_judge.client


def score_of(path: Path, best: str) -> float:
    """Mean of a column of a record file over a condition: 'correct/base'."""
    column, _, condition = best.partition("/")
    table = records.read(path).select(["condition", column]).to_pydict()
    pairs = zip(table["condition"], table[column], strict=True)
    return fmean(float(value) for name, value in pairs if name == condition)
