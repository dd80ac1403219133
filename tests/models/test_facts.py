"""Published models, built abstractly: their parameters counted."""

import json
import math

import pytest

from vlmrl.models import registry
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
# Bytes of the weights' files, to the digits that the hub lists them with.
FILES = {
    "OpenGVLab/InternVL3-2B-hf": (4.18e9, 1e7),
    "OpenGVLab/InternVL3-8B-hf": (4.88e9 + 4.99e9 + 4.93e9 + 1.09e9, 2e7),
    "OpenGVLab/InternVL3-14B-hf": (30.2e9, 1e8),
}
NAMES = sorted(registry.published())


def size(name: str) -> int:
    return registry.build_model(registry.published()[name], name).size


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_those_of_the_published_files(name):
    assert size(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", FILES)
def test_sizes_are_those_of_the_published_files(name):
    """A decoder of Qwen2.5's sizes and the tower of the smallest InternVL3, whose
    counts are known, have these bytes in bfloat16."""
    size_of_files, rounding = FILES[name]
    assert abs(2 * size(name) - size_of_files) <= rounding
    known = {"2B": "1.5B", "8B": "7B", "14B": "14B"}
    text = registry.published()[name]["text_config"]
    other = registry.published()[f"Qwen/Qwen2.5-{known[name.split('-')[1]]}-Instruct"]
    sizes = [k for k in text if k.endswith(("_size", "_heads", "_layers"))]
    sizes.remove("vocab_size")
    assert {k: text[k] for k in sizes} == {k: other[k] for k in sizes}
    tower = registry.published()[name]["vision_config"]
    assert tower == registry.published()["OpenGVLab/InternVL3-1B-hf"]["vision_config"]


def test_a_file_without_its_defaults_is_the_same_model():
    """As transformers 4.49 saved fine-tuned models."""
    name = "Qwen/Qwen2.5-VL-7B-Instruct"
    raw = registry.published()[name]
    few = {k: raw["vision_config"][k] for k in ("hidden_size", "in_chans")}
    model = registry.build_model({**raw, "vision_config": few}, name)
    assert model.config == registry.build_model(raw, name).config
    assert model.size == PUBLISHED[name]


def test_every_family_has_facts():
    kinds = {raw["model_type"] for raw in registry.published().values()}
    assert kinds == set(registry.FAMILIES)


def test_facts_say_where_they_are_from():
    for path in registry.FACTS.glob("*.json"):
        assert "https://huggingface.co/" in json.loads(path.read_text())["source"]


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_is_told_from_its_layout(name):
    """Matrices are linear layers, embeddings or convolutions; nothing falls between."""
    model = registry.build_model(registry.published()[name], name)
    for key, p in model.table.items():
        if linear(p):
            outputs, inputs = linear(p)
            assert not set(outputs) & set(inputs), key
            assert math.prod(p.stored_shape) * len(p.stored_names) == math.prod(p.shape)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_transformers(name):
    import torch
    import transformers

    raw = registry.published()[name]
    fields = {k: v for k, v in raw.items() if k != "model_type"}
    config = transformers.AutoConfig.for_model(raw["model_type"], **fields)
    with torch.device("meta"):
        module = getattr(transformers, raw["architectures"][0])(config)
    assert sum(p.numel() for p in module.parameters()) == size(name)
