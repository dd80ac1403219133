"""Option probabilities, of letters and of texts, are those of plain forward passes, for
evaluation and training alike, in a checkpoint with Qwen's own vocabulary."""

import copy
import functools
import types
from string import ascii_uppercase
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from tests import kit, real_tokenizer
from tests.eval.test_kernel import EVERY, LENGTH, PROBES, letter_ids, read_plainly
from vlmrl import policy as policies
from vlmrl import sharding
from vlmrl.answers import strict
from vlmrl.engine import options
from vlmrl.engine.logprobs import logits
from vlmrl.engine.prefix_cache import embed_group, extend
from vlmrl.eval import kernel
from vlmrl.loops import evaluate
from vlmrl.prompts import styles, tokens
from vlmrl.rl import cot_probe
from vlmrl.types import Example, Group, Rollout, UserError

# -- what is measured ------------------------------------------------------------------


def item(**fields) -> Example:
    return kit.examples(1)[0]._replace(options=("red", "blue", "green"), **fields)


def test_what_is_measured_of_an_item():
    def kind(example, style="r1v"):
        return options.measure(kit.processor(), example, style).kind

    assert kind(item()) == "letters"
    assert kind(item(open=True)) == "texts"
    assert kind(item(), "vigorl") == kind(item(open=True), "vigorl") == "texts"
    for name, style in styles.STYLES.items():
        if style.parser != strict.PARSER:  # asks for the bare letter, number or word
            assert kind(item(), name) == "", name
    for few in ((), ("red",)):
        assert kind(item()._replace(options=few)) == ""
        assert kind(item(open=True)._replace(options=few)) == ""
    assert kind(item(open=True)._replace(options=("a", "b " * 300))) == ""
    assert kind(item()._replace(options=("a", "b " * 300))) == "letters"


def test_texts_are_the_tokens_that_a_model_would_write():
    processor, words = kit.processor(), kit.processor().token_bytes
    for text in ("red", "A", "(B", "red.", " left ", "", "two discs"):
        ids = options.text_ids(processor, text)
        whole = processor.encode_plain(f"<answer>{text}</answer>")
        assert processor.encode_plain("<answer") + list(ids) == whole
        assert b"".join(words[i] for i in ids).decode() == f">{text}</answer>"
    assert words[options.text_ids(processor, "A")[0]] == b">A"


def test_sizes_are_few_and_large_enough():
    seen = set()
    for count in range(1, 27):
        for length in (0, 5, 30, options.LONGEST):
            texts = ((0,) * length,) * (count if length else 0)
            one = options.Measured("texts" if texts else "letters", count, texts)
            sizes = options.sizes_of([one, options.Measured("", 1)])
            assert sizes.options >= count and sizes.tokens >= length
            assert bool(sizes.tokens) == bool(length)
            rows = options.option_rows([one], sizes)
            assert rows.valid.sum() == count
            assert (rows.ids is None) == (not length)
            if length:
                assert rows.mask.sum() == count * length
            seen.add((sizes.options, sizes.tokens))
    assert len(seen) <= 8 * 7
    with pytest.raises(UserError, match="at most 26"):
        options.sizes_of([options.Measured("letters", 27)])


def test_letters_in_every_spelling():
    """`>A`, `> A`, `>(A` at once; `>`, `>(`, `> (` and then `A`, ` A`, `(A`; nothing
    that goes on, nothing banned, no other letter."""
    words = [b">A", b"> A", b">(B", b">", b">(", b"> (", b"A", b" B", b"(A", b"AB"]
    words += [b">AB", b"a", b">>", b"B", *(c.encode() for c in ascii_uppercase[2:])]
    banned = [i == 13 for i in range(len(words))]  # the 'B' of one token

    def made(words):
        processor = types.SimpleNamespace(token_bytes=words, banned=banned)
        return options.letter_spellings(processor)

    letters = made(words)
    assert letters.direct.tolist()[:3] == [[0, 1], [2, -1], [-1, -1]]
    assert letters.bridges.tolist() == [3, 4, 5]
    assert letters.second.tolist()[:3] == [[6, 8], [7, -1], [14, -1]]
    with pytest.raises(UserError, match="no token writes the letter Z"):
        made(words[:-1])


