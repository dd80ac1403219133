"""Models of text alone: Qwen2 (https://arxiv.org/abs/2407.10671), Qwen3
(https://arxiv.org/abs/2505.09388) and Llama 3.1 (https://arxiv.org/abs/2407.21783).

Equal to transformers' `Qwen2ForCausalLM`, `Qwen3ForCausalLM` and `LlamaForCausalLM`.
The decoder is everybody's (`decoder.py`); what a family adds to it is a line of
`FAMILIES`.
"""

from __future__ import annotations

from typing import NamedTuple

from vlmrl.models import decoder
from vlmrl.models.api import Model

# model_type → what its config.json does not say (see `decoder.read_config`)
FAMILIES = {
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True, head_dim=128),
    "llama": dict(),
}


class Config(NamedTuple):
    text: decoder.Config


def model(raw: dict, where: str = "config.json") -> Model:
    """The `api.Model` of a parsed `config.json`; it refuses images.

    Raises:
      UserError: a field is missing, or asks for something the decoder does not do.
    """
    family = raw["model_type"]
    config = Config(decoder.read_config(raw, where, **FAMILIES[family]))
    return decoder.model(family, config, decoder.rows(config.text))
