"""Chat templates that open the chain of thought themselves, or write an empty one."""

import functools
import math

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmrl
from tests import kit
from tests.prompts import tagged
from vlmrl import perturb, sharding
from vlmrl.answers.strict import parse
from vlmrl.eval.record_builder import build_record
from vlmrl.judges import model as judge_model
from vlmrl.judges import prompt as judge_prompt
from vlmrl.loops.evaluate import evaluate
from vlmrl.models import registry
from vlmrl.prompts import styles, tag_tokens, tokens
from vlmrl.rl import cot_probe

PLAIN = "Qwen3-VL-Instruct"  # its template opens nothing
OTHERS = [name for name in tagged.TEMPLATES if name != PLAIN]
CONDITIONS = [c for c in perturb.CONDITIONS if c != "base"]
COTS = {"wrong_think", "wrong_think_but", "correct_think", "stop_think"}


def processor(template: str) -> tokens.Processor:
    out = tokens.load_processor(registry.TINY)
    out.tokenizer.chat_template = tagged.TEMPLATES[template]
    return out


@functools.cache
def render(template: str):
    return processor(template).render


def built(condition: str, template: str, style: str = "r1v"):
    example = perturb.apply(kit.examples()[0], condition)
    return styles.build(example, style, render(template))


@pytest.mark.parametrize("template", OTHERS)
@pytest.mark.parametrize("condition", ["base", *CONDITIONS])
def test_a_turn_begins_once_and_is_marked_as_written(template, condition):
    prompt = built(condition, template)
    base = built("base", template)
    plain = built(condition, PLAIN)
    assert prompt.text.endswith(prompt.turn) and prompt.blind.endswith(prompt.turn)
    reply = prompt.text.rpartition("assistant\n")[2]
    # An empty one at most before the turn, where that does not go on with a CoT.
    assert reply.count("<think>") <= 1 and reply.count("</think>") <= 1
    own = prompt.turn.removeprefix("<think>").lstrip()
    assert own == plain.turn.removeprefix("<think>")
    assert ("<think>" in prompt.turn) == (
        condition in COTS or (template in tagged.OPENED and condition != "no_cot")
    )
    if condition == "no_cot":  # closed as the family does without thinking
        if template in ("Qwen3-VL-Thinking", "Qwen3.5", "off"):
            assert reply == "<think>\n\n</think>\n\n<answer"
        assert prompt.turn == "<answer"
    shown = [prompt.text[a:b] for a, b in prompt.spans]
    expected = [plain.text[a:b] for a, b in plain.spans]
    if condition in COTS and template in tagged.OPENED:
        assert shown == [expected[0].removeprefix("<think>")]
    elif condition in COTS:
        assert [x.replace("<think>\n", "<think>") for x in shown] == expected
    elif condition == "no_cot" and template in tagged.OPENED:
        closing = {"bare": "</think>"}.get(template, "\n</think>\n\n")
        assert shown == [*expected[:-1], closing + expected[-1]]
    else:
        assert shown == expected
    if condition == "base":
        assert (
            prompt.text
            == base.text
            == render(template)(styles.messages(prompt.example, styles.style("r1v")))
        )


