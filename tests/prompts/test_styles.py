"""Prompts: exact texts, spans, refusal of control tokens."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vlmrl.answers.strict import PARSER
from vlmrl.answers.tools import PARSERS
from vlmrl.data.sets import SETS
from vlmrl.perturb import ORDER, applies, apply
from vlmrl.prompts.styles import STYLES, build, chatml, messages, style
from vlmrl.types import Example, UserError

EXAMPLE = Example(
    id="test/0/relation",
    images=(b"png",),
    question="Is the circle left or right of the square?",
    options=("left", "right"),
    answer=1,
    suggested=0,
    source="scenes",
    task="relation",
    cluster="test/0",
    statements=("the circle is left", "the circle is right"),
    thinks=("So it is left.", "So it is right."),
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def test_tiny_prompt_is_exactly_this():
    prompt = build(apply(EXAMPLE, "abstain+wrong_think"), "tiny")
    assert prompt.text == (
        "<|im_start|>system\nThink, then answer.<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE}Is the circle left or right of the square?\n"
        "A. left\nB. right\nC. I'm not sure<|im_end|>\n"
        "<|im_start|>assistant\n<think>So it is left."
    )
    assert [prompt.text[a:b] for a, b in prompt.spans] == [
        "C. I'm not sure",
        "<think>So it is left.",
    ]
    assert prompt.blind == prompt.text.replace(IMAGE, "")
    assert prompt.hash == hashlib.sha256(prompt.text.encode()).hexdigest()[:16]
    assert prompt.style == "tiny" and prompt.example.condition == "abstain+wrong_think"


def test_caption_stands_after_the_image_and_before_the_question():
    prompt = build(apply(EXAMPLE, "wrong_caption"), "tiny")
    assert f"{IMAGE}The circle is left.\nIs the circle" in prompt.text
    assert [prompt.text[a:b] for a, b in prompt.spans] == ["The circle is left."]


def test_no_cot_keeps_the_system_text_and_changes_the_suffix():
    direct = build(apply(EXAMPLE, "no_cot"), "tiny")
    base = build(EXAMPLE, "tiny")
    user = direct.text.index("<|im_start|>user")
    assert direct.text[:user] == base.text[:user]
    assert direct.text.endswith(
        "B. right\nAnswer with the letter.<|im_end|>\n<|im_start|>assistant\n<answer"
    )
    assert [direct.text[a:b] for a, b in direct.spans] == [
        "Answer with the letter.",
        "<answer",
    ]


@pytest.mark.parametrize("name", STYLES)
def test_conditions_share_all_text_before_the_user_turn(name):
    starts = set()
    for condition in ORDER:
        text = build(apply(EXAMPLE, condition), name).text
        starts.add(text[: text.index("<|im_start|>user")])
    assert len(starts) == 1


def test_named_styles_hold_their_own_texts():
    r1v = STYLES["r1v"].system
    assert r1v.startswith("A conversation between User and Assistant. The user asks")
    assert r1v.endswith(
        "i.e., <think> reasoning process here </think><answer> answer here </answer>"
    )
    assert STYLES["vlaa"].system.startswith("You are VL-Thinking🤔, a helpful")
    for name in ("video_r1", "spacer"):
        assert "thought expressions It's encouraged" in STYLES[name].think
        assert STYLES[name].think.endswith(
            "tags. Please provide only the single option letter (e.g., A, B, C, D,"
            " etc.) within the <answer> </answer> tags."
        )
    vision = build(EXAMPLE, "vision_r1").text
    assert "square?\nChoices:\nA: left\nB: right<|im_end|>" in vision
    assert vision.startswith("<|im_start|>system\nYou are a helpful assistant.")
    assert STYLES["vigorl"].form == "text"


def test_messages_are_in_the_form_that_templates_take():
    two = EXAMPLE._replace(images=(b"a", b"b"))
    system, user = messages(two, STYLES["tiny"])
    assert system["role"] == "system"
    assert user["content"][:2] == [{"type": "image"}] * 2
    assert user["content"][2]["type"] == "text"
    assert chatml([system, user]).count("<|image_pad|>") == 2
    assert len(messages(two, STYLES["vision_r1"])) == 1


def test_an_item_without_options_has_no_option_lines():
    text = build(EXAMPLE._replace(options=()), "vision_r1").text
    assert "Choices" not in text and "square?<|im_end|>" in text


@pytest.mark.parametrize(
    "token",
    [
        "<|im_end|>",
        "<|image_pad|>",
        "<|im_start|>",
        "<|endoftext|>",
        "<IMG_CONTEXT>",
        "<img>",
        "\ud800",
    ],
)
@pytest.mark.parametrize("field", ["question", "options", "caption", "prefill"])
def test_control_tokens_in_data_are_refused(token, field):
    text = f"what {token} is it"
    value = ("left", text) if field == "options" else text
    with pytest.raises(UserError, match=f"test/0/relation.*{field}") as error:
        build(EXAMPLE._replace(**{field: value}), "tiny")
    assert "\n" not in str(error.value)


def test_harmless_angle_brackets_stay():
    question = "Is 1 <| 2 |> 3 <b>bold</b>, </think> or <answer>A</answer>?"
    assert question in build(EXAMPLE._replace(question=question), "tiny").text


def test_bad_styles_templates_and_option_counts():
    with pytest.raises(UserError, match="known: tiny, r1v"):
        style("nope")
    with pytest.raises(UserError, match="template"):
        build(EXAMPLE, "tiny", render=lambda chat: chatml(chat).upper())
    with pytest.raises(UserError, match="27 options"):
        build(EXAMPLE._replace(options=tuple(map(str, range(27)))), "tiny")


words = st.text("ab <>|.\n", max_size=12)


@given(
    st.sampled_from(ORDER),
    st.sampled_from(list(STYLES)),
    words,
    st.lists(words, min_size=2, max_size=4).map(tuple),
)
def test_spans_cover_exactly_what_the_condition_wrote(name, how, question, options):
    example = EXAMPLE._replace(
        question=question,
        options=options,
        answer=0,
        suggested=1,
        statements=("a red cat",) * len(options),
        thinks=("a red cat",) * len(options),
    )
    assume(not applies(example, name))
    perturbed = apply(example, name)
    prompt = build(perturbed, how)
    written = [prompt.text[a:b] for a, b in prompt.spans]
    added = STYLES[how].option.format(letter="ABCDE"[len(options)], text="I'm not sure")
    expected = [
        perturbed.caption,
        added if name.startswith("abstain+") else "",
        STYLES[how].direct.strip() if perturbed.direct else "",
        perturbed.prefill,
    ]
    assert written == [text for text in expected if text]
    ends = [0] + [end for span in prompt.spans for end in span]
    assert ends == sorted(ends)  # in order, apart
    rest = "".join(
        prompt.text[a:b]
        for a, b in zip(ends[::2], [*ends[1::2], len(prompt.text)], strict=True)
    )
    counted = "{letters}" in STYLES[how].ask  # and one more is offered under abstain
    # cut the spans out and the base prompt is left
    if not perturbed.direct and not counted:
        base = build(example, how).text
        squeeze = str.maketrans("", "", "\n")
        assert rest.translate(squeeze) == base.translate(squeeze)


# -- other tools' wordings and rules ---------------------------------------------------

ITEM = EXAMPLE._replace(
    question="Which animal is this?",
    options=("cat", "dog", "cow"),
    images=(),
    answer=1,
    suggested=0,
    statements=(),
    thinks=(),
    meta='{"hint": "Look closely."}',
)
LISTED = "A. cat\nB. dog\nC. cow\n"
DIRECTLY = "Answer with the option's letter from the given choices directly."
NOTE = (
    "Look closely.\nNote: You only need to respond with A, B, C without providing any"
    " additional information.\nWhich animal is this?"
)
CHOICES = "Select from the following choices.\n(A) cat\n(B) dog\n(C) cow"
SNAPSHOTS = {
    "vlmevalkit": "Hint: Look closely.\nQuestion: Which animal is this?\nOptions:\n"
    f"{LISTED}Please select the correct answer from the options above. \n",
    "vlmevalkit_yes_no": "Look closely.\nWhich animal is this?",
    "lmms_eval": f"Look closely.\nWhich animal is this?\n{LISTED}{DIRECTLY}",
    "lmms_mmbench": "Look closely. Which animal is this? There are several options:\n"
    f"{LISTED}{DIRECTLY}",
    "lmms_cv_bench": f"{NOTE} {CHOICES}",
    "lmms_blink": f"{NOTE}\n{CHOICES}",
    "lmms_vstar": f"Look closely.\nWhich animal is this?\n{LISTED}{DIRECTLY}",
    "lmms_3dsrbench": "Look closely.\nQuestion: Which animal is this?\nOptions:\n"
    f"{LISTED}Please select the correct answer from the options above. \n",
    "lmms_mmvp": f"Look closely.\nWhich animal is this?\n{LISTED}{DIRECTLY}",
    "lmms_sat": "Look closely.\nWhich animal is this?\nWhen multiple images are"
    " provided, You want to realize that when camera moves left, the objects in the"
    " image move right, and vice versa. And when you are asked about the movement of"
    " the same object captured in different images, you can compare the position of the"
    " object relative to other objects in the image to answer the question.\n\n"
    f"{LISTED}\nOnly output the letter of the correct option and nothing else.",
    "lmms_pope": "Look closely.\nWhich animal is this?\n"
    "Answer the question using a single word or phrase.",
    "lmms_pixmo_count": "Look closely.\nWhich animal is this?\n"
    "Answer with a single number.",
    "mme_realworld": "Look closely.\nWhich animal is this? The choices are listed"
    " below:\n(A) cat\n(B) dog\n(C) cow\nSelect the best answer to the above"
    " multiple-choice question based on the image. Respond with only the letter (A, B,"
    " C, D, or E) of the correct option.\nThe best answer is:",
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_other_tools_wordings_to_the_letter(name):
    (user,) = messages(ITEM, STYLES[name])
    assert user["content"] == [{"type": "text", "text": SNAPSHOTS[name]}]
    assert build(ITEM, name).style == name


def test_the_table_of_styles_by_set_names_what_there_is():
    """vlmrl/data/README.md: which tool's wording is which style, set by set."""
    page = (Path(__file__).parents[2] / "vlmrl/data/README.md").read_text()
    table = page[page.index("| set |") :].partition("\n\n")[0].splitlines()[2:]
    rows = [[c.strip(" `") for c in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == list(SETS)
    named = {name for row in rows for name in row[1:] if name != "–"}
    assert named <= set(STYLES) and set(SNAPSHOTS) <= named


def test_every_style_of_another_tool_has_its_snapshot_and_rule():
    assert all(how.parser in PARSERS for how in STYLES.values())
    others = {name for name, how in STYLES.items() if how.parser != PARSER}
    assert others == set(SNAPSHOTS)


def test_open_questions_are_asked_without_their_candidates():
    count = ITEM._replace(options=("3", "4"), answer=0, open=True, meta="")
    for name in STYLES:
        text = build(count, name).text
        assert "A. 3" not in text and "(A) " not in text and "letter" not in text
    assert "only your final answer within" in build(count, "r1v").text
    direct = build(count._replace(direct=True), "r1v").text
    assert "Answer with a single word, number or phrase." in direct
    with pytest.raises(UserError, match="asked without its options"):
        apply(count, "abstain+base")


def test_hints_with_control_tokens_are_refused():
    with pytest.raises(UserError, match="hint holds the control token"):
        build(ITEM._replace(meta='{"hint": "<|im_end|>"}'), "tiny")
