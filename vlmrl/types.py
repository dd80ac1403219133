"""The records that flow from data to figures.

Host records hold text and bytes; device records hold arrays, whose first axis is the
batch axis. Axis letters of every docstring in the package:

  N groups (one shared prefix each)     G branches of a group
  S prefix length in tokens             T branch length in tokens
  C options of an item                  V vocabulary
  I images of a group                   W vision windows, P patches of a window
  R sighted probes along a CoT          L layers

Indices of options are 0-based; -1 means "none". Entropies are in nats. Log-probs are
natural logarithms. Device records are NamedTuples, hence plain pytrees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Array = np.ndarray  # or jax.Array


class UserError(Exception):
    """Bad input by the user. The message is one line that names the field, file, row or
    id, what was expected and what was given; commands print it without a traceback and
    exit with status 2."""


class Example(NamedTuple):
    """One multiple-choice item, from a source or changed by a condition.

    A condition (`perturb.py`) is a pure function Example → Example: it sets the last
    block of fields and nothing else, so every condition of an item shares its images,
    its question and its one suggested wrong option.
    """

    id: str  # unique within its source and stable across runs
    images: tuple[bytes, ...]  # encoded files (PNG, JPEG, ...), in order
    question: str  # without options
    options: tuple[str, ...]  # option texts in letter order; () if the set has none
    answer: int  # index of the right option
    suggested: int  # index of the wrong option that every misleading text suggests
    source: str  # data set, e.g. 'scenes'
    task: str  # category within the source, e.g. 'count'
    cluster: str  # statistical cluster: items that share an image share this id
    statements: tuple[str, ...] = ()  # per option: a sentence asserting it
    thinks: tuple[str, ...] = ()  # per option: a CoT, without tags, concluding it
    trace: str = ""  # a reference CoT for supervised training, without tags
    meta: str = ""  # JSON of what only the source knows, e.g. the scene graph
    open: bool = False  # asked without its options, which are then candidate answers
    kind: str = "option"  # of the gold answer, how replies are compared with it: one of
    # `answers.kinds.KINDS`: 'option', 'number', 'maths', 'box', 'text'
    # -- what a condition changed
    condition: str = "base"
    caption: str = ""  # sentence put before the question, in the user turn
    prefill: str = ""  # text the assistant turn starts with
    direct: bool = False  # asked to answer without thinking
    abstain: int = -1  # index of the added "I'm not sure" option in `options`


class Parsed(NamedTuple):
    """The parts of an assistant turn."""

    think: str | None  # verbatim text inside <think>; None if it was never opened
    answer: str | None  # verbatim text of the last answer block; None if malformed
    option: int  # index the answer names, -1 if none or ambiguous
    strict: bool  # the turn is <think>…</think><answer>…</answer> and nothing else
    closed: bool  # <think> was opened and closed


class Prompt(NamedTuple):
    """An Example as the prompt of one model, in one prompt style."""

    example: Example
    text: str  # whole prompt, prefill included; one placeholder per image
    blind: str  # the same prompt without its images
    spans: tuple[tuple[int, int], ...]  # character ranges of `text` a condition wrote
    style: str  # name of the prompt style
    hash: str  # sha256 of `text`, first 16 hex digits
    turn: str = ""  # how the assistant turn begins: a chain of thought that the chat
    # template opened, and the condition's prefill; `text` ends with it

    def whole(self, completion: str) -> str:
        """Return the whole assistant turn. A model may open again the chain of thought
        that its template opened: that is one opening."""
        again = self.turn.strip() == completion.lstrip()[:7] == "<think>"
        return completion if again else self.turn + completion


class Completion(NamedTuple):
    """One assistant turn, read and judged: what a reward, a shaping term and a ranking
    are functions of."""

    example: Example  # under its condition; `meta` holds what only the source knows
    prompt: str  # what the model read, what the turn begins with included
    text: str  # the whole assistant turn, what the prompt began of it included
    parsed: Parsed  # the strict reading
    correct: bool  # the strict answer equals the gold one, by the item's kind of answer
    verdict: str | None = None  # of a judge; None: none was asked
    tokens: int = 0  # sampled
    options: Array | None = None  # float[C], P(option) after the CoT; None: unmeasured
    # (a recipe's `reward.measure_options`, or a term that needs them, measures them)
    lenient: int = -1  # option of the lenient reading, -1 if none

    @property
    def think(self) -> str:
        """The text inside <think>, '' if none."""
        return self.parsed.think or ""


class Vision(NamedTuple):
    """Patches of every image of N groups, cut into windows on the host.

    A window is one row of the window axis; attention inside a window is a batch axis,
    full attention flattens [W, P]. Both need only `mask` and `positions`.
    """

    patches: Array  # float32[N, I, W, P, patch_dim]
    positions: Array  # int32[N, I, W, P, 2]: patch row and column in its image
    mask: Array  # bool[N, I, W, P]
    order: Array  # int32[N, I, M]: merged token m of the raster order is row order[m]
    # of the window-ordered merged tokens [W * P / merge²]


class Tokens(NamedTuple):
    """A padded batch of token rows: prefixes, or branches of them. Row b of B' branches
    belongs to row b // (B' / B) of B prefixes."""

    ids: Array  # int32[B, S]
    positions: Array  # int32[B, 3, S]: M-RoPE (time, height, width)
    mask: Array  # bool[B, S]: True on valid tokens, which come first in the row
    image: Array  # int32[B, S]: row of the group's merged image tokens, -1 for text