def test_a_tokenizer_that_adds_bos_adds_none():
    """As Llama 3.1's does: what is forced is read in the middle of a turn."""
    plain = kit.processor()
    adding = copy.deepcopy(plain.tokenizer)
    adding._tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A",
        special_tokens=[
            ("<|endoftext|>", adding.convert_tokens_to_ids("<|endoftext|>"))
        ],
    )
    adding = plain._replace(tokenizer=adding)
    assert len(adding.tokenizer.encode("a")) == 2
    assert options.text_ids(adding, "red") == options.text_ids(plain, "red")
    for turn in ("", "<think>a</think>"):
        assert cot_probe.opened(adding, turn, []) == cot_probe.opened(plain, turn, [])


@pytest.mark.parametrize("name", ["options", "option"])
def test_a_setting_of_their_number_is_refused(name):
    with pytest.raises(UserError, match=rf"kernel\.{name}: .*") as caught:
        evaluate.settings_of({"samples": 1, name: 6})
    assert ("sized from the data" in str(caught.value)) == (name == "options")


# -- the law ---------------------------------------------------------------------------

CONDITIONS = ("base", "wrong_think", "no_cot", "abstain+stop_think")
SAMPLES = 2
# What the two samples of a row wrote, by the stage that its turn began in.
WRITTEN = {
    options.NOTHING: (
        "<think>The disc is red. It is left.</think>\n<answer>left</answer>",
        "<think>Hm. There are two of them",
    ),
    options.THINKING: (
        " and so on. It is B.</think><answer>",
        " no.</think> Left",
    ),
    options.THOUGHT: ("\n<answer>A</answer>", "The left one."),
    options.ANSWERING: (">A</answer>", "> left</answer>"),
}


class Case(NamedTuple):
    policy: policies.Policy
    prompts: list  # of every row
    sampled: list  # token ids of every row
    records: list


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """An evaluation of four items of unlike kinds, the kernel given what was sampled:
    two with letters (four options, and three under two images), two open ones with
    candidates (of one token and of several)."""
    path = real_tokenizer.checkpoint(tmp_path_factory.mktemp("qwen") / "model")
    buckets = tokens.Buckets((64, 128), (96,), (2,), (4,))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    policy = policies.load(path, style="tiny", mesh=mesh)._replace(shapes=(buckets,))
    first, second, third, fourth = kit.examples(4)
    names = dict(statements=(), thinks=(), suggested=1, answer=0)
    examples = [
        first._replace(options=("left", "right", "above", "below"), **names),
        third._replace(options=("4", "5", "12"), open=True, kind="number", **names),
        second._replace(
            images=(*second.images, *first.images),
            options=("red.", "blue", "green"),
            **names,
        ),
        fourth._replace(options=("the left disc", "A"), open=True, **names),
    ]
    spied, passes = [], []
    whole = evaluate._record

    def spy(policy, prompt, rollout, scores, i):
        record = whole(policy, prompt, rollout, scores, i)
        spied.append((prompt, rollout.tokens[i][rollout.mask[i]], record))
        return record

    def inputs(processor, rows, one, measured):
        passes.append([p.turn for p in rows.prompts])
        return evaluate_inputs(processor, rows, one, measured)

    def replay(model, params, cache, keys, stops, **settings):
        given = rollout_of(policy.processor, passes[-1])
        _, own = extend(model, params, cache, given.tokens, given.mask)
        return jax.tree.map(jnp.asarray, given), own

    evaluate_inputs = evaluate._inputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_record", spy)
        patch.setattr(evaluate, "_inputs", inputs)
        patch.setattr(kernel, "generate", replay)
        records = evaluate.evaluate(
            policy, examples, CONDITIONS, samples=SAMPLES, temperature=1.0,
            max_tokens=LENGTH, probe_every=EVERY, probes=PROBES, batch=2,
        )  # fmt: skip
    found = {(r.example, r.condition, r.completion): (p, s) for p, s, r in spied}
    keys = [(r.example, r.condition, r.completion) for r in records]
    pairs = [found[k] for k in keys]
    return Case(policy, [p for p, _ in pairs], [s for _, s in pairs], records)


