"""A model with what it is read with: static shapes, pixels of its images."""

import pytest

from vlmrl import policy
from vlmrl.data import scenes
from vlmrl.prompts import tokens
from vlmrl.types import UserError


def test_pixels_are_a_configs():
    found = policy.load(pixels=(56 * 56, 84 * 84))
    assert found.processor.pixels == (56 * 56, 84 * 84)
    assert policy.load(pixels=()).processor.pixels != found.processor.pixels


@pytest.mark.parametrize(
    "options, why",
    [
        ({"pixels": (3136,)}, r"expected \(min, max\)"),
        ({"dtype": "float8"}, "dtype: expected float32, bfloat16 or '', got 'float8'"),
        ({"compute": "int8"}, "compute: expected float32, bfloat16 or '', got 'int8'"),
        ({"quantize": "int3"}, "'int3' is not supported; supported: int8"),
    ],
)
def test_sizes_that_make_no_sense(options, why):
    with pytest.raises(UserError, match=why):
        policy.load(**options)


@pytest.mark.parametrize(
    "dtype, compute, stored, read",
    [
        ("float32", "", "float32", "float32"),
        ("float32", "bfloat16", "float32", "bfloat16"),
        ("bfloat16", "", "bfloat16", "bfloat16"),
        ("", "", "float32", "float32"),  # as the tiny checkpoint is stored
        ("", "bfloat16", "float32", "bfloat16"),
    ],
)
def test_number_formats(dtype, compute, stored, read):
    """Of the parameters held, and of those that are read; norms are not rounded."""
    actual = policy.load(dtype=dtype, compute=compute)
    assert {p.dtype.name for p in actual.params.values()} == {stored}
    seen = {n: p.dtype.name for n, p in actual.cast(actual.params).items()}
    assert {kind for n, kind in seen.items() if "norm" not in n} == {read}
    assert {kind for n, kind in seen.items() if "norm" in n} == {stored}


def test_a_group_has_the_smallest_shape_that_holds_it_or_is_rounded_up():
    tiny = policy.load()
    rows = tokens.encode_all(tiny.processor, tiny.write(scenes.suite("train", 4)))
    groups = [[row] for row in rows]
    longest = max(len(r.ids) for r in rows)
    shapes = [tokens.Buckets((n,), windows=(4,)) for n in (longest - 1, 300, 200)]
    planned = tiny._replace(shapes=tuple(shapes)).group(groups)
    assert planned.prefix.ids.shape == (4, 200)
    assert longest <= tiny.group(groups).prefix.ids.shape[1] < 1.25 * longest + 4