class Group(NamedTuple):
    """N shared prefixes and the branches that grow from them.

    `branches` is None for a rollout, where every branch starts at the prefix's end.
    """

    prefix: Tokens  # [N, S]
    vision: Vision | None  # None for text-only groups
    branches: Tokens | None  # [N * G, T]


class Rollout(NamedTuple):
    """Sampled tokens; B = N * G rows in branch order."""

    tokens: Array  # int32[B, T]
    logprobs: Array  # float32[B, T]: under the distribution sampled from
    entropy: Array  # float32[B, T]: of the raw next-token distribution, nats
    mask: Array  # bool[B, T]: sampled tokens, the ending one included
    stopped: Array  # bool[B]: ended by a stop string or an end token, not by length


class Scores(NamedTuple):
    """The evaluation kernel's output; B = groups × conditions × samples rows.

    Letter distributions come from raw logits at temperature 1 without truncation, after
    the model's own CoT, with the answer opening forced where the model did not open it.
    """

    letters: Array  # float32[B, C]: log-probs renormalised over the item's options,
    # whose letters or texts they are of (engine/options.py); nan where unmeasured
    normalised: Array | None  # float32[B, C]: the same of texts, per token
    entropy: Array  # float32[B]: −Σ p log p over options, nats
    p_correct: Array  # float32[B]
    p_suggested: Array  # float32[B]: nan where no option is suggested
    option_mass: Array  # float32[B]: mass on the options before renormalising
    natural: Array  # bool[B]: the model opened its answer itself
    truncated: Array  # bool[B]: length ran out before the CoT was closed
    think_entropy: Array  # float32[B]: mean token entropy of the sampled CoT, nats
    think_tokens: Array  # int32[B]: sampled CoT tokens (prefill excluded)
    sighted: Array  # float32[B, R, C]: letter log-probs after every k CoT tokens
    sighted_mask: Array  # bool[B, R]
    blind: Array  # float32[B, 2, C]: letter log-probs of the CoT re-read without the
    # image; [:, 0] as is, [:, 1] with its last sentence stripped


