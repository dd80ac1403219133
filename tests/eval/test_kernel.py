"""The one-pass kernel: how samples are read, and every number against separate rows."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import kit
from vlmrl import perturb
from vlmrl.engine import options
from vlmrl.engine.generate import Sampling, branch_keys
from vlmrl.engine.options import ANSWERING, NOTHING, THINKING, THOUGHT
from vlmrl.engine.prefix_cache import extend
from vlmrl.eval import kernel, tags
from vlmrl.prompts import styles, tokens
from vlmrl.types import Group, Rollout

LENGTH, EVERY, PROBES, OPTIONS = 24, 4, 2, 6
STYLE = "tiny"
END = "<|im_end|>"


@functools.cache
def tables():
    return tags.make_tables(kit.processor())


def ids_of(pieces) -> list[int]:
    words = kit.processor().token_bytes
    return [words.index(p.encode()) for p in pieces]


def rollout_of(samples) -> Rollout:
    """What a sampler that wrote these pieces would return, with made-up entropies."""
    ids = np.zeros((len(samples), LENGTH), np.int32)
    for i, pieces in enumerate(samples):
        ids[i, : len(pieces)] = ids_of(pieces)
    lengths = np.array([len(pieces) for pieces in samples])
    mask = np.arange(LENGTH) < lengths[:, None]
    entropy = np.random.default_rng(0).uniform(0, 3, ids.shape).astype(np.float32)
    nothing = np.zeros_like(entropy)
    return Rollout(ids, nothing, entropy * mask, mask, lengths < LENGTH)


# -- reading, by hand ------------------------------------------------------------------

OPEN, SHUT, ANSWER = ["<", "think", ">"], ["</", "think", ">"], ["<", "answer", ">A"]
FINISH = ["</", "answer", ">"]


class Case(NamedTuple):
    stage: int
    pieces: list[str]
    think: tuple[int, int]  # own tokens [start, stop) of the think
    natural: bool
    closed: bool
    kind: int
    cut: int
    stripped: int
    strip: bool = True


ONE = ["a", " red", "."]
TWO = [*ONE, " So", " B", "."]
THREE = [*ONE, *TWO]
CASES = {
    "natural": Case(
        NOTHING, [*OPEN, *ONE, *SHUT, *ANSWER, *FINISH], (3, 6), True, True, 0, 10, 3
    ),
    "two sentences": Case(
        NOTHING, [*OPEN, *TWO, *SHUT, *ANSWER, *FINISH], (3, 9), True, True, 0, 13, 6
    ),
    "three sentences": Case(
        NOTHING, [*OPEN, *THREE, *SHUT, *ANSWER], (3, 12), True, True, 0, 16, 9
    ),
    "line breaks end sentences, words make them": Case(
        NOTHING,
        [*OPEN, "a", "\n", " So", " B", "!", "\n", " ", *SHUT, *ANSWER],
        (3, 10),
        True,
        True,
        0,
        14,
        5,
    ),
    "the tag begins inside a token": Case(
        NOTHING,
        [*OPEN, "a", ".", " red", ".</", "think", ">\n", *ANSWER],
        (3, 7),
        True,
        True,
        0,
        10,
        5,
    ),
    "the tag ends inside a token": Case(
        NOTHING,
        [*OPEN, "a", "</", "think", "><", "answer", ">A"],
        (3, 4),
        True,
        True,
        0,
        7,
        3,
    ),
    "closed, then nothing": Case(
        NOTHING, [*OPEN, *ONE, *SHUT, END], (3, 6), False, True, 1, 9, 3
    ),
    "closed, then other words": Case(
        NOTHING, [*OPEN, *ONE, *SHUT, " B", "."], (3, 6), False, True, 1, 9, 3
    ),
    "never closed": Case(NOTHING, [*OPEN, *TWO], (3, 9), False, False, 2, 9, 6),
    "never closed, ended": Case(
        NOTHING, [*OPEN, *TWO, END], (3, 9), False, False, 2, 9, 6
    ),
    "length ran out": Case(
        NOTHING, [*OPEN, *["a"] * 21], (3, 24), False, False, 2, 24, 3
    ),
    "an answer inside the think is none": Case(
        NOTHING,
        [*OPEN, *ANSWER, *SHUT, "\n", "<", "answer", ">B", *FINISH],
        (3, 6),
        True,
        True,
        0,
        11,
        3,
    ),
    "an answer inside the think, never closed": Case(
        NOTHING, [*OPEN, *ANSWER, *FINISH], (3, 9), False, False, 2, 9, 3
    ),
    "an empty think": Case(
        NOTHING, [*OPEN, *SHUT, *ANSWER], (3, 3), True, True, 0, 7, 3
    ),
    "an answer opened, not written": Case(
        NOTHING, [*OPEN, *ONE, *SHUT, "<", "answer"], (3, 6), True, True, 0, 10, 3
    ),
    "the first answer counts": Case(
        NOTHING,
        [*OPEN, *ONE, *SHUT, *ANSWER, "<", "answer", ">B"],
        (3, 6),
        True,
        True,
        0,
        10,
        3,
    ),
    "no tags at all": Case(
        NOTHING, [" So", " B", END], (0, 0), False, False, 2, 2, 2, False
    ),
    "closed though never opened": Case(
        NOTHING, ["a", *SHUT, *ANSWER, *FINISH], (0, 0), True, True, 0, 5, 5, False
    ),
    "a think in the prompt goes on": Case(
        THINKING, [*TWO, *SHUT, *ANSWER, *FINISH], (0, 6), True, True, 0, 10, 3
    ),
    "a think in the prompt, closed at once": Case(
        THINKING, [*SHUT, *ANSWER], (0, 0), True, True, 0, 4, 0
    ),
    "a think in the prompt, never closed": Case(
        THINKING, ONE, (0, 3), False, False, 2, 3, 0
    ),
    "a think in the prompt, opened again": Case(
        THINKING, [*OPEN, *ONE, *SHUT], (0, 6), False, True, 1, 9, 0
    ),
    "thought in the prompt": Case(
        THOUGHT, ["\n", *ANSWER, *FINISH], (0, 0), True, True, 0, 2, 2, False
    ),
    "thought in the prompt, no answer": Case(
        THOUGHT, [" B", END], (0, 0), False, True, 1, 0, 0, False
    ),
    "thought in the prompt and again": Case(
        THOUGHT, [*OPEN, "a", *SHUT, *ANSWER], (0, 0), True, True, 0, 8, 8, False
    ),
    "answering in the prompt": Case(
        ANSWERING, [">A", *FINISH], (0, 0), True, True, 0, 0, 0, False
    ),
    "answering in the prompt, again": Case(
        ANSWERING, [*ANSWER, *FINISH], (0, 0), True, True, 0, 0, 0, False
    ),
}


@functools.cache
def read_cases():
    stages = jnp.array([c.stage for c in CASES.values()])
    rollout = rollout_of([c.pieces for c in CASES.values()])
    return jax.device_get(jax.jit(kernel.read)(tables(), rollout, stages))


@pytest.mark.parametrize("name", CASES)
def test_reading(name):
    i, case = list(CASES).index(name), CASES[name]
    found = jax.tree.map(lambda x: x[i], read_cases())
    think = np.zeros(LENGTH, bool)
    think[slice(*case.think)] = True
    np.testing.assert_array_equal(found.think, think)
    wanted = {f: getattr(case, f) for f in Case._fields if f not in ("stage", "pieces")}
    del wanted["think"]
    assert {f: getattr(found, f).item() for f in wanted} == wanted


def test_openings():
    words = kit.processor().token_bytes
    replay = np.array(ids_of([" red", " red", " red"]), np.int32)
    kinds = jnp.array([0, 1, 2])
    ids, mask = jax.jit(kernel.openings)(tables(), kinds, replay)
    written = [
        b"".join(words[i] for i in row[keep])
        for row, keep in zip(np.asarray(ids), np.asarray(mask), strict=True)
    ]
    assert written == [b" red", b"<answer", b"</think>\n<answer"]


# -- the same by plain text, for any sample --------------------------------------------


class Plain(NamedTuple):
    """Own ids before each probe, and what is forced after them ('' is nothing)."""

    answer: tuple[int, str]
    sighted: list[int]
    stripped: tuple[int, str]
    think: list[int]  # own tokens of the think
    natural: bool
    closed: bool


def read_plainly(ids, stage, processor=None) -> Plain:
    """Reading by string search in the decoded bytes; `ids` without padding."""
    processor = processor or kit.processor()
    words = processor.token_bytes
    own = [i for i in ids if i not in processor.end_ids]
    text = b"".join(words[i] for i in own)
    ends = np.cumsum([len(words[i]) for i in own]).tolist()
    begins = [0, *ends][: len(own)]

    def after(byte):  # tokens up to the one that holds the byte before `byte`
        return sum(b < byte for b in begins)

    open_, shut = text.find(b"<think>"), text.find(b"</think>")
    first = {THINKING: 0, NOTHING: after(open_ + 7) if open_ >= 0 else None}.get(stage)
    past = after(shut + 8) if shut >= 0 and stage < THOUGHT else None
    closed = past is not None or stage >= THOUGHT
    think = []
    if first is not None:
        stop = shut if past is not None else len(text)
        think = [t for t in range(first, len(own)) if begins[t] < stop]

    opened = None
    for match in re.finditer(b"<answer", text):
        end = after(match.end())
        if closed and end > (past or 0) and match.end() in ends:
            opened = end
            break
    if stage == ANSWERING:
        answer = (0, "")
    elif opened is not None:
        answer = (opened, "")
    elif closed:
        answer = (past or 0, "<answer")
    else:
        answer = (len(own), "</think>\n<answer")

    stripped = answer
    if first is not None and (past is None or first <= past - 1):
        cut = first
        spoken = [
            t for t in think if re.search(r"\w", words[own[t]].decode(errors="replace"))
        ]
        for t in think:
            ended = words[own[t]].endswith((b".", b"!", b"?", b"\n"))
            if ended and spoken and t < spoken[-1]:
                cut = t + 1
        stripped = (cut, "</think>\n<answer")
    marks = [first + EVERY * (i + 1) for i in range(PROBES)] if think else []
    sighted = [m for m in marks if m <= think[-1]]
    return Plain(answer, sighted, stripped, think, opened is not None or
                 stage == ANSWERING, closed)  # fmt: skip


def letter_ids(count, processor=None):
    """(id of a token, options it writes) of each way to go on behind `<answer`."""
    processor = processor or kit.processor()
    texts = {
        i: w.decode("utf-8", "replace")
        for i, w in enumerate(processor.token_bytes)
        if not processor.banned[i]
    }
    direct, second = {}, {}
    for c in range(count):
        letter = chr(ord("A") + c)
        for i, text in texts.items():
            if re.fullmatch(r">\s*\(?" + letter, text):
                direct[i] = c
            if re.fullmatch(r"\s*\(?" + letter, text):
                second[i] = c
    bridges = [i for i, text in texts.items() if re.fullmatch(r">\s?\(?", text)]
    return direct, bridges, second


@jax.jit
def plain_probs(params, rows):
    return jax.nn.softmax(kit.row_logits(kit.model(), params, rows), axis=-1)


ROWS, WIDTH = 40, 160


def next_token_probs(params, vision, asked):
    """Full distributions after each asked row (n, Encoded, further ids), one ordinary
    row each: float[len(asked), V] twice, after the last token and the one before it."""
    out = []
    for start in range(0, len(asked), ROWS):
        part = asked[start : start + ROWS]
        part = part + [part[0]] * (ROWS - len(part))
        rows = []
        for _, prompt, more in part:
            top = prompt.positions.max() + 1
            ahead = np.tile(top + np.arange(len(more)), (3, 1))
            rows.append(
                tokens.Encoded(
                    np.concatenate([prompt.ids, more]),
                    np.concatenate([prompt.positions, ahead], axis=1),
                    np.concatenate([prompt.image, np.full(len(more), -1)]),
                    (),
                    "",
                )
            )
        where = np.array([n for n, _, _ in part])
        seen = jax.tree.map(lambda x, w=where: x[w], vision)
        found = plain_probs(params, Group(kit.padded(rows, WIDTH), seen, None))
        last = np.array([len(r.ids) - 1 for r in rows])
        pick = np.asarray(found)[np.arange(ROWS)[:, None], last[:, None] - [0, 1]]
        out.append(pick)
    return np.concatenate(out)[: len(asked)].swapaxes(0, 1)


def brute_force(params, batch, rollout, samples):
    """(letter masses after the answer probe, sighted and blind ones; Plain per row)."""
    encode = functools.partial(kit.processor().tokenizer.encode)
    direct, bridges, second = letter_ids(OPTIONS)
    asked, places, readings = [], [], []
    conditions = len(batch.stages) // len(batch.group.prefix.ids)
    for b in range(len(rollout.tokens)):
        c, n = b // samples, b // samples // conditions
        ids = rollout.tokens[b][rollout.mask[b]]
        plain = read_plainly(ids, batch.stages[c])
        readings.append(plain)
        probes = [("answer", batch.prompts[c], *plain.answer)]
        probes += [
            (f"sighted{i}", batch.prompts[c], cut, "</think>\n<answer")
            for i, cut in enumerate(plain.sighted)
        ]
        probes += [("blind0", batch.blinds[c], *plain.answer)]
        probes += [("blind1", batch.blinds[c], *plain.stripped)]
        for name, prompt, cut, forced in probes:
            for bridge in bridges:
                more = [*ids[:cut], *encode(forced), bridge]
                asked.append((n, prompt, np.array(more, np.int32)))
                places.append((b, name))
    after, before = next_token_probs(params, batch.group.vision, asked)
    masses = {}
    for (b, name), bridged, opened, (_, _, ids) in zip(
        places, after, before, asked, strict=True
    ):
        if (b, name) not in masses:
            masses[b, name] = np.zeros(OPTIONS)
            for i, c in direct.items():
                masses[b, name][c] += opened[i]
        for i, c in second.items():
            masses[b, name][c] += opened[ids[-1]] * bridged[i]
    return masses, readings


# -- batches ---------------------------------------------------------------------------


class Batch(NamedTuple):
    group: Group
    blind: Group
    rows: kernel.ConditionRows
    names: list[str]
    stages: list[int]
    prompts: list[tokens.Encoded]
    blinds: list[tokens.Encoded]


def batch_of(examples, conditions) -> Batch:
    processor = kit.processor()
    changed = [perturb.apply(e, c) for e in examples for c in conditions]
    written = [styles.build(e, STYLE) for e in changed]
    encoded = [tokens.encode(processor, p) for p in written]
    blinds = [tokens.encode(processor, (p.blind, ())) for p in written]
    v = len(conditions)
    rows = [encoded[i : i + v] for i in range(0, len(encoded), v)]
    by_name = {"wrong_think": THINKING, "stop_think": THOUGHT, "no_cot": ANSWERING}
    stages = [by_name.get(e.condition, NOTHING) for e in changed]
    facts = kernel.ConditionRows(
        np.array(stages, np.int32),
        options.option_rows(
            [options.measure(processor, e, STYLE) for e in changed],
            options.OptionSizes(OPTIONS, 0),
        ),
        np.array([e.answer for e in changed], np.int32),
        np.array([e.suggested for e in changed], np.int32),
        np.array([e.ids[-1] for e in encoded], np.int32),
    )
    return Batch(
        tokens.group(rows, processor.geometry, kit.BUCKETS),
        tokens.group(
            [blinds[i : i + v] for i in range(0, len(blinds), v)],
            processor.geometry,
            kit.BUCKETS,
        ),
        facts,
        [f"{e.id}/{e.condition}" for e in changed],
        stages,
        encoded,
        blinds,
    )


@functools.partial(jax.jit, static_argnames=("temperature", "slots"))
def evaluated(params, group, blind, rows, keys, temperature=1.0, slots=0):
    return kernel.evaluate(
        kit.model(),
        params,
        kernel.EvalBatch(group, blind, rows, keys),
        tables(),
        kernel.KernelSettings(LENGTH, Sampling(temperature), EVERY, PROBES, slots),
    )


def check(batch, rollout, scores, samples):
    """Every score against plain rows."""
    rollout, scores = jax.device_get((rollout, scores))
    masses, readings = brute_force(kit.params(), batch, rollout, samples)
    rows = jax.tree.map(lambda x: np.repeat(x, samples, axis=0), batch.rows)
    compared = 0

    def close(found, wanted):
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)

    for b, plain in enumerate(readings):
        valid = rows.options.valid[b]

        def renormalised(name, b=b, valid=valid):
            mass = masses[b, name] * valid
            return mass / mass.sum(), mass.sum()

        def written(logp, valid=valid):
            assert (logp[~valid] == -np.inf).all()
            return np.exp(logp)

        p, mass = renormalised("answer")
        close(written(scores.letters[b]), p)
        close(scores.option_mass[b], mass)
        close(scores.entropy[b], -(p[valid] * np.log(p[valid])).sum())
        close(scores.p_correct[b], p[rows.answer[b]])
        suggested = rows.suggested[b]
        close(scores.p_suggested[b], p[suggested] if suggested >= 0 else np.nan)
        assert scores.natural[b] == plain.natural
        assert scores.truncated[b] == (not plain.closed and not rollout.stopped[b])
        assert scores.think_tokens[b] == len(plain.think)
        think = rollout.entropy[b][plain.think]
        close(scores.think_entropy[b], think.mean() if len(think) else 0)
        shown = np.arange(PROBES) < len(plain.sighted)
        np.testing.assert_array_equal(scores.sighted_mask[b], shown)
        for i in range(len(plain.sighted)):
            close(written(scores.sighted[b, i]), renormalised(f"sighted{i}")[0])
        for i in range(2):
            close(written(scores.blind[b, i]), renormalised(f"blind{i}")[0])
        compared += len(plain.sighted)
    return compared


CONDITIONS = ("base", "wrong_think", "no_cot", "stop_think", "abstain+wrong_caption")
NUMBERED = {  # what the two samples of two items wrote under each condition
    "base": [
        "three sentences",
        "closed, then other words",
        "length ran out",
        "an answer inside the think is none",
    ],
    "wrong_think": [
        "a think in the prompt goes on",
        "a think in the prompt, never closed",
        "a think in the prompt, opened again",
        "a think in the prompt, closed at once",
    ],
    "no_cot": ["answering in the prompt", "answering in the prompt, again"] * 2,
    "stop_think": [
        "thought in the prompt",
        "thought in the prompt, no answer",
        "thought in the prompt and again",
        "thought in the prompt, no answer",
    ],
    "abstain+wrong_caption": [
        "closed though never opened",
        "no tags at all",
        "an empty think",
        "the tag ends inside a token",
    ],
}


@pytest.mark.slow
def test_scores_of_given_samples_against_plain_rows(monkeypatch):
    """Samples of every kind, read and scored by the kernel as if it had drawn them."""
    order = [NUMBERED[c][2 * n + k] for n in (0, 1) for c in CONDITIONS for k in (0, 1)]
    given = rollout_of([CASES[name].pieces for name in order])

    def replay(model, params, cache, keys, stops, *, max_tokens, sampling):
        _, own = extend(model, params, cache, given.tokens, given.mask)
        return jax.tree.map(jnp.asarray, given), own

    monkeypatch.setattr(kernel, "generate", replay)
    batch = batch_of(kit.examples()[:2], CONDITIONS)
    assert (batch.rows.options.valid.sum(-1) < OPTIONS).any()
    keys = branch_keys(0, "evaluate", 0, batch.names, 2)
    fresh = jax.jit(evaluated.__wrapped__)  # its own program, with `replay` in it
    found = fresh(kit.params(), batch.group, batch.blind, batch.rows, keys)
    assert check(batch, *found, samples=2) >= 5


SAMPLED = ("base", "wrong_think", "no_cot")


@functools.cache
def sampled():
    batch = batch_of(kit.examples()[:2], SAMPLED)
    keys = branch_keys(0, "evaluate", 0, batch.names, 2)
    return batch, jax.device_get(
        evaluated(kit.params(), batch.group, batch.blind, batch.rows, keys)
    )


@pytest.mark.slow
def test_scores_of_its_own_samples_against_plain_rows():
    batch, found = sampled()
    assert check(batch, *found, samples=2) >= 4


def same(found, wanted, rows):
    """Scores of rows that must be the same but for float32 noise; tokens equal."""
    (rollout, scores), (old, old_scores) = found, wanted
    mine, theirs = rows
    np.testing.assert_array_equal(rollout.tokens[mine], old.tokens[theirs])
    for name in scores._fields:
        if name == "normalised":
            continue
        new, was = getattr(scores, name)[mine], getattr(old_scores, name)[theirs]
        if name in ("letters", "sighted", "blind"):
            new, was = np.exp(new), np.exp(was)
        if name == "sighted":  # nothing is said of masked probes
            shown = old_scores.sighted_mask[theirs][..., None]
            new, was = new * shown, was * shown
        np.testing.assert_allclose(new, was, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.slow
def test_the_order_of_conditions_and_items_changes_nothing():
    batch = batch_of(kit.examples()[:2][::-1], SAMPLED[::-1])
    keys = branch_keys(0, "evaluate", 0, batch.names, 2)
    found = jax.device_get(
        evaluated(kit.params(), batch.group, batch.blind, batch.rows, keys)
    )
    back = np.arange(12).reshape(2, 3, 2)[::-1, ::-1].reshape(-1)
    same(found, sampled()[1], (back, np.arange(12)))


@pytest.mark.slow
def test_samples_that_take_turns_are_the_same_samples():
    """Five of twelve at a time, each in the place of one that has ended."""
    batch, wanted = sampled()
    keys = branch_keys(0, "evaluate", 0, batch.names, 2)
    found = jax.device_get(
        evaluated(kit.params(), batch.group, batch.blind, batch.rows, keys, slots=5)
    )
    same(found, wanted, (np.arange(12), np.arange(12)))


@pytest.mark.slow
def test_the_batch_changes_nothing():
    """One item instead of two, one sample instead of two."""
    batch = batch_of(kit.examples()[1:2], SAMPLED)
    keys = branch_keys(0, "evaluate", 0, batch.names, 1)
    found = jax.device_get(
        evaluated(kit.params(), batch.group, batch.blind, batch.rows, keys)
    )
    same(found, sampled()[1], (np.arange(3), np.array([6, 8, 10])))


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["base", "no_cot"])
def test_one_condition_is_a_group_without_branches(condition):
    batch = batch_of(kit.examples()[:2], [condition])
    assert batch.group.branches is None
    keys = branch_keys(0, "evaluate", 0, batch.names, 2)
    found = jax.device_get(
        evaluated(kit.params(), batch.group, batch.blind, batch.rows, keys)
    )
    check(batch, *found, samples=2)
    at = SAMPLED.index(condition)
    theirs = np.arange(12).reshape(2, 3, 2)[:, at].reshape(-1)
    same(found, sampled()[1], (np.arange(4), theirs))
