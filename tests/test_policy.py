"""A model with what it is read with: static lengths, pixels of its images."""

import pytest

from vlmrl import perturb, policy
from vlmrl.data import scenes
from vlmrl.prompts import tokens
from vlmrl.types import UserError


def test_static_lengths_and_pixels_are_a_configs():
    sizes = {"prefix": [256, 64], "branch": (), "images": (2,), "windows": ()}
    actual = policy.load(buckets=sizes, pixels=(56 * 56, 84 * 84))
    assert actual.buckets == policy.BUCKETS._replace(prefix=(64, 256), images=(2,))
    assert actual.processor.pixels == (56 * 56, 84 * 84)
    assert policy.load(pixels=()).processor.pixels != actual.processor.pixels


@pytest.mark.parametrize(
    "options, why",
    [
        ({"buckets": {"prefix": (0, 64)}}, "expected sizes of 1 or more"),
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


def test_scenes_fit_as_whole_prompts_under_every_condition():
    """As training reads them: what a recipe's mix may put into a prompt is in it."""
    tiny = policy.load()
    asked = [perturb.suggest(e, 0) for e in scenes.suite("train", 240)]
    longest = 0
    for name in (*perturb.CONDITIONS, "abstain+wrong_think", "abstain+wrong_caption"):
        written = tiny.write([perturb.apply(e, name) for e in asked])
        rows = tokens.encode_all(tiny.processor, written)
        longest = max(longest, *(len(r.ids) for r in rows))
    assert 100 < longest <= tiny.buckets.prefix[-1]
