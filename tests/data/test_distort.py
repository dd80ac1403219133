"""Image perturbations: what they change, and what they leave."""

import io

import numpy as np
import pytest
from PIL import Image

from vlmrl.data import images
from vlmrl.data.distort import (
    DISTORTIONS,
    GREY,
    blank,
    distort,
    encode,
    masked,
    noisy,
    shuffled,
)
from vlmrl.types import Example, UserError


def pixels(height=60, width=75):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def example(count=2):
    return Example(
        id="x/1",
        images=tuple(encode(pixels() // (i + 1)) for i in range(count)),
        question="How many?",
        options=("one", "two"),
        answer=0,
        suggested=1,
        source="x",
        task="count",
        cluster="c",
    )


def decoded(example):
    return [np.asarray(images.decode(data, "test")) for data in example.images]


@pytest.mark.parametrize("name", DISTORTIONS)
def test_shape_and_dtype_stay_and_the_input_is_not_touched(name):
    before = pixels()
    remaining = before.copy()
    got = DISTORTIONS[name](before, rng())
    assert (got.shape, got.dtype) == (before.shape, np.uint8)
    assert not np.array_equal(got, remaining)
    np.testing.assert_array_equal(before, remaining)


def test_blank_is_one_grey():
    assert np.unique(blank(pixels(), rng())).tolist() == [GREY]


def test_shuffled_keeps_its_patches_and_its_border():
    before = pixels()
    got = shuffled(before, rng(), patch=20)
    np.testing.assert_array_equal(got[:, 60:], before[:, 60:])

    def patches(x):
        return sorted(
            x[i : i + 20, j : j + 20].tobytes()
            for i in range(0, 60, 20)
            for j in range(0, 60, 20)
        )

    assert patches(got) == patches(before)
    one = shuffled(before, rng(), patch=60)
    np.testing.assert_array_equal(one, before)  # a single patch has no other order
    np.testing.assert_array_equal(shuffled(before, rng(), patch=999), before)


def test_masked_blackens_the_share_that_was_asked_for():
    before = np.maximum(pixels(56, 70), 1)  # 4 × 5 patches, nothing black before
    for share, expected in ((0.0, 0), (0.6, 12), (1.0, 20)):
        got = masked(before, rng(), share=share).reshape(4, 14, 5, 14, 3)
        assert (got == 0).all((1, 3, 4)).sum() == expected
        assert (got == 0).any((1, 3, 4)).sum() == expected


def test_noise_has_the_size_that_was_asked_for():
    grey = np.full((80, 80, 3), 128, np.uint8)
    spread = noisy(grey, rng(), sigma=0.1).astype(float) - 128
    assert abs(spread.mean()) < 1
    assert abs(spread.std() - 25.5) < 1
    np.testing.assert_array_equal(noisy(grey, rng(), sigma=0.0), grey)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_an_example_changes_in_its_images_only(name):
    before = example()
    got = distort(before, name, 0)
    assert got._replace(images=before.images, condition="base") == before
    assert got.condition == f"{name}+base"
    for data, old in zip(got.images, before.images, strict=True):
        with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(old)) as was:
            assert image.size == was.size


def test_noise_depends_on_seed_name_id_and_image_alone():
    first = distort(example(), "noisy", 0)
    assert distort(example(), "noisy", 0).images == first.images
    assert distort(example(), "noisy", 1).images != first.images
    other = distort(example()._replace(id="x/2"), "noisy", 0)
    assert other.images != first.images
    two = distort(example()._replace(images=example(1).images * 2), "masked", 0)
    assert two.images[0] != two.images[1]


def test_settings_reach_the_perturbation():
    got = decoded(distort(example(), "masked", 0, share=1.0))
    assert not got[0][:56, :70].any()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: distort(example(), "blur", 0), "unknown image perturbation 'blur'"),
        (lambda: distort(example(0), "blank", 0), "'x/1': has no image for 'blank'"),
        (
            lambda: distort(example()._replace(images=(b"no",)), "blank", 0),
            "x/1 image 0",
        ),
        (
            lambda: masked(pixels(), rng(), share=1.5),
            "distort.share: expected 0 to 1, got 1.5",
        ),
        (
            lambda: shuffled(pixels(), rng(), patch=0),
            "distort.patch: expected at least 1 pixel, got 0",
        ),
        (
            lambda: noisy(pixels(), rng(), sigma=-1),
            "distort.sigma: expected at least 0, got -1",
        ),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(UserError, match=named):
        call()
