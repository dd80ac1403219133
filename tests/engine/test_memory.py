"""What can't fit is refused before anything is compiled, with what would fit."""

import jax
import pytest

from tests import kit
from vlmrl.engine import memory
from vlmrl.types import UserError

BRANCHES, LENGTH = 6, 50


def request(rows=BRANCHES, slots=0) -> memory.RolloutRequest:
    return memory.RolloutRequest(kit.group(2), rows, LENGTH, slots)


def asked() -> memory.MemoryEstimate:
    return memory.estimate(kit.model(), kit.params(), request())


def test_bytes_are_those_of_the_arrays():
    c = kit.model().config.text
    token = 2 * c.layers * c.kv_heads * c.head_dim * 4
    found, group = asked(), kit.group(2)
    assert found.branches == BRANCHES * LENGTH * token
    patches = group.vision.patches.nbytes
    assert found.prefixes == 2 * group.prefix.ids.size * token + 2 * patches
    assert found.logits == 4 * BRANCHES * c.vocab * 4
    assert found.total == found.prefixes + found.branches + found.logits


def check(limit, slots=0, **more):
    memory.check(
        "group_size", kit.model(), kit.params(), request(slots=slots), limit=limit,
        **more,
    )  # fmt: skip


def test_a_request_too_large_is_refused_with_what_would_fit(monkeypatch):
    def compiles(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr(jax, "jit", compiles)
    total = asked().total
    check(total)
    with pytest.raises(UserError) as error:
        check(total - 1)
    text = str(error.value)
    assert text.startswith("group_size: 2 groups of 3 branches of 50 tokens need ")
    assert f"{total / 1e9:.3g} GB" in text and "at most 1 groups fit" in text
    with pytest.raises(UserError, match="not even one of the groups"):
        check(total // 3)


def test_a_copy_of_the_weights_takes_its_part():
    total = asked().total
    check(total + 7, copy=7)
    with pytest.raises(UserError, match=r"beside a copy of the weights, 7e-09 GB"):
        check(total + 6, copy=7)
    with pytest.raises(UserError, match="not even one of the groups"):
        check(total, copy=2 * total)


def test_what_fits_is_what_was_said():
    """A batch of the size the error names passes."""
    one = memory.RolloutRequest(kit.group(1), 3, LENGTH)
    per = memory.estimate(kit.model(), kit.params(), one).total
    assert asked().total == 2 * per
    memory.check("x", kit.model(), kit.params(), one, limit=asked().total - 1)


def test_slots_need_less_and_are_refused_by_their_number():
    """2 groups of 3 branches: in one slot a third of the branches' bytes and half of
    the prefixes'."""

    def of(slots):
        return memory.estimate(kit.model(), kit.params(), request(slots=slots))

    whole, one, two = asked(), of(1), of(2)
    assert one.branches * BRANCHES == whole.branches and of(99) == whole
    images = 2 * kit.group(2).vision.patches.nbytes
    assert (one.prefixes - images) * 2 == whole.prefixes - images
    check(two.total, slots=2)
    with pytest.raises(UserError, match="in 4 slots of 50 tokens .* at most 2 slots"):
        check(two.total, slots=4)
    with pytest.raises(UserError, match="not even one of the slots fits"):
        check(one.total - 1, slots=4)


def test_the_machines_own_memory():
    found = memory.available(jax.devices()[0])
    assert found is None or 2**20 < found < 2**50
    memory.check("x", kit.model(), kit.params(), request())
    with pytest.raises(UserError, match="GB per device"):
        memory.check("x", kit.model(), kit.params(), request(2**40))
