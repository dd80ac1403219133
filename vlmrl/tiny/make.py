"""Make the directories of the toy models: tokenizer, config, first weights."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vlmrl import perturb
from vlmrl.data import scenes, traces
from vlmrl.files import atomic_write
from vlmrl.judges import synthetic
from vlmrl.models import registry, weights
from vlmrl.models.api import Model
from vlmrl.prompts import styles, tokens
from vlmrl.types import UserError

VOCAB_SIZE = 512  # 256 bytes, the merges, the special tokens

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

TEXT = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "max_window_layers": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,  # seven of twelve frequencies match content over 100 tokens
        "mrope_section": [4, 4, 4],  # of head_dim / 2 = 12: time, height, width
    },
    "tie_word_embeddings": True,
}

VISION = {
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 160,
    "hidden_act": "silu",
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 56,  # 4 × 4 patches: a 112 × 112 scene is four windows
    "fullatt_block_indexes": [1, 3],
    "out_hidden_size": 96,
    "tokens_per_second": 2,
}

IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 112 * 112,
    "max_pixels": 112 * 112,
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

# The tiny judge: the same decoder as a Qwen2, with more words.
JUDGE_VOCAB_SIZE = 1024

JUDGE = TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}

# It is asked one thing: turns without roles, five tokens fewer to read.
JUDGE_TEMPLATE = """\
{%- for message in messages -%}{{ message.content ~ '<|im_end|>' }}{%- endfor -%}
"""

# How a conversation is written; the family's ChatML. Without a system message the
# default one is written.
CHAT_TEMPLATE = """\
{%- macro turn(role) -%}{{ '<|im_start|>' ~ role ~ '\\n' }}{%- endmacro -%}
{%- set seen = namespace(images=0, videos=0) -%}
{%- if messages and messages[0].role != 'system' -%}
{{ turn('system') ~ 'You are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ turn(message.role) }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.images = seen.images + 1 -%}
{%- if add_vision_id -%}{{ 'Picture ' ~ seen.images ~ ': ' }}{%- endif -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part -%}
{%- set seen.videos = seen.videos + 1 -%}
{%- if add_vision_id -%}{{ 'Video ' ~ seen.videos ~ ': ' }}{%- endif -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ turn('assistant') }}{%- endif -%}
"""

# Merged last, so that no word is torn by them.
PUNCTUATION = ("</", ".</", "><", "></", ">\n", ".\n", "?\n", "'s", "'m") + tuple(
    ">" + letter for letter in "ABCDE"
)

TAGS = "<think></think><answer></answer>\nsystem\nuser\nassistant\n"

# What prompts and conditions write around the scenes, merged as far as room is left.
AROUND = (
    [styles.STYLES["tiny"].system, styles.STYLES["tiny"].direct, perturb.UNSURE],
    [perturb.STOP, " but I think", perturb.DISCLAIMER, " Describe the picture."],
)


def corpus() -> Iterator[str]:
    """Yield texts with every word that `scenes` and its traces can write."""
    rng = np.random.default_rng(0)
    for split in ("train", "ood"):
        for index in range(400):
            scene = scenes.make_scene(split, index)
            yield ">" + traces.describe(scene)
            for example in scenes.questions(scene, rng, 3):
                yield f"\n{example.question}"
                yield from (f" {option}" for option in example.options)
                for statement in map(scenes.sentence, example.statements):
                    yield f"{statement} {statement}"
                yield from (f">{text}" for text in (*example.thinks, example.trace))


def _pretokenizer():
    from tokenizers import Regex, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def words(texts: Iterable[str], pretokenizer) -> set[str]:
    """Return distinct words in byte-level characters, with their leading space if they
    have one but without a leading mark (`<think` counts as `think`)."""
    seen: set[str] = set()
    for text in set(texts):
        for piece, _ in pretokenizer.pre_tokenize_str(text):
            bare = piece if piece[0] == "Ġ" else piece.lstrip("<>(\"'")
            if bare.lstrip("Ġ").isalpha() and "Ċ" not in bare:
                seen.add(bare)
    return seen


def merges(stages: Iterable[Iterable[str]], limit: int) -> list[tuple[str, str]]:
    """Return byte-pair merges that make each word one token, early stages first.

    Plain BPE on distinct words: the commonest adjacent pair is merged, the smaller pair
    on a tie, until nothing is left to merge or `limit` is reached. Counting distinct
    words, not their frequency, spends the fewest merges on whole words.
    """
    done: list[tuple[str, str]] = []
    for stage in stages:
        pieces = [list(word) for word in sorted(set(stage))]
        for pair in done:
            pieces = [_merged(p, pair) for p in pieces]
        while len(done) < limit:
            counts = Counter(itertools.chain(*map(itertools.pairwise, pieces)))
            if not counts:
                break
            done.append(min(counts, key=lambda pair: (-counts[pair], pair)))
            pieces = [_merged(p, done[-1]) for p in pieces]
    return done


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def tokenizer_json(texts: Iterable[str] = (), size: int = VOCAB_SIZE) -> dict:
    """Return a byte-level BPE of `tokenizers` as JSON: bytes, merges, then special
    tokens. Words of `texts`, as of the scenes, are one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import ByteLevel

    pretokenizer = _pretokenizer()
    marks = [m.replace("\n", "Ċ") for m in PUNCTUATION]
    room = size - 256 - len(SPECIAL) - len(marks)
    whole_words = words([TAGS, *corpus(), *texts], pretokenizer)
    around = [words(texts, pretokenizer) for texts in AROUND]
    learnt = merges([whole_words, *around], room)
    whole = {a + b for a, b in learnt}
    if torn := sorted(w for w in whole_words if len(w) > 1 and w not in whole):
        raise UserError(f"tiny: {room} merges do not suffice for {', '.join(torn)}")
    for mark in marks:
        learnt.append((mark[0], mark[1:]))
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*alphabet, *(a + b for a, b in learnt)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=learnt))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pretokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return json.loads(tokenizer.to_str())


