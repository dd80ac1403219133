"""The tokenizer of the test kit is Qwen's: its ids are those of the package's own."""

from pathlib import Path

import pytest

from tests import real_tokenizer
from vlmrl import perturb

TEXTS = (
    "<think>x</think>\n<answer>A</answer>",
    "<answer>red.</answer><answer> (B) two discs</answer>",
    "Привет, 你好 👋🏽 ¼ naïve it's 1,234.5 kg",
    "    x = 3\n\n\n  y \t z\r\n",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("qwen")
    ids = real_tokenizer.qwen_tokenizer(path)
    assert ids["<|im_end|>"] == 151645 and ids["<|image_pad|>"] == 151655
    assert ids["<|file_sep|>"] == 151664
    return AutoTokenizer.from_pretrained(path)


@pytest.mark.slow
def test_ids_are_those_of_the_package(tokenizer):
    from dashscope.tokenizers import get_tokenizer

    peer = get_tokenizer("qwen-7b-chat")
    for text in (*TEXTS, Path(perturb.__file__).read_text("utf-8")):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == peer.encode(text), text
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_special_tokens_are_one_id_each(tokenizer):
    for i, name in enumerate((*real_tokenizer.SPECIAL, *real_tokenizer.PLAIN)):
        assert tokenizer.encode(name) == [real_tokenizer.FIRST + i]
