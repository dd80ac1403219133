"""From examples to records: the host's side of the one-pass kernel.

policy = load("tiny")
records = evaluate(policy, examples, ["base", "wrong_caption"])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import vlmrl
from vlmrl import perturb, sharding, user_code
from vlmrl.data import distort, images, loader
from vlmrl.engine.generate import Sampling, branch_keys
from vlmrl.engine.memory import RolloutRequest
from vlmrl.engine.options import (
    Measured,
    OptionSizes,
    measure,
    option_rows,
    sizes_of,
    stage_of,
)
from vlmrl.eval import kernel, records
from vlmrl.eval.record_builder import UNLABELLED, RunLabels, build_record
from vlmrl.eval.tags import make_tables
from vlmrl.loops import pass_log
from vlmrl.policy import Policy
from vlmrl.prompts import shapes, styles, tokens
from vlmrl.prompts.scan import UNREADABLE, Limits, describe, scan, skip
from vlmrl.prompts.shapes import BatchShape
from vlmrl.run import directory, hosts
from vlmrl.types import Example, Prompt, Record, Rollout, Scores, Skip, UserError


class EvalSettings(NamedTuple):
    """How examples are evaluated: the fields of `kernel` in configs (`settings_of`)."""

    samples: int = 1  # per condition; greedy samples are all equal, so it takes 1
    temperature: float = 0.0  # of sampling; 0 is greedy
    max_tokens: int = 64  # of a completion
    probe_every: int = 8  # CoT tokens between sighted probes
    probes: int = 4  # sighted probes at most
    batch: int = 16  # examples per pass
    slots: int = 0  # samples decoded side by side, each in the place of one that has
    # ended: for completions of very unlike lengths, on one data shard; 0: all of a pass
    gather_params: bool = True  # over fsdp, once per pass
    unroll: bool = False  # layers in a Python loop instead of a scan
    max_prompt: int = 0  # tokens, those of images included; a longer item is skipped
    max_images: int = 0  # of an item; one with more is skipped; 0: no limit


def settings_of(fields: Mapping[str, Any]) -> EvalSettings:
    """Return settings from their fields. Raises UserError on an unknown one."""
    for name in fields:
        if name == "options":
            raise UserError(
                "kernel.options: the number of options is sized from the data now; "
                "remove the field"
            )
        if name not in EvalSettings._fields:
            known = ", ".join(EvalSettings._fields)
            raise UserError(f"kernel.{name}: expected one of {known}")
    return EvalSettings(**fields)


class ConditionedItem(NamedTuple):
    """An example under every condition, and how its options are measured there."""

    rows: list[Example]
    asked: list[bool]
    not_asked: list[str]
    measured: list[Measured]
    changed: bool = (
        True  # False: its images can't be perturbed, its records are dropped
    )

    @property
    def kind(self) -> str:
        return next((m.kind for m in self.measured if m.kind), "")


class Pass(NamedTuple):
    """Examples that one call of the kernel evaluates."""

    members: list[int]  # their positions among all
    items: list[ConditionedItem]
    sizes: OptionSizes
    shape: BatchShape


class EvalPlan(NamedTuple):
    """How a set is evaluated: the passes, in order, and what is not asked."""

    passes: list[tuple[OptionSizes, BatchShape, list[int]]]  # and indices of examples
    skips: dict[int, Skip]
    total: int  # examples
    padding: float  # share of the tokens that are computed

    @property
    def programs(self) -> int:
        return len({(sizes, shape) for sizes, shape, _ in self.passes})

    def describe(self) -> str:
        """Return one line."""
        line = f"{self.total:,} items in {len(self.passes):,} passes of {self.programs}"
        line += f" programs, {100 * self.padding:.0f} % of their tokens padding"
        skipped = describe(self.skips.values(), self.total)
        return f"{line}; {skipped}" if skipped else line


class Evaluated(NamedTuple):
    records: list[Record]
    skips: list[Skip]


NOT_CHANGED = ("its images can't be perturbed", "leave the perturbation out")
Change = Callable[[Example], Example]  # of images; text and sizes stay
Advance = Callable[[int], None]  # called with a number of examples as they are done


def _ignore(n: int) -> None:
    pass


class Evaluator:
    """Evaluate any parameters of a policy's model under conditions.

    A set is scanned before anything is compiled (`plan`): what can't be asked is
    skipped, and few static shapes are chosen for the rest. There is a program for each
    of them and each way that options are measured (`engine/options.py`: letters,
    texts), compiled when it is first needed; training evaluates with the very programs
    of the final table. Records come in the order example, condition, sample; a
    condition that does not apply to an example (`perturb.applies`) has none, and the
    others name it.

    Args:
      conditions: names (`perturb.apply`); 'abstain+' composes with any.
    Raises:
      UserError: an unknown condition, samples of a greedy evaluation, slots on several
        shards; when called, no item that can be asked, a batch that can't fit.
    """

    def __init__(
        self,
        policy: Policy,
        conditions: Sequence[str],
        settings: EvalSettings,
    ):
        s = settings
        perturb.check(*conditions)
        if s.samples > 1 and s.temperature == 0:
            raise UserError(
                f"samples is {s.samples} but temperature is 0: greedy samples are all "
                "equal"
            )
        shards = sharding.batch_shards(policy.mesh)
        if s.slots and shards > 1:
            raise UserError(
                f"slots is {s.slots}: expected one data shard, got {shards}"
            )
        self._policy, self._conditions = policy, list(conditions)
        self._settings = s._replace(batch=s.batch + -s.batch % shards)
        self._weights = policy.sampling_params(s.gather_params)
        self._kernel = self._jit_kernel()
        self._plan: tuple[Sequence[Example], EvalPlan] | None = None  # the last one

    def plan(self, examples: Sequence[Example]) -> EvalPlan:
        """Scan a set and return how it is evaluated, on every host alike.

        Raises:
          UserError: no item can be asked.
        """
        if self._plan is not None and self._plan[0] is examples:
            return self._plan[1]
        if not examples:
            return EvalPlan([], {}, 0, 0.0)
        policy, s, conditions = self._policy, self._settings, self._conditions
        if not hosts.first():
            hosts.wait("scan")  # what the first host counts is kept beside the set
        scanned = scan(
            examples,
            policy.processor,
            policy.style,
            lambda e: perturb.conditioned(e, conditions).rows,
            Limits(s.max_prompt, s.max_images),
        )
        if hosts.first():
            hosts.wait("scan")
        if len(scanned.skips) == len(examples):
            skipped = describe(scanned.skips.values(), len(examples))
            detail = next((k.detail for k in scanned.skips.values()), "")
            raise UserError(
                f"expected an item that can be asked, got none: {skipped} ({detail})"
            )
        cost = shapes.costs(policy.processor.geometry, len(conditions))
        members = _by_kind(
            {i: self._item(examples[i])._replace(rows=[]) for i in scanned.indices}
        )  # without their images
        passes = []
        for sizes, indices in members:
            chosen = shapes.choose(
                scanned.sizes[indices],
                cost,
                s.batch,
                programs=shapes.PROGRAMS // len(members),
                multiple=sharding.batch_shards(policy.mesh),
            )
            for shape, part in shapes.batches(scanned.sizes, indices, chosen, cost):
                passes.append((sizes, shape, part))
        padded = shapes.padding(scanned.sizes, [p[1:] for p in passes], cost)
        plan = EvalPlan(passes, scanned.skips, len(examples), padded)
        self._plan = examples, plan
        return plan

    def __call__(
        self,
        params,
        examples: Sequence[Example],
        labels: RunLabels,
        advance: Advance = _ignore,
    ) -> list[Record]:
        """Return the records of examples under every condition, on every host alike."""
        return self.run(params, examples, labels, advance).records

    def run(
        self,
        params,
        examples: Sequence[Example],
        labels: RunLabels,
        advance: Advance = _ignore,
        change: Change | None = None,
    ) -> Evaluated:
        """Return the records of examples, and what was not asked."""
        by_example: dict[int, list[Record]] = {}
        for one in self.passes(examples, change):
            by_example |= zip(
                one.members, self.run_pass(params, one, labels), strict=True
            )
            advance(len(one.members))
        return self.collect(examples, by_example, change)

    def passes(
        self, examples: Sequence[Example], change: Change | None = None
    ) -> Iterator[Pass]:
        """Yield the passes over examples, in the order they run."""
        for sizes, shape, part in self.plan(examples).passes:
            items = [self._item(examples[i], change) for i in part]
            yield Pass(part, items, sizes, shape)

    def collect(
        self,
        examples: Sequence[Example],
        by_example: Mapping[int, list[Record]],
        change: Change | None = None,
    ) -> Evaluated:
        """Return the records of all passes in the order of the examples. An example
        without any, though a condition applies to it, failed while it ran."""
        skips = dict(self.plan(examples).skips)
        for i, rows in by_example.items():
            if not rows and any(self._item(examples[i]).asked):
                fault = NOT_CHANGED if change else UNREADABLE
                skips[i] = skip(examples[i], i, *fault)
        records_ = [r for i in sorted(by_example) for r in by_example[i]]
        return Evaluated(records_, [skips[i] for i in sorted(skips)])

    def run_pass(self, params, one: Pass, labels: RunLabels) -> list[list[Record]]:
        """Return the records of each example of a pass, on every host alike."""
        style = self._policy.style
        own = (*self._conditions, style, styles.style(style).parser)
        code = user_code.joined(labels.code, user_code.stamp(own))
        mine = self._share(params, one, labels._replace(code=code))
        parts = hosts.whole(sharding.part(self._policy.mesh)[0], mine)
        return [rows for part in parts for rows in part]

    def about(self) -> dict:
        """Return what decides the records beside examples and parameters."""
        return {
            "model": [self._policy.source, *_weights(self._policy.source)],
            "style": self._policy.style,
            "pixels": list(self._policy.processor.pixels),
            "conditions": self._conditions,
            "settings": self._settings._asdict(),
        }

    def _item(self, example: Example, change: Change | None = None) -> ConditionedItem:
        done = True
        if change is not None:
            try:
                example = change(example)
            except UserError:  # no image, or one that does not decode
                done = False
        rows, asked, not_asked = perturb.conditioned(example, self._conditions)
        policy = self._policy
        measured = [measure(policy.processor, e, policy.style) for e in rows]
        return ConditionedItem(rows, asked, not_asked, measured, done)

    def _jit_kernel(self):
        policy, s = self._policy, self._settings
        tables = make_tables(policy.processor)
        weights = self._weights
        kernel_settings = kernel.KernelSettings(
            s.max_tokens, Sampling(s.temperature), s.probe_every, s.probes, s.slots
        )

        @functools.partial(jax.jit, out_shardings=sharding.batch_sharding(policy.mesh))
        def run_kernel(params, group, blind, rows, keys):
            return kernel.evaluate(
                policy.model,
                weights(params),
                kernel.EvalBatch(group, blind, rows, keys),
                tables,
                kernel_settings,
                unroll=s.unroll,
                attend=policy.attend,
            )

        return run_kernel

    def _share(self, params, one: Pass, labels: RunLabels) -> list[list[Record]]:
        """Return the records of each example of this process's share of a pass, none of
        what turns out to be unreadable; the rest of the batch is filled up with the
        last one."""
        policy, s, part, each = (
            self._policy,
            self._settings,
            one.items,
            len(self._conditions),
        )
        index, count = sharding.part(policy.mesh)
        own = one.shape.batch // count
        padded = part + [part[-1]] * (one.shape.batch - len(part))
        mine = padded[index * own : (index + 1) * own]
        changed = [e for item in mine for e in item.rows]
        measured = [m for item in mine for m in item.measured]
        prompts, encoded, faults = _encoded(
            policy.processor, policy.write(changed), each
        )
        rows = EncodedRows(prompts, encoded, each)
        inputs = _inputs(policy.processor, rows, one, measured)
        names = [f"{e.source}/{e.id}/{e.condition}" for e in changed]
        keys = branch_keys(labels.seed, "evaluate", 0, names, s.samples)
        # The blind reading keeps as much as the sighted one, or less.
        request = RolloutRequest(inputs[0], 2 * len(keys), s.max_tokens)
        self._weights.check_memory("batch", params, request)
        placed = sharding.join_batch(policy.mesh, (*inputs, keys))
        rollout, scores = sharding.local_rows(self._kernel(params, *placed))
        real = min(max(0, len(part) - index * own), own)
        return [
            [
                _record(policy, prompts[row], rollout, scores, i)._replace(
                    **labels._asdict(),
                    sample=i % s.samples,
                    sighted_every=s.probe_every,
                    not_asked=item.not_asked,
                )
                for row, asked in enumerate(item.asked, n * each)
                for i in range(row * s.samples, (row + 1) * s.samples)
                if asked and item.changed and n not in faults
            ]
            for n, item in enumerate(mine[:real])
        ]


def _by_kind(
    items: Mapping[int, ConditionedItem],
) -> list[tuple[OptionSizes, list[int]]]:
    """Return the items that share programs, with the number of their options: those
    measured by letters, those by texts. What is not measured at all goes with the first
    of them."""
    kinds = [
        k for k in ("letters", "texts") if any(i.kind == k for i in items.values())
    ]
    kinds = kinds or [""]
    out = []
    for kind in kinds:
        members = [n for n, i in items.items() if (i.kind or kinds[0]) == kind]
        out.append((sizes_of([m for n in members for m in items[n].measured]), members))
    return out


def evaluate(
    policy: Policy,
    examples: Sequence[Example],
    conditions: Sequence[str],
    *,
    labels: RunLabels = UNLABELLED,
    advance: Advance = _ignore,
    **settings,
) -> list[Record]:
    """Return the records of a policy's own parameters; `settings` are fields of
    `EvalSettings`."""
    user_code.refresh()
    settings.setdefault("batch", min(16, len(examples)))
    run = Evaluator(policy, conditions, settings_of(settings))
    return run(policy.params, examples, labels, advance)


def score_options(policy: Policy, examples: Sequence[Example]) -> list[list[float]]:
    """Return P(option) of each example when asked to answer at once, without a CoT."""
    records = evaluate(policy, examples, ["no_cot"], max_tokens=1, probes=1)
    return [r.letters for r in records]


# -- record files ----------------------------------------------------------------------


class EvalPart(NamedTuple):
    """Examples and what evaluates them. `image` names the perturbation their images are
    under (`data.distort`): it is put before the condition, as 'noisy+base'."""

    evaluator: Evaluator
    examples: Sequence[Example]
    image: str = ""
    seed: int = 0  # of the perturbation

    def changed(self, example: Example) -> Example:
        """Return the example under the image perturbation, its condition still base."""
        out = distort.distort(example, self.image, self.seed)
        return out._replace(condition=example.condition)


def load_examples(
    source: str, split: str, size: int, data_dir: Path, texts: str = ""
) -> Sequence[Example]:
    """Return examples to evaluate on (`loader.examples_of`). A procedural set is
    written below `data_dir` by the first host, before the others read it."""
    if hosts.first():
        loader.examples_of(source, split, size, data_dir)
    hosts.wait("data")
    return loader.examples_of(source, split, size, data_dir, texts)


def write_records(
    path: Path,
    parts: Sequence[EvalPart],
    params,
    labels: RunLabels,
    advance: Advance = _ignore,
) -> list[Record]:
    """Evaluate every part and write the records to one file, whole or not at all, by
    the first host; the others return once it is there.

    Every pass is written as it ends (`pass_log.py`): where `advance` raises, as it does
    when the run is asked to stop, or the process dies, the same call goes on behind the
    last pass. What was not asked is added to the skips of the file
    (`directory.skips_path`).
    """
    about = {
        "labels": labels._asdict(),
        "parts": [
            [
                p.evaluator.about(),
                p.image,
                p.seed,
                pass_log.digest(map(_content, p.examples)),
            ]
            for p in parts
        ],
    }
    log, rows, number = pass_log.PassLog(path, about), [], 0
    skipped: list[Skip] = []
    for part in parts:
        evaluator, examples, image, _ = part
        change = part.changed if image else None
        by_example: dict[int, list[Record]] = {}
        for one in evaluator.passes(examples, change):
            compute = functools.partial(evaluator.run_pass, params, one, labels)
            by_example |= zip(one.members, log.run(number, compute), strict=True)
            number += 1
            advance(len(one.members))
        some, skips = evaluator.collect(examples, by_example, change)
        skipped += skips
        rows += [_under(image, r) for r in some] if image else some
    if hosts.first():
        records.write(path, rows)
        directory.add_skips(directory.skips_path(path), skipped)
        log.remove()
    hosts.wait("records")
    return rows


def _weights(source: str) -> list[tuple[str, int, int]]:
    """Return name, bytes and time of a directory's weight files."""
    files = sorted(Path(source).glob("*.safetensors"))
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def _content(e: Example) -> str:
    """Return what tells an example from another."""
    return repr((e.source, e.id, e.question, e.options, e.answer, e.suggested, e.meta))


