"""Prompt styles and the chat template.

Training, evaluation during training and the final table all write prompts with `build`,
so that their numbers are comparable.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl import user_code
from vlmrl.types import Example, Prompt, UserError


class Style(NamedTuple):
    """How an item is written as a prompt.

    The user turn is image(s), then `caption⏎` if a condition wrote one, the question,
    `header`, one `option` line per option, and the suffix `think`, or `direct` where
    the example asks for no reasoning. The system text never depends on the condition:
    what comes before the user turn stays a shared prefix.
    """

    system: str  # '' leaves it to the chat template's default
    think: str  # end of the user turn that asks for reasoning
    direct: str  # end of the user turn that asks for the answer at once
    header: str = ""  # line before the options
    option: str = "{letter}. {text}"
    form: str = "letter"  # what <answer> holds: 'letter' or 'text' of the option
    ask: str = "{question}"  # may hold {letters}: 'A, B, C'
    hint: str = "{hint}\n"  # put before it where `meta` has a hint
    open: str = (  # `think` of a question that is asked without its options
        "\nPlease provide only your final answer within the <answer> </answer> tags."
    )
    open_direct: str = "\nAnswer with a single word, number or phrase."
    parser: str = "strict-1"  # reads the answer; a key of answers.tools.PARSERS, or
    # path/to/file.py:name of a function (reply, options) -> index of the option or -1


_TAGS = (
    "The reasoning process and answer are enclosed within <think> </think> and <answer>"
    " </answer> tags, respectively, i.e., <think> reasoning process here </think>"
    "<answer> answer here </answer>"
)
_R1V = (
    "A conversation between User and Assistant. The user asks a question, and the"
    " Assistant solves it. The assistant first thinks about the reasoning process in"
    " the mind and then provides the user with the answer. " + _TAGS
)
_VLAA = (
    "You are VL-Thinking🤔, a helpful assistant with excellent reasoning ability."
    " A user asks you a question, and you should try to solve it. You should first"
    " think about the reasoning process in the mind and then provides the user with the"
    " answer. " + _TAGS
)
_LETTER = (
    " Please provide only the single option letter (e.g., A, B, C, D, etc.) within the"
    " <answer> </answer> tags."
)
_PONDER = (
    "\nPlease think about this question as if you were a human pondering deeply. Engage"
    " in an internal dialogue using expressions such as 'let me think', 'wait', 'Hmm',"
    " 'oh, I see', 'let's break it down', etc, or other natural language thought"
    " expressions It's encouraged to include self-reflection or verification in the"
    " reasoning process. Provide your detailed reasoning between the <think> and"
    " </think> tags, and then give your final answer between the <answer> and </answer>"
    " tags." + _LETTER
)
_DIRECT = "\nAnswer with the option's letter from the given choices directly."

# System texts and long suffixes are those of the named models' own repositories
# (github.com/Deep-Agent/R1-V, tulerfeng/Video-R1, OuyangKun10/SpaceR,
# UCSC-VLAA/VLAA-Thinking, Osilly/Vision-R1, Gabesarch/grounded-rl). Choices of this
# project: `direct` everywhere, the one-line think suffixes of r1v, vlaa, vision_r1 and
# vigorl, r1v's system text for vigorl, and the empty system of video_r1 and spacer.
STYLES: dict[str, Style] = {
    "tiny": Style("Think, then answer.", "", "\nAnswer with the letter.", open=""),
    "r1v": Style(_R1V, "\n" + _LETTER.strip(), _DIRECT),
    "video_r1": Style("", _PONDER, _DIRECT),
    "spacer": Style("", _PONDER, _DIRECT),
    "vlaa": Style(_VLAA, "\n" + _LETTER.strip(), _DIRECT),
    "vision_r1": Style("", "", _DIRECT, "Choices:", "{letter}: {text}"),
    "vigorl": Style(
        _R1V,
        "\nPlease provide only the text of the right option within the <answer>"
        " </answer> tags.",
        "\nAnswer with the text of the right option directly.",
        form="text",
    ),
}


_SINGLE = "\nAnswer the question using a single word or phrase."


def _peer(suffix: str, parser: str, **fields: str) -> Style:
    """Return a style of another tool, which asks for the answer alone in every case;
    where it lists options, a question without them ends as such questions do in both
    tools."""
    free = _SINGLE if fields.get("option", "listed") else suffix
    both = dict(think=suffix, direct=suffix, open=free, open_direct=free)
    return Style(system="", parser=parser, **both, **fields)


_NOTE = (
    "Note: You only need to respond with {letters} without providing any additional"
    " information.\n{question}"
)
_LISTED = "({letter}) {text}"
_MOVES = (
    "When multiple images are provided, You want to realize that when camera moves"
    " left, the objects in the image move right, and vice versa. And when you are asked"
    " about the movement of the same object captured in different images, you can"
    " compare the position of the object relative to other objects in the image to"
    " answer the question."
)

# Wordings of github.com/open-compass/VLMEvalKit and EvolvingLMMs-Lab/lmms-eval, and of
# the benchmarks' own scripts, each with the rule that reads its answers. An empty
# `option` leaves the options unsaid.
STYLES |= {
    "vlmevalkit": _peer(
        "\nPlease select the correct answer from the options above. \n",
        "vlmevalkit-1",
        ask="Question: {question}",
        hint="Hint: {hint}\n",
        header="Options:",
    ),
    "vlmevalkit_yes_no": _peer("", "vlmevalkit-yes-no-1", option=""),
    "lmms_eval": _peer(_DIRECT, "lmms-first-letter-1"),
    "lmms_mmbench": _peer(
        _DIRECT,
        "vlmevalkit-1",
        ask="{question} There are several options:",
        hint="{hint} ",
    ),
    "lmms_cv_bench": _peer(
        "",
        "lmms-first-letter-1",
        ask=_NOTE + " Select from the following choices.",
        option=_LISTED,
    ),
    "lmms_blink": _peer(
        "",
        "lmms-first-letter-1",
        ask=_NOTE,
        header="Select from the following choices.",
        option=_LISTED,
    ),
    "lmms_vstar": _peer(_DIRECT, "lmms-vstar-1"),
    "lmms_3dsrbench": _peer(
        "\nPlease select the correct answer from the options above. \n",
        "lmms-3dsrbench-1",
        ask="Question: {question}",
        header="Options:",
    ),
    "lmms_mmvp": _peer(_DIRECT, "lmms-mmvp-1"),
    "lmms_sat": _peer(
        "\n\nOnly output the letter of the correct option and nothing else.",
        "lmms-first-word-1",
        ask="{question}\n" + _MOVES + "\n",
    ),
    "lmms_pope": _peer(_SINGLE, "lmms-exact-1", option=""),
    "lmms_pixmo_count": _peer(
        "\nAnswer with a single number.", "lmms-first-number-1", option=""
    ),
    "mme_realworld": _peer(
        "\nSelect the best answer to the above multiple-choice question based on the"
        " image. Respond with only the letter (A, B, C, D, or E) of the correct option."
        "\nThe best answer is:",
        "lmms-first-letter-1",
        ask="{question} The choices are listed below:",
        option=_LISTED,
    ),
}


def style(name: str) -> Style:
    """Return the named style; `path/to/file.py:name` names a Style, or a function that
    returns one.

    Raises:
      UserError: an unknown name, or a file without that.
    """
    thing = user_code.lookup(name, STYLES, "", kind="prompt style")
    if isinstance(thing, Style):
        return thing
    user_code.check_arguments(thing, "prompt style", ())
    return _returned(thing)


@functools.cache
def _returned(function: Callable[[], Style]) -> Style:
    """Return the style that a user's function returns, which is called once."""
    value = user_code.call(function)
    if not isinstance(value, Style):
        problem = f"expected a prompts.styles.Style, got {type(value).__name__}"
        raise user_code.failure(function, "", problem)
    return value


