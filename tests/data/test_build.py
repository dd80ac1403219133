"""Builds that are cut off, go on, and refuse to mix."""

import json

import pytest

from tests.data import published
from vlmrl.data import build, loader, reading
from vlmrl.data.reading import Place, Set, SetItem
from vlmrl.data.sets import SETS
from vlmrl.types import UserError


def lines(n):
    rows = [dict(question=f"How many dogs are in image {i}?") for i in range(n)]
    return "\n".join(map(json.dumps, rows))


def items(row, place):
    if place.row % 7 == 3:
        raise reading.Refused("a three too many")
    image = published.picture("JPEG", side=12 + place.row)
    same = "twice" if place.row in (5, 20) else str(place.row)
    return [SetItem(same, (image,), row["question"], ("3", "4"), 0, "count")]


SMALL = Set("small", "", {"test": 23}, (), {"test": ("test.jsonl",)}, items)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROWS", 4)
    published.text(tmp_path / "in/test.jsonl", lines(23))
    return tmp_path / "in"


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_cut_off_anywhere_and_started_again_it_writes_the_same(
    root, tmp_path, monkeypatch
):
    whole, report = build.build(SMALL, "test", root, tmp_path / "whole")
    assert (report.rows, report.examples, len(report.refused)) == (23, 19, 4)
    expected = files(whole)
    assert len(list(whole.glob("*.array_record*"))) == 6
    assert [e.id for e in loader.load(whole, "test")][:4] == ["0", "1", "2", "4"]

    class Cut(BaseException):
        pass

    real = {name: getattr(build.os, name) for name in ("replace", "rename")}
    for at in range(40):
        calls = []

        def cut(name, at=at, calls=calls):
            def call(*words):
                calls.append(name)
                if len(calls) == at + 1:
                    raise Cut
                return real[name](*words)

            return call

        for name in real:
            monkeypatch.setattr(build.os, name, cut(name))
        try:
            build.build(SMALL, "test", root, tmp_path / f"cut{at}")
            finished = True
        except Cut:
            finished = False
        for name in real:
            monkeypatch.setattr(build.os, name, real[name])
        where, again = build.build(SMALL, "test", root, tmp_path / f"cut{at}")
        assert files(where) == expected and again == report, at
        assert [p.name for p in where.parent.iterdir()] == [build.VERSION]
        if finished:
            break
    assert finished and at > 12


def test_what_is_there_stays_and_other_files_are_refused(root, tmp_path):
    where, _ = build.build(SMALL, "test", root, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in where.iterdir()}
    build.build(SMALL, "test", root, tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in where.iterdir()}
    with pytest.raises(UserError, match="built from other files or another seed"):
        build.build(SMALL, "test", root, tmp_path, seed=1)
    published.text(root / "test.jsonl", lines(24))
    with pytest.raises(UserError, match="built from other files"):
        build.build(SMALL, "test", root, tmp_path)


def test_files_that_changed_under_an_unfinished_build(root, tmp_path, monkeypatch):
    def cut(*words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_finish", cut)
        with pytest.raises(KeyboardInterrupt):
            build.build(SMALL, "test", root, tmp_path)
    published.text(root / "test.jsonl", lines(5))
    _, report = build.build(SMALL, "test", root, tmp_path)
    assert report.rows == 5


def test_more_images_are_other_files(root, tmp_path):
    """What was refused for want of an image may now be kept."""
    bench = SMALL._replace(beside=("images/*",))
    build.build(bench, "test", root, tmp_path)
    published.text(root / "images/manifest.jsonl", "{}")
    build.build(bench, "test", root, tmp_path)
    published.text(root / "images/a.png", published.picture())
    with pytest.raises(UserError, match="was built from other files"):
        build.build(bench, "test", root, tmp_path)


def test_nothing_kept_and_nothing_there(root, tmp_path):
    with pytest.raises(UserError, match="split 'x' is not one of test"):
        build.build(SMALL, "x", root, tmp_path)
    with pytest.raises(UserError, match=r"holds no test\.jsonl for split test"):
        build.build(SMALL, "test", tmp_path / "no", tmp_path)
    published.text(root / "test.jsonl", '{"answer": 1}\n')
    bench = SMALL._replace(items=SETS["vstar"].items)
    with pytest.raises(UserError, match=r"none of its rows is kept; the first, test"):
        build.build(bench, "test", root, tmp_path)
    published.text(root / "test.jsonl", "{broken\n")
    with pytest.raises(
        UserError, match=r"test\.jsonl, line 1: expected a line of JSON"
    ):
        build.build(bench, "test", root, tmp_path)


def test_suggestions_are_spread_and_follow_the_text():
    options = ("a", "b", "c", "d")
    actual = [build.suggested(options, 0, 0, "s", i) for i in range(300)]
    assert {actual.count(k) > 60 for k in (1, 2, 3)} == {True} and 0 not in actual
    turned = build.suggested(options[::-1], 3, 0, "s", 7)
    assert options[::-1][turned] == options[build.suggested(options, 0, 0, "s", 7)]
    assert build.suggested(("x", "X "), 0, 0, "s", 1) == -1


def test_an_item_without_a_wrong_option_still_is_an_example():
    item = SetItem("1", (), "What is it?", ("backpack",), 0, "t", open=True)
    example, _ = build.example_of(item, "s", Place(published.Path("."), "test", "f", 0))
    assert example.suggested == -1 and example.options == ("backpack",)
