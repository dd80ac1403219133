"""Qwen's own vocabulary in a checkpoint's files: 151,643 byte pairs and the special
tokens behind them, from the ranks that the package `dashscope` carries. What merges
(`>A`, `.</`, ` red`) and the size are then those of a published model.

    qwen_tokenizer(directory)            # the tokenizer's files
    checkpoint(directory)                # a random narrow Qwen2.5-VL around it
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import tempfile
from pathlib import Path

import jax
import numpy as np

from tests import kit
from vlmrl.models import hf, qwen2_5_vl, registry
from vlmrl.tiny import make

VOCAB_SIZE = 151_936  # of the embedding: padded
FIRST = 151_643  # id of the first special token
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>"
    " <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|>"
    " <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
# Added tokens that are no special ones; decoding leaves them in the text.
PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|>"
    " <|repo_name|> <|file_sep|>"
).split()
QWEN3 = "<tool_response> </tool_response> <think> </think>".split()


@functools.cache
def ranks() -> dict[bytes, int]:
    """Return the rank of every byte pair, which is its id."""
    (package,) = importlib.util.find_spec("dashscope").submodule_search_locations
    lines = (Path(package) / "resources" / "qwen.tiktoken").read_bytes().split(b"\n")
    rows = (line.split() for line in lines if line)
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def _pair(token: bytes, known: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts that a token's last merge joins: what merging by ranks below
    its own leaves of it."""
    parts, limit = [token[i : i + 1] for i in range(len(token))], known[token]
    while len(parts) > 2:
        joined = [known.get(a + b, limit) for a, b in itertools.pairwise(parts)]
        at = int(np.argmin(joined))
        assert joined[at] < limit, token
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _tokenizer_json(added: tuple[str, ...]) -> dict:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    known = ranks()
    assert len(known) == FIRST and set(known.values()) == set(range(FIRST))
    same = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in same]
    char = {b: chr(b) for b in same} | {b: chr(256 + i) for i, b in enumerate(rest)}

    def text(data: bytes) -> str:
        return "".join(char[b] for b in data)

    merges = [
        tuple(map(text, _pair(token, known)))
        for token in sorted(known, key=known.__getitem__)
        if len(token) > 1
    ]
    vocab = {text(token): rank for token, rank in known.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = make._pretokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    for name in added:
        token = AddedToken(name, normalized=False, special=name in SPECIAL)
        (tokenizer.add_special_tokens if name in SPECIAL else tokenizer.add_tokens)(
            [token]
        )
    return json.loads(tokenizer.to_str())


@functools.cache
def _stored(added: tuple[str, ...]) -> Path:
    """Return the tokenizer.json, made once on a machine."""
    words = "\n".join((*added, Path(__file__).read_text(encoding="utf-8")))
    name = hashlib.sha256(words.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"vlmrl-qwen-tokenizer-{name}.json"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(_tokenizer_json(added)), encoding="utf-8")
        part.replace(path)
    return path


def qwen_tokenizer(
    directory: str | os.PathLike, *, think: bool = False, template: str = ""
) -> dict[str, int]:
    """Write the files of Qwen2.5-VL's tokenizer into a directory; return the ids of its
    added tokens.

    Args:
      think: with the added tokens of Qwen3, `<think>` and `</think>` among them.
      template: chat template, instead of the family's.
    """
    added = (*SPECIAL, *PLAIN, *(QWEN3 if think else ()))
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_bytes(_stored(added).read_bytes())
    ids = {name: FIRST + i for i, name in enumerate(added)}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    files = {
        "tokenizer_config.json": json.dumps(settings),
        "chat_template.jinja": template or make.CHAT_TEMPLATE,
        "generation_config.json": json.dumps(
            {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]]}
        ),
    }
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8")
    return ids


def config(width: int = 32, layers: int = 2) -> dict:
    """Return config.json of a narrow Qwen2.5-VL with the whole vocabulary."""
    raw = kit.config()
    ids = {name: FIRST + i for i, name in enumerate(SPECIAL)}
    text = dict(raw["text_config"], vocab_size=VOCAB_SIZE, hidden_size=width)
    text.update(num_hidden_layers=layers, layer_types=["full_attention"] * layers)
    text.update(num_attention_heads=2, num_key_value_heads=1, intermediate_size=48)
    text["rope_parameters"] = dict(text["rope_parameters"], mrope_section=[2, 3, 3])
    text.update(bos_token_id=FIRST, pad_token_id=FIRST, eos_token_id=FIRST + 2)
    vision = dict(raw["vision_config"], out_hidden_size=width)
    tokens = ("image_pad", "video_pad", "vision_start", "vision_end")
    named = {f"{t.replace('_pad', '')}_token_id": ids[f"<|{t}|>"] for t in tokens}
    return {**raw, **named, "text_config": text, "vision_config": vision}


def checkpoint(directory: str | os.PathLike, *, seed: int = 0, **sizes) -> Path:
    """Write a random narrow Qwen2.5-VL with Qwen's vocabulary; return the directory.

    Args:
      sizes: of `config`.
    """
    directory = Path(directory)
    source = directory.with_name(directory.name + "-source")
    qwen_tokenizer(source)
    raw = config(**sizes)
    (source / "config.json").write_text(json.dumps(raw))
    images = registry.TINY / "preprocessor_config.json"
    (source / images.name).write_bytes(images.read_bytes())
    model = qwen2_5_vl.model(raw)
    params = model.init(jax.random.key(seed), np.float32)
    keys = jax.random.split(jax.random.key(seed + 1), len(params))
    noisy = {
        n: p + 0.05 * jax.random.normal(k, p.shape) if "bias" in n else p
        for (n, p), k in zip(params.items(), keys, strict=True)
    }
    louder = {"text.embed": 20.0, "text.layers.o": 8.0, "text.layers.down": 8.0}
    return hf.save(
        directory, model, {n: p * louder.get(n, 1.0) for n, p in noisy.items()}, source
    )
