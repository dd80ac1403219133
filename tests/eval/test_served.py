"""A scripted chat endpoint as the policy under test: what is sent, what is read."""

import base64
import json
import math

import pytest

from tests import kit
from tests.judges.server import body_of, serve
from vlmrl.answers import reading
from vlmrl.client.cache import Budget
from vlmrl.client.http import Client, Endpoint, Reply
from vlmrl.eval import measures, records, served
from vlmrl.perturb import ORDER, apply
from vlmrl.prompts import styles
from vlmrl.types import UserError

GOOD = "<think>The dog is left. So the answer is B.</think><answer>B</answer>"


def token(text, *others, p=0.6):
    """A served token with its alternatives [(text, probability)]."""

    def one(text, p):
        return {"token": text, "bytes": list(text.encode()), "logprob": math.log(p)}

    return one(text, p) | {"top_logprobs": [one(t, q) for t, q in [(text, p), *others]]}


def client(server, **fields):
    return Client(Endpoint(server.url, "m", backoff_seconds=0.001, **fields))


def ask(answer, conditions, count=2, **settings):
    with serve(answer) as server, client(server) as c:
        how = served.ServedSettings(**settings)
        found = served.evaluate(c, kit.examples(count), conditions, how)
        return found, [json.loads(b) for b in server.bodies]


def test_every_condition_gives_one_record_of_the_usual_kind(tmp_path):
    found, bodies = ask(lambda r: body_of(GOOD), ORDER)
    names = [(e.id, c) for e in kit.examples(2) for c in ORDER]
    assert [(r.example, r.condition) for r in found] == names
    assert len(bodies) == len({json.dumps(b) for b in bodies}) == len(found)
    records.write(tmp_path / "r.parquet", found)
    rows = measures.summarise(records.read(tmp_path / "r.parquet"))
    assert len(rows) == len(ORDER)
    for row in rows:
        assert row["entropy"] is None and row["consistent_probe"] is None
        assert row["think_tokens"] is None
    for r in found:
        for start, end in r.spans:
            assert 0 <= start < end <= len(r.prompt)
        if r.condition == "base":
            assert r.predicted == 1 and r.verdict == "consistent" and r.judge == "rule"
            assert (r.engine, r.version) == ("chat", "m")
            assert r.letters_from == "absent" and r.prefill_as == ""
            assert r.format and r.finish == "stop" and not r.truncated


def test_what_does_not_apply_is_not_sent():
    open_item = kit.examples(1)[0]._replace(open=True)
    with serve(lambda r: body_of(GOOD)) as server, client(server) as c:
        rows = served.evaluate(c, [open_item], ["base", "abstain+base"])
    assert [r.condition for r in rows] == ["base"] and len(server.bodies) == 1
    assert rows[0].not_asked == ["abstain+base: it is asked without its options"]
    assert served.asked([open_item], ["base", "abstain+base"]) == 1


