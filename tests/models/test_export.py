"""Checkpoints that transformers wrote, read and written again: every family comes back
to transformers bit for bit, tied heads, shards and all."""

import json
import shlex
import subprocess
import sys

import jax.numpy as jnp
import pytest

from vlmrl.models import files, hf, lora, registry, weights
from vlmrl.models.api import linear
from vlmrl.types import UserError

TEXT = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    vocab_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
ROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
IDS = dict(image_token_id=90, video_token_id=91, vision_start_token_id=92,
           vision_end_token_id=93)  # fmt: skip
TOWER = dict(depth=3, hidden_size=16, num_heads=2, intermediate_size=24,
             out_hidden_size=32, patch_size=14, spatial_merge_size=2,
             temporal_patch_size=2)  # fmt: skip
CONFIGS = {
    "qwen2_5_vl": dict(
        IDS,
        text_config=dict(TEXT, rope_parameters=ROPE),
        vision_config=dict(TOWER, fullatt_block_indexes=[1], window_size=56),
    ),
    "qwen3_vl": dict(
        IDS,
        text_config=dict(TEXT, rope_parameters=dict(ROPE, mrope_interleaved=True)),
        vision_config=dict(
            TOWER, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]
        ),
    ),
    "internvl": dict(
        image_token_id=90,
        text_config=dict(TEXT, model_type="qwen2"),
        vision_config=dict(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_bias=True,
            image_size=[56, 56],
        ),
    ),
    "qwen2": TEXT,
    "qwen3": TEXT,
    "llama": TEXT,
}
CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}


def theirs(kind: str, tied: bool):
    """A random model of transformers in bfloat16."""
    import torch
    import transformers

    fields = dict(CONFIGS[kind], tie_word_embeddings=tied)
    if "text_config" in fields:
        text = dict(fields["text_config"], tie_word_embeddings=tied)
        fields["text_config"] = text
    config = transformers.AutoConfig.for_model(kind, **fields)
    torch.manual_seed(0)
    return getattr(transformers, CLASSES[kind])(config).to(torch.bfloat16).eval()


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", CONFIGS)
def test_to_and_from_transformers(kind, tied, tmp_path, monkeypatch):
    import torch

    module = theirs(kind, tied)
    module.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / files.INDEX).is_file()
    model, params = weights.load(tmp_path / "theirs", dtype=None)
    assert model.size == sum(p.numel() for p in module.parameters())
    assert all(p.dtype == jnp.bfloat16 for p in params.values())
    monkeypatch.setattr(hf, "SHARD", 20_000)
    path = hf.save(tmp_path / "ours", model, params, tmp_path / "theirs")
    index = json.loads((path / files.INDEX).read_text())
    names = set(index["weight_map"])
    assert any(n.endswith("lm_head.weight") for n in names) == (not tied)

    again, info = type(module).from_pretrained(
        path, dtype="auto", output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys"))
    wanted = module.state_dict()
    found = again.state_dict()
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], x), name


@pytest.mark.parity
@pytest.mark.parametrize("kind", CONFIGS)
def test_adapters_bear_the_names_of_modules(kind, tmp_path):
    """peft hangs adapters on modules by their path: every target is a linear module of
    transformers' model, and every linear module but the head can be one."""
    import torch

    module = theirs(kind, False)
    module.save_pretrained(tmp_path / "theirs")
    model = registry.read_model(tmp_path / "theirs")
    added = lora.rows(model, lora.Adapter(2, 2.0, ("*",)))
    shapes = {n: tuple(p.stored_shape) for p in added.values()
              for n in p.stored_names}  # fmt: skip
    linears = {
        n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear)
    }
    linears.pop("lm_head", None)
    wanted = {}
    for name, m in linears.items():
        wanted[f"base_model.model.{name}.lora_A.weight"] = (2, m.in_features)
        wanted[f"base_model.model.{name}.lora_B.weight"] = (m.out_features, 2)
    assert shapes == wanted
    assert sum(linear(p) is not None for p in model.table.values()) * 2 == len(added)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "llama"])
def test_the_command_that_converts_pickled_weights_does(kind, tmp_path):
    """What the refusal says, run as it stands; then they load."""
    import torch

    module, path = theirs(kind, False), tmp_path / "theirs"
    module.save_pretrained(path)
    _, wanted = weights.load(path, dtype=None)
    (path / "model.safetensors").unlink()
    torch.save(module.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights can run code") as caught:
        weights.load(path)
    said = str(caught.value)
    python, option, program = shlex.split(said[said.index("python -c") :])
    assert (python, option) == ("python", "-c")
    subprocess.run([sys.executable, "-c", program], check=True)
    _, params = weights.load(f"{path}-safetensors", dtype=None)
    assert params.keys() == wanted.keys()
    for name, p in wanted.items():
        assert params[name].dtype == p.dtype and jnp.array_equal(params[name], p), name
