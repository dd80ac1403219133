"""transformers' `generate` in torch: --samples of --new tokens of each prompt, at
temperature 1, none cut short; text decoders and Qwen2.5-VL. New tokens count."""

from pathlib import Path

import environment

environment.enter("torch", "torch==2.13.0", "transformers>=5.0", "numpy", "pillow")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

settings = environment.arguments(__doc__)
torch.set_num_threads(settings.threads)
dtype, device = getattr(torch, settings.dtype), settings.device
inputs = np.load(settings.inputs)
kind, more = transformers.AutoModelForCausalLM, {}
ids = torch.tensor(inputs["ids"], dtype=torch.long, device=device)
if "patches" in inputs:
    kind = transformers.Qwen2_5_VLForConditionalGeneration
    more = {
        "pixel_values": torch.tensor(inputs["patches"], device=device),
        "image_grid_thw": torch.tensor(inputs["grid"], device=device),
        "mm_token_type_ids": (ids == int(inputs["image"])).long(),
    }
if list(Path(settings.model).glob("*.safetensors")):
    model = kind.from_pretrained(settings.model, dtype=dtype)
else:  # of its shape alone
    config = transformers.AutoConfig.from_pretrained(settings.model)
    with torch.device(device):
        model = kind._from_config(config, dtype=dtype)
model = model.to(device).eval()


def work() -> int:
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **more,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=settings.samples,
            min_new_tokens=settings.new,
            max_new_tokens=settings.new,
        )
    assert out.shape == (len(ids) * settings.samples, ids.shape[1] + settings.new)
    return out.cpu().shape[0] * settings.new


environment.run(work, settings, __doc__, ("torch", "transformers"))