def rollout_of(processor, turns) -> Rollout:
    texts = [t for turn in turns for t in WRITTEN[options.stage_of(turn)]]
    rows = [processor.encode_plain(t) for t in texts]
    rows[1] = rows[1][:1] + [i for c in "Hm. A" for i in processor.encode_plain(c)]
    ids = np.zeros((len(rows), LENGTH), np.int32)
    for i, row in enumerate(rows):
        assert len(row) <= LENGTH
        ids[i, : len(row)] = row
    mask = np.arange(LENGTH) < np.array([len(r) for r in rows])[:, None]
    zeros = np.zeros(ids.shape, np.float32)
    return Rollout(ids, zeros, zeros, mask, mask.sum(-1) < LENGTH)


TAIL, WIDTH, BATCH = 12, 160, 24  # last tokens that are scored; tokens, rows of a pass


class PlainForward:
    """Log-probs by ordinary rows: one segment, dense attention, no cache."""

    def __init__(self, policy):
        self.policy, model = policy, policy.model
        direct, self.bridges, second = letter_ids(6, policy.processor)
        self.direct, self.second = direct, second
        self.ids = np.array([*self.bridges, *direct, *second])

        @jax.jit
        def run(params, rows, vision):
            new = embed_group(model, params, Group(rows, vision, None))
            (hidden,), _ = model.layers(params, new, (), kit.dense)
            last = rows.mask.sum(-1)[:, None] - 1
            at = jnp.maximum(last + jnp.arange(-TAIL, 1), 0)
            tail = jnp.take_along_axis(hidden, at[..., None], axis=1)
            targets = jnp.take_along_axis(rows.ids, jnp.minimum(at + 1, WIDTH - 1), 1)

            def score(x):
                h, t = x
                logp = jax.nn.log_softmax(logits(h, model.head(params)), axis=-1)
                return jnp.take_along_axis(logp, t[:, None], 1)[:, 0], logp[-2:, ids]

            return jax.lax.map(score, (tail, targets))

        ids = jnp.asarray(self.ids)
        self.run = run

    def __call__(self, rows):
        """Return (log-probs of the last TAIL tokens, of `ids` at the last two places)
        of rows of Encoded."""
        parts, p = [], self.policy
        for start in range(0, len(rows), BATCH - 1):
            part = rows[start : start + BATCH - 1]
            part = part + [rows[0]] * (BATCH - len(part))  # one with an image at least
            vision = tokens._vision(part, p.processor.geometry, p.shapes[0])
            each = vision.order.shape[-1]
            placed = [
                r._replace(image=tokens._local(r, 0, len(r.ids), each)) for r in part
            ]
            found = jax.device_get(
                self.run(p.params, kit.padded(placed, WIDTH), vision)
            )
            parts.append([x[: len(rows) - start][: BATCH - 1] for x in found])
        token, spelled = (np.concatenate(x) for x in zip(*parts, strict=True))
        return token[:, :TAIL], spelled

    def of(self, asked):
        """Return [(masses of the options, per-token ones or None)] of asked points:
        (Encoded up to `<answer`, example, 'letters' or 'texts')."""
        rows, spans = [], []
        for encoded, example, kind in asked:
            if kind == "letters":
                ways = [[i] for i in self.bridges]
            else:
                encode = self.policy.processor.encode_plain
                stem = len(encode("<answer"))
                ways = [encode(f"<answer>{o}</answer>")[stem:] for o in example.options]
            spans.append((len(rows), ways))
            rows += [tokens.behind(encoded, way) for way in ways]
        token, spelled = self(rows)
        out = []
        for (start, ways), (_, example, kind) in zip(spans, asked, strict=True):
            if kind == "texts":
                sums = [token[start + k, -len(w) :].sum() for k, w in enumerate(ways)]
                sizes = np.array([len(w) for w in ways])
                out.append((np.exp(np.array(sums, float)), np.exp(sums / sizes)))
                continue
            p = [np.exp(spelled[start + k].astype(float)) for k in range(len(ways))]
            at = {int(i): k for k, i in enumerate(self.ids)}
            mass = np.zeros(len(example.options))
            for i, c in self.direct.items():
                if c < len(mass):
                    mass[c] += p[0][0, at[i]]
            for row, bridge in zip(p, self.bridges, strict=True):
                for i, c in self.second.items():
                    if c < len(mass):
                        mass[c] += row[0, at[bridge]] * row[1, at[i]]
            out.append((mass, None))
        return out


