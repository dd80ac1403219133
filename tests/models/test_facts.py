"""Published models, built abstractly: their parameters counted."""

import json
import math

import pytest

from vlmrl.models import hf
from vlmrl.models.api import linear

# What the hub's API says of the files' tensors, or what their indices sum to.
PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3-VL-32B-Instruct": 33_357_390_064,
    "OpenGVLab/InternVL3-1B-hf": 938_193_024,
    "OpenGVLab/InternVL3-38B-hf": 38_388_164_992,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
}
NAMES = sorted(hf.published())


def size(name: str) -> int:
    return hf.family_of(hf.published()[name], name)[1].size


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_of_the_published_files(name):
    assert size(name) == PUBLISHED[name]


def test_every_family_has_facts():
    kinds = {raw["model_type"] for raw in hf.published().values()}
    assert kinds == set(hf.FAMILIES)


def test_facts_say_where_they_are_from():
    for path in hf.FACTS.glob("*.json"):
        assert "https://huggingface.co/" in json.loads(path.read_text())["source"]


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_is_told_from_its_layout(name):
    """Matrices are linear layers, embeddings or convolutions; nothing falls between."""
    model = hf.family_of(hf.published()[name], name)[1]
    for key, p in model.table.items():
        if linear(p):
            outputs, inputs = linear(p)
            assert not set(outputs) & set(inputs), key
            assert math.prod(hf.stored_shape(p)) * len(hf.names_of(p)) == math.prod(
                p.shape
            )


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_transformers(name):
    import torch
    import transformers

    raw = hf.published()[name]
    fields = {k: v for k, v in raw.items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(raw["model_type"], **fields)
    with torch.device("meta"):
        module = getattr(transformers, raw["architectures"][0])(config)
    assert sum(p.numel() for p in module.parameters()) == size(name)