def test_images_are_sent_as_they_are():
    (found,), (body,) = ask(lambda r: body_of(GOOD), ["base"], count=1)
    example = kit.examples(1)[0]
    image, text = body["messages"][-1]["content"]
    data = image["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(data) == example.images[0]
    assert example.question in text["text"] and text["text"] in found.prompt
    broken = example._replace(images=(b"BM",))
    with pytest.raises(UserError, match="is not PNG, JPEG, GIF or WebP"):
        served._sent(served.turns(broken, "r1v", "user")[0], broken)


@pytest.mark.parametrize("way", served.PREFILLS)
def test_a_wrong_think_reaches_the_model_and_the_record_says_how(way):
    rest = " No, wait. So the answer is A.</think><answer>A</answer>"
    (found,), (body,) = ask(lambda r: body_of(rest), ["wrong_think"], 1, prefill=way)
    given = apply(kit.examples(1)[0], "wrong_think").prefill
    last = body["messages"][-1]
    if way == "user":
        assert last["role"] == "user" and last["content"][-1]["text"].endswith(given)
    else:
        assert last == {"role": "assistant", "content": given}
    assert body.get("continue_final_message", False) == (way == "continue")
    assert found.prefill_as == way
    assert found.completion == rest and found.predicted == 0
    assert found.think == (given + rest).split("</think>")[0].removeprefix("<think>")
    assert found.think_sampled == " No, wait. So the answer is A."
    assert found.conclusion == 0 and found.verdict_sampled == "consistent"
    (start, end) = found.spans[-1]
    assert found.prompt[start:end] == given


def test_a_prefill_that_is_repeated_is_taken_off():
    example = apply(kit.examples(1)[0], "wrong_think")
    reply = Reply(example.prefill + " So B.</think><answer>B</answer>", "", True)
    assert served.completion(example, reply) == " So B.</think><answer>B</answer>"


def test_reasoning_that_is_given_apart_is_the_think():
    example = kit.examples(1)[0]
    reply = Reply("<answer>B</answer>", "", True, reasoning="So the answer is B.")
    found = served.completion(example, reply)
    assert found == "<think>So the answer is B.</think><answer>B</answer>"


INSIDE = "It is red. So the answer is B.\n</think>\n\n<answer>B</answer>"


def test_a_reply_that_begins_inside_a_think_is_read_from_there():
    """Where a server's template opens it; a reply that was cut off with the others."""
    cut = "It is red. So the"

    def answer(request):
        text = request["messages"][-1]["content"][-1]["text"]
        return body_of(cut if kit.examples(2)[1].question in text else INSIDE)

    rows, _ = ask(answer, ["base", "wrong_think", "no_cot"])
    first = {r.condition: r for r in rows if r.example == kit.examples(1)[0].id}
    base = first["base"]
    assert (base.prefill, base.prefill_as) == ("<think>", "template")
    assert base.completion == INSIDE and base.prompt.endswith("<think>")
    assert base.format and base.predicted == 1 and base.verdict == "consistent"
    assert base.think == INSIDE.split("</think>")[0]
    last = next(r for r in rows if r.completion == cut and r.condition == "base")
    assert last.think == cut and last.truncated == (last.finish == "length")
    direct = first["no_cot"]
    assert direct.predicted == 1 and direct.think == base.think


def test_reasoning_goes_on_where_a_prefill_began_it():
    example = apply(kit.examples(1)[0], "wrong_think")
    reply = Reply("<answer>B</answer>", "", True, reasoning=" No, B.")
    assert served.completion(example, reply) == " No, B.</think><answer>B</answer>"
    direct = apply(kit.examples(1)[0], "no_cot")
    for text, reasoning in (("B", "Red."), ("Red.</think>\n\nB", "")):
        reply = Reply(text, "", True, reasoning=reasoning)
        whole = served.completion(direct, reply)
        assert whole == "<think>Red.</think>\n<answer>B</answer>"
        assert served.begun(direct, whole, opened=True) == ""


@pytest.mark.parametrize("said", ["B", " B\n", ">B</answer>", "<answer>B</answer>"])
@pytest.mark.parametrize("way", ["user", "continue"])
def test_an_answer_without_a_think_is_read(said, way):
    (found,), _ = ask(lambda r: body_of(said), ["no_cot"], 1, prefill=way)
    if said.startswith("<answer>"):  # said again after the opening: two openings
        found_option = found.predicted
        assert found_option in (1, -1)
        return
    assert found.predicted == 1 and found.verdict == "not_applicable"


def test_letters_from_logprobs():
    tokens = [token("<think>Hm.</think>"), token("<"), token("answer")]
    tokens += [
        token(">A", (">B", 0.3), ("A", 0.05), (">Apple", 0.05)),
        token("</answer>"),
    ]
    text = "".join(t["token"] for t in tokens)

    def answer(request):
        assert request["logprobs"] is True and request["top_logprobs"] == 20
        return body_of(text, logprobs={"content": tokens})

    (found,), _ = ask(answer, ["base"], 1, logprobs=True)
    options = len(found.options)
    assert found.letters == pytest.approx([2 / 3, 1 / 3, *[0] * (options - 2)])
    assert found.option_mass == pytest.approx(0.9)
    assert (found.letters_from, found.scored) == ("logprobs", "letters")
    assert found.forced == 0
    wanted = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found.entropy == pytest.approx(wanted)
    assert found.p_correct == found.letters[found.answer]


def test_letters_that_were_not_asked_for_are_absent():
    """Under a style that asks for the option's text."""
    content = [token("<answer>"), token("A"), token("</answer>")]

    def answer(request):
        return body_of("<answer>A</answer>", logprobs={"content": content})

    for style, scored in (("r1v", "letters"), ("vigorl", "")):
        (found,), _ = ask(answer, ["base"], 1, logprobs=True, style=style)
        assert found.scored == scored and bool(found.letters) == bool(scored)


@pytest.mark.parametrize(
    "prefill, tokens, wanted",
    [
        ("", [token("<answer>"), token("B", ("A", 0.2))], [0.25, 0.75]),
        ("", [token("<answer>"), token(" B", (" A", 0.2), ("A", 0.2))], [0.4, 0.6]),
        ("", [token("<answer>("), token("B)", ("A)", 0.2))], [0.25, 0.75]),
        ("<answer", [token(">B", (">A", 0.2))], [0.25, 0.75]),
        ("<answer", [token(">"), token("B", ("A", 0.2))], [0.25, 0.75]),
        ("", [token("B", ("A", 0.2), ("The", 0.1))], [0.25, 0.75]),
        # the last answer counts, not one inside the think
        ("", [token("<answer>A</answer> <answer>"), token("B")], [0, 1]),
        ("", [token("no answer at all")], None),
        ("", [token("<answer>"), token("red")], None),
        ("", [], None),
        ("<answer>A</answer>", [token(" indeed")], None),
    ],
)
def test_where_the_letter_stands(prefill, tokens, wanted):
    found = served.letter_probabilities(tokens, prefill, 2)
    assert found is None if wanted is None else found[0] == pytest.approx(wanted)


def test_broken_logprobs_are_absent_not_an_error():
    for bad in [[{}], [{"token": 5}], [{"token": "<answer>A", "logprob": "x"}]]:
        assert served.letter_probabilities(bad, "", 2) is None


def test_letters_from_samples():
    said = iter(["A", "B", "B", "?"])

    def answer(request):
        return body_of(f"<think>Hm.</think><answer>{next(said)}</answer>")

    found, bodies = ask(answer, ["base"], 1, samples=4, temperature=1.0)
    assert [r.sample for r in found] == [0, 1, 2, 3] and len(bodies) == 4
    for r in found:
        assert r.letters[:2] == pytest.approx([1 / 3, 2 / 3])
        assert r.option_mass == 0.75
        assert (r.letters_from, r.letter_samples) == ("samples", 3)
        assert (r.scored, r.forced) == ("letters", -1)


def test_a_failed_call_is_a_record_that_says_so():
    with (
        serve(lambda r: body_of(GOOD), lambda b, n: "500") as server,
        client(server, attempts=2) as c,
    ):
        (found,) = served.evaluate(c, kit.examples(1), ["base"])
    assert found.finish == "error: status 500 (attempt 2)"
    assert found.predicted == -1 and not found.correct and not found.followed
    assert found.verdict == "undecided"


def test_a_second_run_sends_nothing_and_a_spent_budget_leaves_no_records(tmp_path):
    usage = {"prompt_tokens": 15_000, "completion_tokens": 50}
    settings = served.ServedSettings(max_tokens=100, style="tiny")
    with serve(lambda r: body_of(GOOD) | {"usage": usage}) as server:
        e, cache = Endpoint(server.url, "m", concurrency=1), tmp_path / "c"
        with (
            Client(e, cache=cache, budget=Budget(tokens=40_000)) as c,
            pytest.raises(UserError, match="were not requested: the budget is spent"),
        ):
            served.evaluate(c, kit.examples(4), ["base"], settings)
        spent = len(server.bodies)
        for _ in range(2):
            with Client(e, cache=cache) as c:
                found = served.evaluate(c, kit.examples(4), ["base"], settings)
        assert len(found) == len(server.bodies) == 4 and spent == 2


@pytest.mark.parametrize(
    "settings, complaint",
    [
        (
            {"prefill": "both"},
            "prefill: expected one of continue, assistant, user; got 'both'",
        ),
        ({"samples": 3}, "samples is 3 but temperature is 0"),
        ({"style": "x"}, "unknown prompt style 'x'"),
    ],
)
def test_bad_settings_are_named(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        ask(lambda r: body_of(GOOD), ["base"], **settings)


def test_an_answer_is_read_by_the_rule_of_its_style():
    """As every other evaluation reads it, and the record names the rule."""
    (example,) = kit.examples(1)
    for style in ("tiny", "vlmevalkit"):
        turn = ([{"role": "user", "content": example.question}], "", [])
        row = served._record(example, turn, style, Reply("A", "", True))
        parsed = reading.read("A", example, style).parsed
        assert (row.predicted, row.format) == (parsed.option, parsed.strict)
        assert row.parser == styles.style(style).parser
