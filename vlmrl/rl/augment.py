"""Augmentation: the condition of a training prompt, in its text or in its image.

A mix is data: a share per condition, the rest is base. The choice is a function of
(seed, example id) alone, by a hash that is the same on every machine: all G completions
of a prompt share it, and it depends neither on the step nor on the order of the data.

A name in a mix is a condition ('wrong_caption', `perturb.py`), an image perturbation
('noisy', `data/distort.py`), or both ('noisy+wrong_caption'). Either may be a user's
own: 'path/to/file.py:name' is a condition, 'path/to/file.py:name+base' a perturbation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from vlmrl import perturb, user_code
from vlmrl.data import distort
from vlmrl.types import Example, UserError

# The paper's: 10 % each, 60 % clean. https://arxiv.org/abs/2602.12506
MIX = {
    "correct_think": 0.1,
    "wrong_think": 0.1,
    "correct_caption": 0.1,
    "wrong_caption": 0.1,
}


def check(mix: Mapping[str, float], field: str = "mix") -> None:
    """Raises a UserError that names `field` unless the shares are a distribution.

    Names are those of `apply`; shares are numbers of at least 0 that sum to at most 1,
    but for rounding.
    """
    try:
        perturb.check(*dict.fromkeys(_split(name)[1] for name in mix))
        for name in mix:
            if image := _split(name)[0]:
                distort.distortion_of(image)
    except UserError as e:
        raise UserError(f"{field}: {e}") from None
    for name, share in mix.items():
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not math.isfinite(share) or share < 0:
            raise UserError(
                f"{field}.{name}: expected a share in [0, 1], got {share!r}"
            )
    if sum(mix.values()) > 1 + 1e-9:
        raise UserError(
            f"{field}: shares sum to {sum(mix.values()):g}, expected at most 1 (base "
            "gets the rest)"
        )


def choose(example_id: str, seed: int, mix: Mapping[str, float] = MIX) -> str:
    """Return the condition of one training prompt.

    Args:
      example_id: unique and stable, e.g. `Example.id`.
      seed: of the run; another seed is another assignment.
      mix: share per condition. The order of its entries doesn't matter.

    Returns:
      A key of `mix`, or 'base'.

    Raises:
      UserError: see `check`.
    """
    check(mix)
    u = _uniform(seed, "augment", example_id)
    for name in sorted(mix):
        if u < mix[name]:
            return name
        u -= mix[name]
    return "base"


def apply(example: Example, name: str, seed: int) -> Example:
    """Return the example under a condition, an image perturbation, or both.

    Args:
      example: a base example.
      name: a condition, an image perturbation, or '<perturbation>+<condition>'.
      seed: of the run; the noise of an image depends on it and on the example's id,
        not on the step.

    Raises:
      UserError: unknown name, or a condition that does not apply.
    """
    image, condition = _split(name)
    changed = perturb.apply(example, condition)
    return distort.distort(changed, image, seed) if image else changed


def augmented(example: Example, mix: Mapping[str, float], seed: int) -> Example:
    """Return the example under the condition that `choose` picks for it; base, its
    image perturbation aside, where that does not apply (`perturb.applies`). The shares
    of a mix are hence upper bounds on a set that some condition does not apply to."""
    image, condition = _split(choose(example.id, seed, mix))
    if perturb.applies(example, condition):
        condition = "base"
    return apply(example, f"{image}+{condition}" if image else condition, seed)


def condition_of(name: str) -> str:
    """Return the condition in a name of a mix."""
    return _split(name)[1]


def _split(name: str) -> tuple[str, str]:
    """Return the image perturbation ('' for none) and the condition of a name."""
    head, _, rest = name.partition("+")
    own = bool(rest) and user_code.is_own(head)
    image = head in distort.DISTORTIONS or own
    return (head, rest or "base") if image else ("", name)


def _uniform(seed: int, use: str, name: str) -> float:
    """Return a number in [0, 1): 53 bits of sha256 of (seed, use, name)."""
    digest = hashlib.sha256(f"{seed}/{use}/{name}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