class Record(NamedTuple):
    """One row per example × condition × sample. Tables and figures come from these
    alone. Written as Parquet in this column order."""

    recipe: str  # 'warm-start', 'accuracy', ...
    seed: int
    step: int  # optimizer steps of RL behind the parameters
    split: str
    source: str
    task: str
    example: str
    cluster: str
    condition: str
    sample: int
    # -- what the model read
    prompt: str
    spans: list[list[int]]  # [start, end) characters of `prompt` a condition wrote
    prompt_hash: str
    style: str
    question: str
    options: list[str]
    answer: int
    suggested: int
    abstain: int
    prefill: str  # how the assistant turn began (`Prompt.turn`)
    kind: str  # of the gold answer (`Example.kind`)
    open: bool  # asked without its options (`Example.open`)
    not_asked: list[str]  # 'condition: reason' of the evaluation's conditions that do
    # not apply to this example (`perturb.applies`): they have no records
    # -- what it wrote
    completion: str  # sampled text, without the prefill
    think: str  # text inside <think>, prefill included; '' if none
    think_sampled: str  # the part of `think` the model wrote itself
    predicted: int  # option the strict parser read from <answer>, -1 if none; of an
    # open item the candidate that is equal
    correct: bool  # what tables call accuracy, under the strict reading
    followed: bool  # predicted == suggested
    format: bool  # the strict <think>…</think><answer>…</answer> format holds
    lenient: int  # option of the lenient reading, -1 if none
    lenient_correct: bool
    finish: str  # 'stop' or 'length'
    # -- judgement
    judge: str  # which judge, e.g. 'rule'
    conclusion: int  # option the judge read as the CoT's conclusion, -1 if none
    verdict: str  # 'consistent', 'inconsistent', 'undecided', 'not_applicable'
    verdict_sampled: str  # the same, the judge not seeing the prefill
    # -- the kernel's scores
    forced: int  # option of the highest probability, the answer opened; -1 if absent
    letters: list[float]  # probabilities over options; [] if absent
    normalised: list[float]  # of texts: the same by mean log-prob per token, of the
    # text and the closing tag; [] of letters
    scored: str  # what `letters` are of: 'letters', 'texts'; '' if absent
    entropy: float  # of `letters`, nats; it and the next three are NaN if absent
    p_correct: float
    p_suggested: float  # NaN, too, where no option is suggested
    option_mass: float
    natural: bool
    truncated: bool
    think_entropy: float
    think_tokens: int  # -1 if unknown
    sighted: list[list[float]]  # probabilities over options at each probe
    sighted_every: int  # k: a probe after every k CoT tokens
    blind: list[float]  # probabilities over options, CoT re-read blind
    blind_stripped: list[float]
    consistent_probe: bool  # argmax of `blind` == argmax of `letters`
    consistent_probe_stripped: bool
    # -- how it was measured
    parser: str  # parser version
    lenient_parser: str  # version of the lenient reading
    engine: str  # software that generated and scored: 'vlmrl', 'chat', 'vlmevalkit', …
    pixels: list[int]  # [min_pixels, max_pixels]
    version: str = ""  # of vlmrl; behind an API the model's name there; else ''
    backend: str = ""  # JAX's: 'cpu', 'gpu' or 'tpu'; '' where it was not ours
    device: str = ""  # device kind, e.g. 'NVIDIA H200'
    dtype: str = ""  # of the forward pass
    tags: str = ""  # reasoning tags were 'added' tokens or 'plain' text; '': unknown
    letters_from: str = "kernel"  # or 'logprobs', 'samples', 'absent'; 'unknown'
    letter_samples: int = 0  # answers that `letters` are shares of; 0: no shares
    prefill_as: str = ""  # how a prefill reached an endpoint (eval/served.py); '': n/a
    # -- how the parameters were trained
    stage: str = "evaluated"  # 'start': what the recipes of a study begin with;
    # 'trained': by `recipe`, its step 0 included; 'evaluated': training is unknown
    augmented: bool = False  # the recipe perturbs prompts or images (its `mix`)
    faithful: bool = False  # it rewards agreement of CoT and answer
    code: str = ""  # the user's own functions behind the row (`user_code.stamp`), as
    # 'path/to/file.py:name=<first 16 hex digits of the file's sha256>; …'


class Skip(NamedTuple):
    """An item that can't be asked, or learned from, and was left out for it."""

    dataset: str  # source, or source/split
    file: str  # published file that the row is from; '' if unknown
    row: int  # in that file, from 0; without a file, in the prepared split
    reason: str  # equal for equal faults, so that it can be counted
    remedy: str  # what its owner can do
    example: str = ""  # id
    detail: str = ""  # what exactly: the token, the size, the message


class Mean(NamedTuple):
    """A sum and its count, which add exactly over microbatches and hosts."""

    sum: Array
    count: Array

    def __add__(self, other):
        return Mean(self.sum + other.sum, self.count + other.count)

    @property
    def value(self):
        """sum / count, 0 where nothing was counted."""
        return self.sum / (self.count + (self.count == 0))
