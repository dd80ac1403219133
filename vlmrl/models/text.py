"""Models of text alone: Qwen2 (https://arxiv.org/abs/2407.10671), Qwen3
(https://arxiv.org/abs/2505.09388) and Llama 3.1 (https://arxiv.org/abs/2407.21783).

Equal to transformers' `Qwen2ForCausalLM`, `Qwen3ForCausalLM` and `LlamaForCausalLM`.
The decoder is that of all families (`decoder.py`); a family here is a line of
`FAMILIES`.
"""

from __future__ import annotations

from typing import NamedTuple

from vlmrl.models import decoder
from vlmrl.models.api import Model
from vlmrl.models.hf_config import Section

# model_type → what its config.json does not say
FAMILIES = {
    "qwen2": decoder.Traits(qkv_bias=True),
    "qwen3": decoder.Traits(qk_norm=True, head_dim=128),
    "llama": decoder.Traits(),
}


class Config(NamedTuple):
    text: decoder.Config


def model(raw: dict, where: str = "config.json") -> Model:
    """Return the `api.Model` of a parsed `config.json`; it refuses images.

    Raises:
      UserError: a field is missing, or asks for something the decoder does not do.
    """
    family = raw["model_type"]
    config = Config(decoder.read_config(Section(raw, where), FAMILIES[family]))
    return decoder.model(family, config, decoder.table(config.text))
