"""The tiny model with <think> and </think> as added tokens, and chat templates that end
as those of published families do."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vlmrl.models import hf, registry, weights

TAGS = ("<think>", "</think>")
PLAIN_SIZE = 512  # of the tiny vocabulary
SIZE = 544  # with the tags and 30 unused rows

# Every template writes the tiny one's turns, then how its family begins a reply.
TURNS = (
    "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '\\n' }}"
    "{%- if m.content is string -%}{{ m.content }}{%- else -%}"
    "{%- for part in m.content -%}{%- if part.type == 'image' -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
)
_END = "{%- endif -%}"
_OFF = "enable_thinking is defined and enable_thinking is false"
_ON = "enable_thinking is defined and enable_thinking is true"
_EMPTY = "{{ '<think>\\n\\n</think>\\n\\n' }}"
_OPEN = "{{ '<think>\\n' }}"
TEMPLATES = {
    "Qwen3-VL-Instruct": TURNS + _END,
    "Qwen3-VL-Thinking": TURNS + _OPEN + _END,
    "Qwen3.5": f"{TURNS}{{%- if {_OFF} -%}}{_EMPTY}{{%- else -%}}{_OPEN}{_END}{_END}",
    "off": f"{TURNS}{{%- if {_ON} -%}}{_OPEN}{{%- else -%}}{_EMPTY}{_END}{_END}",
    "Qwen3": f"{TURNS}{{%- if {_OFF} -%}}{_EMPTY}{_END}{_END}",
    "bare": TURNS + "{{ '<think>' }}" + _END,  # no line break, as Nemotron's
}
OPENED = ("Qwen3-VL-Thinking", "Qwen3.5", "bare")


def add_tags(directory: Path, *, special: bool = False, template: str = "") -> Path:
    """Write the tiny model's side files with added tags, and a template."""
    directory.mkdir(parents=True)
    for name in registry.SIDE_FILES:
        if (registry.TINY / name).is_file():
            shutil.copyfile(registry.TINY / name, directory / name)
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    new = {
        PLAIN_SIZE + i: token | {"content": t, "special": special}
        for i, t in enumerate(TAGS)
    }
    raw = json.loads((directory / "tokenizer.json").read_text())
    raw["added_tokens"] += [{"id": i, **t} for i, t in new.items()]
    (directory / "tokenizer.json").write_text(json.dumps(raw))
    raw = json.loads((directory / "tokenizer_config.json").read_text())
    raw["added_tokens_decoder"] |= {str(i): t for i, t in new.items()}
    raw.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps(raw))
    raw = json.loads((directory / "config.json").read_text())
    raw["text_config"]["vocab_size"] = SIZE
    (directory / "config.json").write_text(json.dumps(raw))
    if template:
        (directory / "chat_template.jinja").write_text(TEMPLATES[template])
    return directory


def save(directory: Path, *, known: bool, tied: bool = True, **options) -> Path:
    """Write the tiny model with these side files and a row for every id: the tags' like
    ordinary ones if `known`, else like the unused ones."""
    side = add_tags(directory.with_name(directory.name + "-side"), **options)
    if not tied:
        raw = json.loads((side / "config.json").read_text())
        raw["tie_word_embeddings"] = raw["text_config"]["tie_word_embeddings"] = False
        (side / "config.json").write_text(json.dumps(raw))
    _, params = weights.load("tiny")
    rng = np.random.default_rng(0)
    table = np.asarray(params["text.embed"])
    extra = table.mean(0) + 1e-3 * rng.normal(size=(SIZE - len(table), table.shape[1]))
    if known:
        extra[: len(TAGS)] = table[300 : 300 + len(TAGS)][:, ::-1]
    params = dict(params)
    params["text.embed"] = jnp.asarray(np.concatenate([table, extra]), jnp.float32)
    if not tied:
        params["text.head"] = params["text.embed"]
    return hf.save(directory, registry.read_model(side), params, side)
