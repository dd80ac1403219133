"""Prompt styles, the chat template, and the one answer parser.

Training, evaluation during training and the final table write prompts with `build` and
read answers with `parse`, so no number can differ because two code paths did.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from string import ascii_uppercase as LETTERS
from typing import NamedTuple

from vlmrl.types import Example, Prompt, UserError


class Style(NamedTuple):
    """How an item is put to a model.

    The user turn is image(s), then `caption⏎` if a condition wrote one, the question,
    `header`, one `option` line per option, and the suffix `think`, or `direct` where
    the example asks for no thinking. The system text never depends on the condition:
    what comes before the user turn stays a shared prefix.
    """

    system: str  # '' leaves it to the chat template's default
    think: str  # end of the user turn when the model is to think
    direct: str  # end of the user turn when it is to answer at once
    header: str = ""  # line before the options
    option: str = "{letter}. {text}"
    form: str = "letter"  # what <answer> holds: 'letter' or 'text' of the option


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
    "tiny": Style("Think, then answer.", "", "\nAnswer with the letter."),
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


def style(name: str) -> Style:
    """The named style. Raises UserError listing the known names."""
    if name not in STYLES:
        raise UserError(f"unknown prompt style {name!r}; known: {', '.join(STYLES)}")
    return STYLES[name]


def _user(example: Example, style: Style) -> tuple[str, list[tuple[int, int]]]:
    """Text of the user turn and the ranges of it that a condition wrote."""
    if len(example.options) > len(LETTERS):
        raise UserError(
            f"example {example.id!r}: {len(example.options)} options, at most"
            f" {len(LETTERS)} have letters"
        )
    pieces = [(example.caption, True), ("\n", False)] if example.caption else []
    pieces.append((example.question, False))
    if example.options and style.header:
        pieces.append(("\n" + style.header, False))
    for i, (letter, text) in enumerate(zip(LETTERS, example.options, strict=False)):
        line = style.option.format(letter=letter, text=text)
        pieces += [("\n", False), (line, i == example.abstain)]
    suffix = style.direct if example.direct else style.think
    gap = len(suffix) - len(suffix.lstrip())
    pieces += [(suffix[:gap], False), (suffix[gap:], example.direct)]
    spans, end = [], 0
    for text, written in pieces:
        start, end = end, end + len(text)
        if written and text:
            spans.append((start, end))
    return "".join(text for text, _ in pieces), spans


def messages(example: Example, style: Style) -> list[dict]:
    """Chat messages in the multimodal form that transformers' templates take.

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
    content = [{"type": "image"} for _ in example.images]
    user = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
    if not style.system:
        return [user]
    system = [{"type": "text", "text": style.system}]
    return [{"role": "system", "content": system}, user]


def chatml(messages: list[dict]) -> str:
    """Render messages as Qwen2.5-VL's chat template does, assistant turn opened.

    The default system text stands where no system message comes first; an image is
    `<|vision_start|><|image_pad|><|vision_end|>`.
    """
    parts = []
    if messages and messages[0]["role"] != "system":
        parts.append("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(
                "<|vision_start|><|image_pad|><|vision_end|>"
                if part["type"] == "image"
                else part["text"]
                for part in content
            )
        parts.append(f"<|im_start|>{message['role']}\n{content}<|im_end|>\n")
    return "".join(parts) + "<|im_start|>assistant\n"


def build(
    example: Example, name: str, render: Callable[[list[dict]], str] = chatml
) -> Prompt:
    """Write an example out for one model.

    Args:
      example: the item, a condition already applied.
      name: prompt style, a key of STYLES.
      render: chat messages → text with the assistant turn opened, as
        `tokenizer.apply_chat_template(messages, tokenize=False,
        add_generation_prompt=True)` gives.

    Returns:
      Prompt whose `text` is the rendered chat followed by the prefill; `spans` are the
      [start, end) characters a condition wrote: caption, added option line, direct
      suffix, prefill, in this order.

    Raises:
      UserError: unknown style, control token in the example, more options than
        letters, or a template that does not keep the user text as it is.
    """
    how = style(name)
    chat = messages(example, how)
    rendered = render(chat)
    user, spans = _user(example, how)
    start = rendered.rfind(user)
    if start < 0:
        raise UserError(f"example {example.id!r}: the chat template changes its text")
    text = rendered + example.prefill
    spans = [(start + a, start + b) for a, b in spans]
    if example.prefill:
        spans.append((len(rendered), len(text)))
    sightless = [
        {**m, "content": [c for c in m["content"] if c["type"] != "image"]}
        for m in chat
    ]
    return Prompt(
        example=example,
        text=text,
        blind=render(sightless) + example.prefill,
        spans=tuple(spans),
        style=name,
        hash=hashlib.sha256(text.encode()).hexdigest()[:16],
    )