def _user(example: Example, style: Style) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of the user turn and the ranges of it that a condition wrote."""
    if len(example.options) > len(LETTERS):
        raise UserError(
            f"example {example.id!r}: {len(example.options)} options, at most"
            f" {len(LETTERS)} have letters"
        )
    pieces = [(example.caption, True), ("\n", False)] if example.caption else []
    listed = () if example.open or not style.option else example.options
    ask = style.ask.replace("{letters}", ", ".join(LETTERS[: len(listed)]))
    pieces.append((_hint(example, style), False))
    pieces.append((ask.replace("{question}", example.question), False))
    if listed and style.header:
        pieces.append(("\n" + style.header, False))
    for i, (letter, text) in enumerate(zip(LETTERS, listed, strict=False)):
        line = style.option.format(letter=letter, text=text)
        pieces += [("\n", False), (line, i == example.abstain)]
    if example.open:
        suffix = style.open_direct if example.direct else style.open
    else:
        suffix = style.direct if example.direct else style.think
    body = suffix.strip()
    before, _, after = suffix.partition(body) if body else (suffix, "", "")
    pieces += [(before, False), (body, example.direct), (after, False)]
    spans, end = [], 0
    for text, written in pieces:
        start, end = end, end + len(text)
        if written and text:
            spans.append((start, end))
    return "".join(text for text, _ in pieces), spans


def _hint(example: Example, style: Style) -> str:
    if '"hint"' not in example.meta:
        return ""
    hint = json.loads(example.meta).get("hint")
    return style.hint.replace("{hint}", hint) if isinstance(hint, str) else ""


def messages(example: Example, style: Style) -> list[dict]:
    """Return chat messages in the multimodal form that transformers' templates take.

    Returns:
      `[system?, user]`, each `{"role", "content": [{"type": "image"} per image,
      {"type": "text", "text": …}]}`; no system message if the style has none.

    Raises:
      UserError: a text of the example holds a control token (`<|im_end|>`,
        `<|image_pad|>`, …). It would be read as one, and silently altering an item
        would change the benchmark, so it is refused.
    """
    _refuse_control(example)
    text, _ = _user(example, style)
    content = [{"type": "image"} for _ in range(len(example.images))]
    user = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
    if not style.system:
        return [user]
    system = [{"type": "text", "text": style.system}]
    return [{"role": "system", "content": system}, user]


def chatml(
    messages: list[dict],
    image: str = "<|vision_start|><|image_pad|><|vision_end|>",
    system: str = "You are a helpful assistant.",
) -> str:
    """Render messages as Qwen2.5-VL's chat template does, assistant turn opened.

    Args:
      image: what an image is written as.
      system: what stands where no system message comes first; '' for nothing.
    """
    parts = []
    if system and messages and messages[0]["role"] != "system":
        parts.append(f"<|im_start|>system\n{system}<|im_end|>\n")
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(
                image if part["type"] == "image" else part["text"] for part in content
            )
        parts.append(f"<|im_start|>{message['role']}\n{content}<|im_end|>\n")
    return "".join(parts) + "<|im_start|>assistant\n"


def text_hash(text: str) -> str:
    """Return what `Prompt.hash` is of a prompt's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(
    example: Example, name: str, render: Callable[[list[dict]], str] = chatml
) -> Prompt:
    """Write an example out for one model.

    Args:
      example: the item, a condition already applied.
      name: prompt style (`style`).
      render: chat messages → text with the assistant turn opened, as
        `tokenizer.apply_chat_template(messages, tokenize=False,
        add_generation_prompt=True)` gives.

    Returns:
      Prompt whose `text` is the rendered chat followed by the prefill; `spans` are the
      [start, end) characters a condition wrote: caption, added option line, direct
      suffix, prefill (with what closes an opened CoT before it), in this order.

    Raises:
      UserError: unknown style, control token in the example, more options than
        letters, or a template that does not keep the user text as it is.
    """
    form = style(name)
    chat = messages(example, form)
    user, written = _user(example, form)
    rendered = render(chat)
    start, end = _place(rendered, user, example)
    head, turn = begin_turn(rendered[end:], example.prefill, example.direct)
    text = rendered[:end] + head + turn
    spans = [(start + a, min(start + b, end)) for a, b in written]
    if text != rendered and (example.prefill or example.direct):
        before = rendered if text.startswith(rendered) else rendered[:end] + head
        spans.append((len(before), len(text)))
    blind = render(
        [
            {**m, "content": [c for c in m["content"] if c["type"] != "image"]}
            for m in chat
        ]
    )
    _, end = _place(blind, user, example)
    parts = begin_turn(blind[end:], example.prefill, example.direct)
    return Prompt(
        example=example,
        text=text,
        blind=blind[:end] + "".join(parts),
        spans=tuple(spans),
        style=name,
        hash=text_hash(text),
        turn=turn,
    )


