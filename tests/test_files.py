"""Files that appear whole or not at all."""

import json

import pytest

from vlmrl import files


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


def test_json_documents_and_lines(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}
    files.atomic_write(tmp_path / "a.jsonl", files.json_lines([{"a": "\u2028é"}, {}]))
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [{"a": "\u2028é"}, {}]