def _under(image: str, record: Record) -> Record:
    """Return the record with the perturbation of its image before its condition."""
    name = user_code.short(image)
    return record._replace(
        condition=f"{name}+{record.condition}",
        not_asked=[f"{name}+{reason}" for reason in record.not_asked],
        code=user_code.joined(record.code, user_code.stamp(image)),
    )


# -- one pass --------------------------------------------------------------------------


class EncodedRows(NamedTuple):
    """The prompts of N examples under `each` (V) conditions."""

    prompts: list[Prompt]
    encoded: list[tokens.Encoded]
    each: int


def _encoded(processor, prompts: list[Prompt], each: int):
    """Return (prompts, the same encoded, indices of examples at fault). An image that
    turns out not to decode is replaced by a blank one of its size, so that the pass is
    computed as planned."""
    try:
        return prompts, tokens.encode_all(processor, prompts), set()
    except UserError:
        prompts, faults = list(prompts), set()
    for i in range(0, len(prompts), each):
        try:
            tokens.encode(processor, prompts[i])
        except UserError:
            faults.add(i // each)
            for j in range(i, i + each):
                example = prompts[j].example
                blank = tuple(images.blank_like(data) for data in example.images)
                blanked = example._replace(images=blank)
                prompts[j] = prompts[j]._replace(example=blanked)
    return prompts, tokens.encode_all(processor, prompts), faults


def _inputs(processor, rows: EncodedRows, one: Pass, measured: Sequence[Measured]):
    """Return (Group, blind Group, ConditionRows) of a pass; no blind Group where the
    options of no row are measured."""
    written, encoded, each = rows
    sizes = one.sizes

    def grouped(rows, buckets):
        groups = [rows[i : i + each] for i in range(0, len(rows), each)]
        return tokens.group(groups, processor.geometry, buckets)

    reader = None
    if sizes.measured:
        blind = (
            tokens.encode(processor, (p.blind, ()), name=p.example.id) for p in written
        )
        reader = grouped(list(blind), one.shape.blind)
    facts = kernel.ConditionRows(
        stage=np.array([stage_of(p.turn) for p in written], np.int32),
        options=option_rows(measured, sizes),
        answer=np.array([p.example.answer for p in written], np.int32),
        suggested=np.array([p.example.suggested for p in written], np.int32),
        last=np.array([e.ids[-1] for e in encoded], np.int32),
    )
    return grouped(encoded, one.shape.sighted), reader, facts


def _record(policy: Policy, prompt: Prompt, rollout: Rollout, scores: Scores, i: int):
    """Return the record of row i, with what the kernel measured."""
    dtype = policy.compute or next(iter(policy.params.values())).dtype
    record = build_record(
        prompt,
        tokens.decode(policy.processor, rollout.tokens[i][rollout.mask[i]]),
        finish="stop" if rollout.stopped[i] else "length",
        engine="vlmrl",
    )
    return record._replace(
        version=vlmrl.__version__,
        backend=jax.default_backend(),
        device=jax.devices()[0].device_kind,
        dtype=str(dtype),
        tags=policy.processor.tags.mode,
        natural=bool(scores.natural[i]),
        truncated=bool(scores.truncated[i]),
        think_entropy=float(scores.think_entropy[i]),
        think_tokens=int(scores.think_tokens[i]),
        pixels=list(policy.processor.pixels),
        **_option_columns(scores, i, len(prompt.example.options)),
    )


def _option_columns(scores: Scores, i: int, n: int) -> dict:
    """Return the columns of row i that its options' probabilities fill; none where they
    were not measured."""
    letters, blind = scores.letters[i], scores.blind[i]
    if not n or np.isnan(letters[0]):
        return {}

    def listed(logp) -> list[float]:
        return [float(p) for p in np.exp(logp[:n])]

    chosen = int(np.argmax(letters[:n]))
    texts = scores.normalised is not None
    probes = zip(scores.sighted[i], scores.sighted_mask[i], strict=True)
    return dict(
        letters_from="kernel",
        forced=chosen,
        scored="texts" if texts else "letters",
        letters=listed(letters),
        normalised=listed(scores.normalised[i]) if texts else [],
        entropy=float(scores.entropy[i]),
        p_correct=float(scores.p_correct[i]),
        p_suggested=float(scores.p_suggested[i]),
        option_mass=float(scores.option_mass[i]),
        sighted=[listed(p) for p, shown in probes if shown],
        blind=listed(blind[0]),
        blind_stripped=listed(blind[1]),
        consistent_probe=int(np.argmax(blind[0][:n])) == chosen,
        consistent_probe_stripped=int(np.argmax(blind[1][:n])) == chosen,
    )