# Tokens that a tokenizer reads as control: <|…|> of Qwen and Llama, the image marks of
# InternVL. Lone surrogates are refused with them: they can't be encoded.
_CONTROL = re.compile(r"<\|[^|\s<>]{1,40}\|>|</?img>|<IMG_CONTEXT>|[\ud800-\udfff]")


def _refuse_control(example: Example) -> None:
    fields = {
        "caption": example.caption,
        "question": example.question,
        **{f"options[{i}]": o for i, o in enumerate(example.options)},
        "prefill": example.prefill,
    }
    for field, text in fields.items():
        if found := _CONTROL.search(text):
            raise UserError(
                f"example {example.id!r}: {field} holds the control token"
                f" {found[0]!a}; remove it from the data"
            )


PARSER = "strict-1"  # stored with every record; change it with any rule below


class Parsed(NamedTuple):
    """What an assistant turn says."""

    think: str | None  # verbatim text inside <think>; None if it was never opened
    answer: str | None  # verbatim text of the last answer block; None if malformed
    option: int  # index the answer names, -1 if none or ambiguous
    strict: bool  # the turn is <think>…</think><answer>…</answer> and nothing else
    closed: bool  # a think was opened and closed


_STRICT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_ANSWER_TAG = re.compile(r"</?answer>")


def parse(text: str, options: tuple[str, ...], form: str = "letter") -> Parsed:
    """Read a whole assistant turn, prefill included. Never raises on any text.

    Tags (exact spelling, lower case):
      - strict: exactly one of each of the four tags, in order, with only white space
        around and between the two blocks. What the blocks hold does not matter here.
      - think: from the first <think> to the first </think> after it. Left open, it
        runs to the next <answer>, else to the end, and `closed` is False.
      - answer blocks: <answer> and </answer> must alternate; a nested, unopened or
        unclosed one makes the whole turn unreadable (option -1, answer None).
      - a block inside a closed think is not an answer by itself, but one that names
        another option than the answer makes the turn ambiguous (-1).
      - several blocks count if all name the same option, else -1. Neither is strict.
      - text outside the blocks is never searched for an answer.
    Options: see `read_option`.

    Args:
      text: prefill + completion.
      options: option texts, the added abstain option included.
      form: which reading wins where an option's text is itself a letter.
    """
    opened = text.find("<think>")
    think, closed, inside = None, False, range(0)
    if opened >= 0:
        start = opened + len("<think>")
        end = text.find("</think>", start)
        closed = end >= 0
        if closed:
            inside = range(start, end)
        else:
            end = text.find("<answer>", start)
        think = text[start : end if end >= 0 else len(text)]

    tags = list(_ANSWER_TAG.finditer(text))
    wellformed = len(tags) % 2 == 0 and all(
        (tag[0] == "<answer>") == (i % 2 == 0) for i, tag in enumerate(tags)
    )
    blocks = [
        (a.start() not in inside, text[a.end() : b.start()])
        for a, b in zip(tags[::2], tags[1::2], strict=False)
    ]
    outside = [block for out, block in blocks if out]
    answer, option = None, -1
    if wellformed and outside:
        answer = outside[-1]
        named = {read_option(block, options, form) for block in outside}
        aside = {read_option(block, options, form) for out, block in blocks if not out}
        named |= aside - {-1}
        option = named.pop() if len(named) == 1 else -1
    strict = (
        len(tags) == 2
        and text.count("<think>") == text.count("</think>") == 1
        and _STRICT.fullmatch(text) is not None
    )
    return Parsed(think, answer, option, strict, closed)


_LETTER_FORM = re.compile(
    r"(?:\(([A-Z])\)[.:]?|([A-Z])[.:)]|([A-Z])(?=\s|$))\s*(.*)", re.DOTALL
)


def read_option(answer: str, options: tuple[str, ...], form: str = "letter") -> int:
    """Index of the option that the text of an answer names, -1 if not exactly one.

    Accepted, after trimming white space:
      - a capital ASCII letter of an option: `B`, `(B)`, `B.`, `B)`, `B:`, `(B).`;
      - the letter with its option's own text: `B. two`, `(B) two`, `B two`;
      - the option's text alone, if only one option has it.
    Texts are compared case-folded, white space collapsed, a final full stop dropped.
    Lower-case letters, letters of other scripts or widths, letters beyond the options,
    a letter with another option's text, and anything longer are -1. If an option's
    text is itself a letter, `form` 'letter' reads the letter, 'text' the text.
    """
    letter = text = -1
    if found := _LETTER_FORM.fullmatch(answer.strip()):
        index = LETTERS.index(found[1] or found[2] or found[3])
        rest = _normal(found[4])
        if index < len(options) and rest in ("", _normal(options[index])):
            letter = index
    same = [i for i, o in enumerate(options) if _normal(o) == _normal(answer)]
    if len(same) == 1 and _normal(answer):
        text = same[0]
    first, second = (text, letter) if form == "text" else (letter, text)
    return first if first >= 0 else second


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()