texts = st.lists(
    st.sampled_from(
        [" It is red.", "So answer A.", "</think>", "<answer>", "A", "</answer>", "\n"]
        + ["B", "<think>", " So the answer is B.", ".", "</think>\n<answer>B</answer>"]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(OTHERS), st.sampled_from(["base", *CONDITIONS]), texts)
def test_the_same_turn_reads_the_same_under_every_template(template, condition, text):
    """The model may repeat the opening that its template wrote."""
    plain, prompt = (built(condition, t) for t in (PLAIN, template))
    opened = plain.turn == "" and prompt.turn != ""
    expected = "<think>" + text if opened else text
    a = build_record(plain, expected, finish="length", engine="")
    repeats = text.lstrip().startswith("<think>")
    for written in (expected,) if repeats else (text, expected):
        b = build_record(prompt, written, finish="length", engine="")
        for name in ("predicted", "correct", "format", "verdict", "verdict_sampled"):
            assert getattr(a, name) == getattr(b, name), name
        assert (a.conclusion, a.truncated) == (b.conclusion, b.truncated)
        assert (a.natural, a.lenient) == (b.natural, b.lenient)
        assert a.think.strip() == b.think.strip()
        assert a.think_sampled.strip() == b.think_sampled.strip()


def test_format_is_reached_and_a_cot_is_read_back_as_it_was_read():
    for template, written in (
        ("Qwen3.5", "It is red. So A.\n</think>\n\n<answer>A</answer>"),
        ("bare", "It is red. So A.</think><answer>A</answer>"),
        ("off", "<think>It is red. So A.</think><answer>A</answer>"),
    ):
        prompt = built("base", template)
        turn = prompt.whole(written)
        parsed = parse(turn, prompt.example.options)
        assert parsed.strict and parsed.option == 0
        probe = cot_probe.blind(prompt, parsed.think)
        start = prompt.blind.removesuffix(prompt.turn)
        assert probe.text == start + "<think>It is red.</think>\n<answer"


def test_a_template_may_strip_the_ends_of_a_text():
    """As Qwen3.5's does; vlmevalkit's suffix ends in white space."""

    def strips(chat):
        for message in chat:
            message["content"][-1]["text"] = message["content"][-1]["text"].strip()
        return render("Qwen3.5")(chat)

    for condition in ("base", "wrong_caption", "abstain+no_cot"):
        kept = built(condition, "Qwen3.5", "vlmevalkit")
        prompt = styles.build(kept.example, "vlmevalkit", strips)
        assert [prompt.text[a:b] for a, b in prompt.spans] == [
            kept.text[a:b] for a, b in kept.spans
        ]
        assert prompt.turn == kept.turn


@pytest.mark.parametrize("template", tagged.TEMPLATES)
def test_a_model_judge_is_never_asked_inside_a_chain_of_thought(template):
    item = judge_model.JudgeItem("1", "Which?", ("red", "blue"), "It is red.", 0)
    write = judge_model.writer(
        processor(template).tokenizer, judge_prompt.load(), False
    )
    reply = write(item).rpartition("assistant\n")[2]
    assert reply in ("", "<think>\n\n</think>\n\n", "<think></think>")


def test_a_line_says_what_the_template_opens():
    ends = {
        "Qwen3-VL-Thinking": "the chat template opens <think>: turns begin inside it",
        "off": "the chat template writes an empty <think></think>",
        PLAIN: "(the tokenizer has no added tokens for them)",
    }
    for template, end in ends.items():
        line = (
            processor(template)
            .with_tags(tag_tokens.choose("auto", (), opened=False, family=""))
            .about_tags()
        )
        assert line.endswith(end)


FIELDS = ("predicted", "correct", "format", "verdict", "truncated", "finish", "natural")


@pytest.fixture(scope="module")
def policies():
    """The tiny model under its own template, and under one that ends in '<think>'."""
    policy = vlmrl.load("tiny", mesh=sharding.make_mesh(devices=jax.devices()[:1]))
    return policy, policy._replace(processor=processor("bare"))


def test_an_evaluation_is_the_same_where_the_template_opens_the_tag(policies):
    conditions = ["base", "wrong_caption", "wrong_think", "stop_think"]
    examples = kit.examples(8, "validation")
    options = dict(max_tokens=72, probe_every=8, probes=2)
    plain, opened = (evaluate(p, examples, conditions, **options) for p in policies)
    assert any(r.verdict == "consistent" for r in opened)
    for a, b in zip(plain, opened, strict=True):
        whole = a.prefill + a.completion
        assert whole.startswith("<think>") and b.prefill + b.completion == whole
        assert [getattr(a, f) for f in FIELDS] == [getattr(b, f) for f in FIELDS]
        assert b.think_tokens == a.think_tokens
        assert (a.prompt == b.prompt) == (a.prefill != "")
        for name in ("letters", "blind", "blind_stripped", "think_entropy"):
            x, y = getattr(a, name), getattr(b, name)
            assert y == pytest.approx(x, abs=2e-4), name
        assert math.isclose(a.option_mass, b.option_mass, abs_tol=2e-4)


@pytest.mark.slow
def test_a_step_of_training_pays_for_agreement(policies):
    trained = vlmrl.train(
        policies[1],
        kit.examples(8, "train"),
        reward="gated",
        steps=1,
        prompts=2,
        sampling={"max_tokens": 72, "group_size": 4},
        judge={"name": "rule"},
    )
    (row,) = trained.metrics
    assert row["reward/format"] > 0.5 and row["reward/consistent"] > 0.5, row