def make(directory: str | Path) -> None:
    """Write the tiny model's files, without weights, into `directory`."""
    from transformers import Qwen2_5_VLConfig

    tokenizer = tokenizer_json()
    ids, ends = _ends(tokenizer)
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": max(ids.values()) + 1, **TEXT, **ends},
        vision_config=VISION,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        dtype="float32",
    )
    _write_all(directory, config, tokenizer, CHAT_TEMPLATE)
    _write(Path(directory) / "preprocessor_config.json", IMAGES)


def make_judge(directory: str | Path) -> None:
    """Write the tiny judge's files, without weights: a Qwen2 with the words of the
    traces of `judges.synthetic` and of the scenes."""
    from transformers import Qwen2Config

    tokenizer = tokenizer_json(judged(), JUDGE_VOCAB_SIZE)
    ids, ends = _ends(tokenizer)
    config = Qwen2Config(
        vocab_size=max(ids.values()) + 1,
        **JUDGE,
        **ends,
        architectures=["Qwen2ForCausalLM"],
        dtype="float32",
    )
    _write_all(directory, config, tokenizer, JUDGE_TEMPLATE)


def judged() -> Iterator[str]:
    """Yield texts with every word that synthetic traces and a judge's reply hold."""
    for trace in synthetic.traces(4000, seed=0):
        item = trace.item
        yield from (item.question, item.think, *item.options)
        yield from (f" {option}" for option in item.options)
    yield from ("Answer", "Same", "Yes", "No", "None")


def _ends(tokenizer: dict) -> tuple[dict[str, int], dict[str, int]]:
    """Return the ids of the special tokens, and those that config files name."""
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    return ids, {"bos_token_id": pad, "eos_token_id": end, "pad_token_id": pad}


def _write_all(directory: str | Path, config, tokenizer: dict, template: str) -> None:
    directory, added = Path(directory), tokenizer["added_tokens"]
    _, ends = _ends(tokenizer)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added
        },
        "additional_special_tokens": [
            t for t in SPECIAL if t not in ("<|endoftext|>", "<|im_end|>")
        ],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": TEXT["max_position_embeddings"],
    }
    stops = [ends["eos_token_id"], ends["pad_token_id"]]
    generation = {**ends, "eos_token_id": stops, "do_sample": True}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "config.json", json.loads(config.to_json_string()))
        _write(directory / "tokenizer.json", tokenizer)
        _write(directory / "tokenizer_config.json", settings)
        _write(directory / "generation_config.json", generation)
        atomic_write(directory / "chat_template.jinja", template)
    except OSError as e:
        raise UserError(f"--workdir {directory}: cannot be written ({e})") from e


def _write(path: Path, data: dict) -> None:
    atomic_write(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def start(model: Model, key) -> dict[str, jax.Array]:
    """Draw weights from which looking up words in the context is learnt in minutes.

    What the family's table draws keeps activations at unit scale, under which a token's
    own embedding drowns in what the first layers add, and attention begins without any
    notion of distance: no letter was ever looked up in 1,000 steps. Here layers of the
    decoder begin as the identity on embeddings of a size that lasts, the final norm
    keeps the (tied) head's logits small, and biases of queries and keys are drawn, so
    that every head begins with a preference of its own among distances.
    """
    params = model.init(key)
    scale = {
        "text.embed": 25.0,  # standard deviation 0.5
        "text.layers.o": 0.0,
        "text.layers.down": 0.0,
        "text.norm": 0.2,
    }
    params = {name: p * scale.get(name, 1.0) for name, p in params.items()}
    for i, name in enumerate(("text.layers.q_bias", "text.layers.k_bias")):
        drawn = jax.random.normal(jax.random.fold_in(key, i), params[name].shape)
        params[name] = 1.5 * drawn
    return params


def begin_judge(params: dict[str, jax.Array], processor) -> dict[str, jax.Array]:
    """Return the tiny judge's first weights: the decoder of the tiny model, which has
    learnt to look up a letter, and the rows of `params` for words that it lacks."""
    known = weights.load("tiny")[1]
    theirs = tokens.load_processor(registry.TINY).tokenizer.get_vocab()
    ours = processor.tokenizer.get_vocab()
    both = sorted(set(ours) & set(theirs))
    rows = [[vocab[t] for t in both] for vocab in (ours, theirs)]
    known["text.embed"] = (
        params["text.embed"]
        .at[jnp.array(rows[0])]
        .set(known["text.embed"][jnp.array(rows[1])])
    )
    return {n: jax.device_put(known[n], p.sharding) for n, p in params.items()}
