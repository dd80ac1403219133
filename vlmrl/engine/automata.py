"""Byte patterns matched by whole tokens: how the decoding loop sees tags.

`automaton` turns the bytes of every token and a few patterns (`</think>`, `<answer`,
`</answer>`, ...) into tables that one gather per step looks up, inside jit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlmrl.types import UserError


class Automaton(NamedTuple):
    """Aho-Corasick over bytes, stepped by whole tokens. Start in state 0.

    table int16[V, n]: state after token v in state s.
    hits uint8[V, n]: bit k is set if pattern k ended anywhere inside the token.
    ends uint8[V, n]: bit k is set if pattern k ended at the token's last byte.
    """

    table: np.ndarray
    hits: np.ndarray
    ends: np.ndarray


def automaton(token_bytes: Sequence[bytes], patterns: Sequence[bytes]) -> Automaton:
    """Build tables by which whole tokens drive a search for byte patterns.

    Tags merge with their neighbours and split in many ways under BPE, so ids cannot be
    matched; bytes can. Aho and Corasick, Efficient string matching, CACM 18(6), 1975.
    An empty token leaves the state and hits nothing.

    Args:
      token_bytes: bytes of each of V ids.
      patterns: at most 8 non-empty byte strings.
    """
    if not 0 < len(patterns) <= 8 or not all(patterns):
        raise UserError(
            f"automaton: expected 1 to 8 non-empty patterns, got {patterns}"
        )
    children: list[dict[int, int]] = [{}]
    matched = [0]
    for k, pattern in enumerate(patterns):
        state = 0
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                matched.append(0)
            state = children[state][byte]
        matched[state] |= 1 << k
    goto = np.zeros((len(children), 256), np.int16)
    queue = deque([(0, 0)])  # (state, the state of its longest proper suffix)
    while queue:
        state, back = queue.popleft()
        matched[state] |= matched[back]
        if state:
            goto[state] = goto[back]
        for byte, child in children[state].items():
            queue.append((child, int(goto[back, byte]) if state else 0))
            goto[state, byte] = child
    return _by_token(token_bytes, goto, np.array(matched, np.uint8))


def _by_token(token_bytes, goto, matched) -> Automaton:
    n = len(goto)
    lengths = np.array([len(b) for b in token_bytes])
    order = np.argsort(-lengths, kind="stable")  # still-running tokens come first
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1][order]
    stream = np.frombuffer(b"".join(token_bytes), np.uint8)
    running = np.tile(np.arange(n, dtype=np.int16), (len(token_bytes), 1))
    hits = np.zeros_like(running, np.uint8)
    step = np.ascontiguousarray(goto.T)  # [256, n]
    for i in range(lengths.max(initial=0)):
        live = int(np.searchsorted(-lengths[order], -i, side="left"))
        byte = stream[starts[:live] + i]
        running[:live] = step[byte[:, None], running[:live]]
        hits[:live] |= matched[running[:live]]
    inverse = np.argsort(order)
    ends = matched[running] * (lengths[order] > 0)[:, None].astype(np.uint8)
    return Automaton(running[inverse], hits[inverse], ends[inverse])
