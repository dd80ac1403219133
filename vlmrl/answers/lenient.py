"""The lenient reading: what a fair reader would say a turn answers."""

from __future__ import annotations

from typing import NamedTuple

from vlmrl.types import Parsed

VERSION = "lenient-1"  # stored with every record; change it with any rule below


class Lenient(NamedTuple):
    option: int  # -1: none, or more than one
    text: str  # the answer itself, of an open question; '' if none


def answer(text: str, options: tuple[str, ...], strict: Parsed) -> Lenient:
    """Read a whole assistant turn leniently. Never raises on any text.

    Args:
      options: those shown; () of an open question.
      strict: the strict reading, which holds where it named an option.
    """
    return Lenient(strict.option, strict.answer or "")
