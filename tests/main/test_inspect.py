"""`vlmrl inspect`: what a model is, from its config alone."""

import json

import pytest

from vlmrl.main import inspect
from vlmrl.models import registry


def output(vlmrl, capsys, *words) -> str:
    vlmrl("inspect", *words)
    return capsys.readouterr().out


def test_a_published_model_without_the_hub(vlmrl, capsys):
    text = output(vlmrl, capsys, "Qwen/Qwen2.5-VL-7B-Instruct")
    assert "family        qwen2_5_vl" in text
    assert "8,292,166,656 (vision 676,550,144; text 7,615,616,512)" in text
    assert "float32 33.2 GB, bfloat16 16.6 GB, int8 9.4 GB" in text
    assert "prompt style  r1v" in text
    assert "LoRA          40,370,176 parameters at rank 16" in text
    rows = {line[:13].strip(): line[15:].split() for line in text.splitlines()[-4:]}
    # 16.6 GB on chips of which 0.8 × (16, 95, 32, 80, 80, 141) GB are used.
    assert rows["inference"] == ["16.6", "GB", "2", "1", "1", "1", "1", "1"]
    assert rows["LoRA"] == ["17.2", "GB", "2", "1", "1", "1", "1", "1"]
    assert rows["LoRA on int8"] == ["10.0", "GB", "1", "1", "1", "1", "1", "1"]
    assert rows["full training"] == ["132.7", "GB", "11", "2", "6", "3", "3", "2"]


def test_a_text_model_has_no_vision(vlmrl, capsys):
    text = output(vlmrl, capsys, "meta-llama/Llama-3.1-8B-Instruct", "--rank=4")
    assert "8,030,261,248 (text 8,030,261,248)" in text and "at rank 4" in text


def test_a_config_alone_is_enough(vlmrl, capsys, tmp_path):
    (tmp_path / "config.json").write_bytes((registry.TINY / "config.json").read_bytes())
    bare = output(vlmrl, capsys, tmp_path)
    whole = output(vlmrl, capsys, "tiny")
    assert bare.splitlines()[1:] == whole.splitlines()[1:]
    assert "prompt style  tiny" in whole and " MB" in whole


def test_a_run_is_what_it_began_with(vlmrl, capsys, tmp_path):
    (tmp_path / "run" / "seed-0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": "tiny"}))
    text = output(vlmrl, capsys, tmp_path / "run" / "seed-0")
    assert "family        qwen2_5_vl" in text


def test_nothing_is_allocated():
    """72 B parameters in well under a second."""
    model = registry.build_model(
        registry.published()["Qwen/Qwen2.5-VL-72B-Instruct"], "72B"
    )
    assert inspect.weights(model)["float32"] == 4 * 73_410_777_344
    assert sum(inspect.count(model).values()) == model.size


@pytest.mark.parametrize(
    ("size", "gb", "expected"),
    [(0, 16, 1), (12.8e9, 16, 1), (12.9e9, 16, 2), (1e12, 80, 16)],
)
def test_chips_by_hand(size, gb, expected):
    assert inspect.chips(size, gb) == expected


def test_refusals(refused, tmp_path):
    assert "takes one MODEL, as one of: " in refused("inspect")
    assert "takes one MODEL" in refused("inspect", "tiny", "tiny")
    assert "--rank: expected 1 or more, got 0" in refused("inspect", "tiny", "--rank=0")
    assert "no such directory" in refused("inspect", tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    assert "model_type 'llava' is not supported" in refused("inspect", tmp_path)
