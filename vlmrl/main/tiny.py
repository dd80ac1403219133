"""Make the tiny model's directory: all but its weights.

Qwen2.5-VL in miniature, in the layout Hugging Face transformers reads: `config.json`,
`preprocessor_config.json`, `tokenizer.json`, `tokenizer_config.json`,
`chat_template.jinja`, `generation_config.json`. `configs/tiny/sft.py` then trains the
weights. Everything written is a function of this repository: run twice, equal bytes.

The tokenizer is a byte-level BPE with the family's pre-tokenisation, special tokens and
chat template. Its merges are learnt from the words of `scenes` (`merges`), and then a
few that make tags and letters merge as in the family's own vocabulary: `>A`, `</`,
`.</`, `><`, `>\\n`, while `<` never merges with the word after it.
"""

from __future__ import annotations

from vlmrl.main import args
from vlmrl.tiny import make

HELP = "make the tiny model's directory anew, without weights"
FLAGS = {"workdir": (None, "directory to write into")}


def main(argv):
    _, workdir, _ = args.parse(argv, FLAGS)
    make.make(workdir)
    print(f"{workdir}: the tiny model, without weights")