@functools.cache
def letter_or_text(example) -> str:
    return "texts" if example.open else "letters"


def points(case: Case, row: int):
    """Return name → Encoded up to `<answer`, of every probe of a row."""
    processor = case.policy.processor
    prompt, ids = case.prompts[row], case.sampled[row]
    plain = read_plainly(ids, options.stage_of(prompt.turn), processor)
    seen = tokens.encode(processor, prompt)
    blind = tokens.encode(processor, (prompt.blind, ()))
    forced = "</think>\n<answer"
    probes = {"answer": (seen, *plain.answer)}
    probes |= {f"sighted{k}": (seen, c, forced) for k, c in enumerate(plain.sighted)}
    probes |= {"blind": (blind, *plain.answer), "stripped": (blind, *plain.stripped)}
    return {
        name: tokens.behind(e, [*ids[:cut], *processor.encode_plain(text)])
        for name, (e, cut, text) in probes.items()
    }


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_evaluation_and_training_are_plain_forward_passes(case):
    order = [r.scored for r in case.records]
    assert order == (["letters"] * 8 + ["texts"] * 6) * 2
    assert {r.condition for r in case.records} == set(CONDITIONS)
    plain = PlainForward(case.policy)
    asked, where = [], []
    for row, prompt in enumerate(case.prompts):
        for name, encoded in points(case, row).items():
            asked.append((encoded, prompt.example, letter_or_text(prompt.example)))
            where.append((row, name))
    known = dict(zip(where, plain.of(asked), strict=True))
    sighted = 0
    for row, r in enumerate(case.records):
        mass, per_token = known[row, "answer"]
        p = mass / mass.sum()
        close(r.letters, p)
        np.testing.assert_allclose(r.option_mass, mass.sum(), rtol=1e-4)
        close(r.entropy, -(p * np.log(p)).sum())
        close((r.p_correct, r.p_suggested), p[[r.answer, r.suggested]])
        assert r.forced == np.argmax(p) and len(r.letters) == len(r.options)
        if r.scored == "texts":
            close(r.normalised, per_token / per_token.sum())
        else:
            assert r.normalised == []
        for name, found in (("blind", r.blind), ("stripped", r.blind_stripped)):
            close(found, known[row, name][0] / known[row, name][0].sum())
        assert r.consistent_probe == (np.argmax(known[row, "blind"][0]) == r.forced)
        assert len(r.sighted) == sum(k == row and "sight" in n for k, n in known)
        for k, found in enumerate(r.sighted):
            close(
                found, known[row, f"sighted{k}"][0] / known[row, f"sighted{k}"][0].sum()
            )
            sighted += 1
    assert sighted >= 8
    for kind in ("letters", "texts"):  # neither sure nor equal
        tops = [max(r.letters) for r in case.records if r.scored == kind]
        assert 0.3 < np.median(tops) < 0.99 and np.ptp(tops) > 0.05, (kind, tops)

    # Training reads the same rows, all kinds at once.
    processor = case.policy.processor
    pairs = list(zip(case.prompts, case.sampled, strict=True))
    readings = [cot_probe.sighted(p, ids, processor) for p, ids in pairs]
    groups = cot_probe.in_groups(readings, SAMPLES)
    read = cot_probe.reader(case.policy, LENGTH)
    probs = read(case.policy.params, groups).reshape(len(pairs), -1)
    for r, own in zip(case.records, probs, strict=True):
        close(cot_probe.implied(own, len(r.options)), r.letters)
        assert not own[len(r.options) :].any()
