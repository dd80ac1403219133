"""The scan finds the sizes that encoding finds, and what can't be asked; the shapes
chosen from it are few, hold every item and pad little."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests import kit
from vlmrl import perturb
from vlmrl.data import loader, scenes
from vlmrl.prompts import scan as scans
from vlmrl.prompts import shapes, styles, tokens
from vlmrl.prompts.scan import Limits
from vlmrl.prompts.shapes import BatchShape
from vlmrl.types import Example

CONDITIONS = ("base", "wrong_caption", "wrong_think", "no_cot")


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def item(name, *pictures, question="Which one?", **fields):
    return Example(
        id=name, images=pictures, question=question, options=("a", "b", "c"), answer=0,
        suggested=1, source="set", task="t", cluster=name, **fields,
    )  # fmt: skip


def rows(e):
    return [perturb.apply(e, c) for c in CONDITIONS]


def alone(e):
    return [e]


ITEMS = [
    *kit.examples(3),
    item("text"),
    item("several", png(40, 90), png(300, 20), png(8, 8)),
    item("photograph", png(1200, 900), question="What? " * 9),
]


@pytest.mark.parametrize("each", [rows, alone])
def test_sizes_are_those_of_encoded_groups(each):
    processor = kit.processor()
    scan = scans.scan(ITEMS, processor, "tiny", each)
    assert not scan.skips
    for e, size, longest in zip(ITEMS, scan.sizes, scan.longest, strict=True):
        prompts = [styles.build(x, "tiny", processor.render) for x in each(e)]
        group = tokens.encode_all(processor, prompts)
        blind = [tokens.encode(processor, (p.blind, ())) for p in prompts]
        prefix, branch, _, windows = tokens.needs([group], processor.geometry)
        read = tokens.needs([blind], processor.geometry)
        none = each is alone  # no branches
        expected = [prefix, 0 if none else branch, len(e.images)]
        expected += [windows * bool(e.images), read[0], 0 if none else read[1]]
        assert size.tolist() == expected
        assert longest == max(len(r.ids) for r in group)


def test_what_cannot_be_asked_is_found_with_its_reason_and_remedy():
    published = {"meta": json.dumps({"file": "a.tsv", "row": 70})}
    bad = [
        item("thin", png(1093, 5), **published),
        item("broken", b"not an image"),
        item("header", png(30, 30)[:20]),
        item("control", question="Is <|im_end|> here?"),
        item("twelve", *[png(30, 30)] * 12),
        item("long", question="word " * 300),
    ]
    good = [item("fine", png(30, 30)), item("text")]
    scan = scans.scan(
        [*bad, *good],
        kit.processor(),
        "tiny",
        rows,
        Limits(max_prompt=200, max_images=4),
    )
    assert scan.indices == [6, 7] and len(scan.skips) == 6
    assert scan.skips[0][:3] == ("set", "a.tsv", 70)
    assert scan.skips[1][:3] == ("set", "", 1)
    reasons = [scan.skips[i].reason for i in range(6)]
    assert reasons[1] == reasons[2] and len(set(reasons)) == 5
    assert all(s.remedy and s.detail for s in scan.skips.values())
    assert scan.skips[3].example == "control"
    line = scans.describe(scan.skips.values(), 8)
    assert line.startswith("6 of 8 items skipped: 2 × ")
    everything = scans.scan(bad, kit.processor(), "tiny", rows)
    assert sorted(everything.skips) == [0, 1, 2, 3]


def test_counts_are_read_back_from_beside_the_set(tmp_path, monkeypatch):
    stored = loader.examples_of("scenes", "test", 5, tmp_path)
    first = scans.scan(stored, kit.processor(), "tiny", rows)
    monkeypatch.setattr(scans, "_count", None)  # nothing is counted again
    again = scans.scan(stored, kit.processor(), "tiny", rows, Limits(max_images=9))
    np.testing.assert_array_equal(first.sizes, again.sizes)
    small = kit.processor()._replace(pixels=(28 * 28, 28 * 28))
    fewer = scans.scan(stored, small, "tiny", rows)
    assert (fewer.sizes[:, 3] < first.sizes[:, 3]).all()
    with pytest.raises(TypeError):  # other conditions are counted anew
        scans.scan(stored, kit.processor(), "tiny", alone)


def mixed(n, branches, odd=True, seed=0):
    """Photographs of log-normal area and shape and log-normal texts, in tokens of
    Qwen2.5-VL; `odd`: 2 % have two to four smaller images, 1 % none."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        kind = rng.random() if odd else 1
        images = 0 if kind < 0.01 else int(rng.integers(2, 5)) if kind < 0.03 else 1
        area = np.exp(rng.normal(np.log(250_000 if images > 1 else 600_000), 0.8))
        shape = np.exp(rng.normal(0.2, 0.3))
        area = min(area, 4_014_080)
        h = max(1, round(np.sqrt(area / shape) / 28))
        w = max(1, round(np.sqrt(area * shape) / 28))
        text = 40 + int(np.exp(rng.normal(np.log(120), 0.35)))
        prefix = 80 + images * (2 + h * w)
        size = (prefix, text, images, -(-h // 4) * -(-w // 4) * bool(images), 80, text)
        if branches == 1:
            size = (prefix + text, 0, *size[2:4], 80 + text, 0)
        out.append(size)
    return np.array(out)


@pytest.mark.parametrize(
    "branches, odd, bound", [(1, 0, 0.2), (12, 0, 0.21), (1, 1, 0.22)]
)
def test_ten_thousand_mixed_items_pad_little_in_few_programs(branches, odd, bound):
    needed = mixed(10_000, branches, odd)
    cost = shapes.costs(tokens.Geometry(14, 2, 2, 112), branches)
    chosen = shapes.choose(needed, cost, 16)
    plan = shapes.batches(needed, range(10_000), chosen, cost)
    assert len({shape for shape, _ in plan}) <= 12
    assert shapes.padding(needed, plan, cost) <= bound
    assert sorted(i for _, part in plan for i in part) == list(range(10_000))
    for shape, part in plan:
        assert len(part) <= shape.batch <= 16
        assert (needed[part] <= shape.size).all()
    shuffled = np.random.default_rng(1).permutation(10_000)
    assert (
        shapes.choose(needed[shuffled], cost, 16) == chosen
    )  # of the set, not its order


def test_one_odd_item_does_not_widen_the_others():
    needed = np.array([[300, 60, 1, 16, 80, 60]] * 39 + [[3000, 60, 12, 64, 80, 60]])
    cost = shapes.costs(tokens.Geometry(14, 2, 2, 112), 4)
    chosen = shapes.choose(needed, cost, 16)
    assert [s.batch for s in chosen] == [1, 13]
    assert chosen[1].size == (300, 60, 1, 16, 80, 60)
    assert chosen[0].fits(needed[-1]) and not chosen[1].fits(needed[-1])


def test_texts_alone_share_no_shape_with_images():
    needed = np.array([[300, 60, 1, 16, 80, 60]] * 9 + [[80, 60, 0, 0, 80, 60]])
    cost = shapes.costs(tokens.Geometry(14, 2, 2, 112), 4)
    chosen = shapes.choose(needed, cost, 16, multiple=4)
    assert [s.size[2] for s in chosen] == [1, 0] and [s.batch for s in chosen] == [
        12,
        4,
    ]


def test_few_items_take_one_program():
    needed = np.array([[90, 60, 1, 4, 40, 60], [110, 76, 1, 4, 40, 76]] * 4)
    (shape,) = shapes.choose(needed, shapes.Costs(9, 5), 8)
    assert shape == BatchShape((112, 76, 1, 4, 40, 76), 8)


def test_any_training_batch_fits_the_largest_shape():
    needed = mixed(2000, 1)
    chosen = shapes.training_shapes(needed, shapes.Costs(1, 16 / 3), 32)
    assert len(chosen) <= 4
    largest = [
        max(axis) for axis in zip(*((s[0] for s in b) for b in chosen), strict=True)
    ]
    assert (needed[:, [0, 2, 3]].max(0) <= np.array(largest)[[0, 2, 3]]).all()
    top = shapes.smallest(chosen, (*needed.max(0)[[0, 1]].clip(1), *needed.max(0)[2:4]))
    assert top in chosen


def test_what_no_shape_holds_is_rounded_up():
    family = tokens.Buckets((64, 128), (32,), (1, 2), (4, 16))
    assert shapes.smallest([family], (65, 1, 1, 5)) == tokens.Buckets(
        (128,), (32,), (1,), (16,)
    )
    (prefix,), *_ = shapes.smallest([family], (129, 1, 1, 5))
    assert 129 <= prefix <= 160


def test_scenes_have_one_shape():
    examples = list(scenes.suite("test", 48))
    scan = scans.scan(examples, kit.processor(), "tiny", rows)
    cost = shapes.costs(kit.processor().geometry, len(CONDITIONS))
    assert len(shapes.choose(scan.sizes, cost, 16)) == 1