def _place(rendered: str, user: str, example: Example) -> tuple[int, int]:
    """Return where the user's text begins and ends in a rendered chat. Templates may
    strip its ends (Qwen3.5 does); its beginning is then where it would have been."""
    start = rendered.rfind(user)
    if start >= 0:
        return start, start + len(user)
    bare = user.strip()
    start = rendered.rfind(bare)
    if start < 0:
        raise UserError(f"example {example.id!r}: the chat template changes its text")
    return start - user.index(bare), start + len(bare)


# How a template may end: with an open chain of thought, or an empty one.
_OPENING = re.compile(r"<think>(\s*)(</think>\s*)?\Z")


def begin_turn(tail: str, prefill: str, direct: bool) -> tuple[str, str]:
    """Return (what stands before the assistant turn, how that turn begins).

    A chat template may open the CoT itself (Qwen3-VL Thinking, Qwen3.5). Then the turn
    begins with its opening and a prefilled CoT goes on from there, while a prompt that
    asks for the answer at once, or opens it, closes the CoT before the turn, empty, as
    these families do without thinking. A template that writes an empty CoT itself
    begins none: that stands before the turn like a header, and a prefilled CoT takes
    its place. So a turn reads the same under every template.

    Args:
      tail: the rendered chat after the user's text.
      prefill, direct: of the example.
    """
    match = _OPENING.search(tail)
    if match is None:
        return tail, prefill
    head, space = tail[: match.start()], match[1]
    thinks = prefill.startswith("<think>")
    if match[2] is not None:
        if not thinks:
            return tail, prefill
        space = space[: (len(space) + 1) // 2]  # of two line breaks, the opening's own
    elif not thinks and (direct or prefill.startswith("<answer")):
        return f"{head}<think>{space * 2}</think>{space * 2}", prefill
    own = prefill.removeprefix("<think>")
    return head, "<think>" + space + (own.lstrip() if space else own)


# Tokens that a tokenizer reads as control: <|…|> of Qwen and Llama, the image marks of
# InternVL. Lone surrogates are refused with them: they can't be encoded.
_CONTROL = re.compile(r"<\|[^|\s<>]{1,40}\|>|</?img>|<IMG_CONTEXT>|[\ud800-\udfff]")


def _refuse_control(example: Example) -> None:
    fields = {
        "caption": example.caption,
        "question": example.question,
        "hint": _hint(example, Style("", "", "")),
        **{f"options[{i}]": o for i, o in enumerate(example.options)},
        "prefill": example.prefill,
    }
    for field, text in fields.items():
        if match := _CONTROL.search(text):
            raise UserError(
                f"example {example.id!r}: {field} holds the control token"
                f" {match[0]!a}; remove it from the data"
            )
