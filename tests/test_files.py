"""Files that appear whole or not at all."""

import json

import pytest

from vlmrl import files
from vlmrl.types import UserError


@pytest.mark.parametrize(
    "data, content",
    [
        ("é\n", "é\n".encode()),
        (b"\x00\xff", b"\x00\xff"),
        (["a\n", "b\n"], b"a\nb\n"),
        (lambda path: path.write_text("c"), b"c"),
    ],
)
def test_every_kind_of_data_is_written(data, content, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    files.atomic_write(path, data)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def lines():
        yield "half"
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        files.atomic_write(path, lines())
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_json_documents(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}


ROWS = [{"a": "\u2028\u2029\x85é\x1c\r\n"}, {}, ["\ud800"], {"b": None}]


def test_json_lines_round_trip_and_hold_in_any_reader(tmp_path):
    path = tmp_path / "a.jsonl"
    files.write_lines(path, ROWS[:2])
    for row in ROWS[2:]:
        files.append_line(path, row)
    assert list(files.read_lines(path)) == list(enumerate(ROWS, 1))
    text = path.read_bytes().decode()
    assert text.splitlines() == text.split("\n")[:-1] and "é" in text


def test_lines_of_other_writers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "\u2028\x85"}\r\n\n \n[1]\n{"b"'.encode())
    rows = [(1, {"a": "\u2028\x85"}), (4, [1])]
    assert list(files.read_lines(path, torn=True)) == rows
    with pytest.raises(UserError, match=r"a\.jsonl, line 5: expected a line of JSON"):
        list(files.read_lines(path))
    path.write_bytes(b'{"a": 1}\n' * 2050 + b'{"a": "\xff"}\n{}\n')
    with pytest.raises(UserError, match="line 2051: "):
        list(files.read_lines(path))
