"""A policy-gradient step's forward and backward pass with transformers in torch,
float32: rows of prompt and completion, log-probs of the last --new tokens of each, a
weighed sum of them differentiated; no optimizer. Those tokens count."""

import environment

environment.enter("torch", "torch==2.13.0", "transformers>=5.0", "numpy", "pillow")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

settings = environment.arguments(__doc__)
torch.set_num_threads(settings.threads)
inputs = np.load(settings.inputs)
ids = torch.tensor(inputs["ids"], dtype=torch.long)
model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
    settings.model, dtype=torch.float32
)
weights = torch.linspace(-1, 1, len(ids))[:, None]


def work() -> int:
    model.zero_grad()
    out = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.tensor(inputs["patches"]),
        image_grid_thw=torch.tensor(inputs["grid"]),
        mm_token_type_ids=(ids == int(inputs["image"])).long(),
        use_cache=False,
        logits_to_keep=settings.new + 1,  # logits of the prompt are not computed
    )
    logp = torch.log_softmax(out.logits[:, :-1], -1)
    chosen = ids[:, -settings.new :, None]
    (logp.gather(-1, chosen)[..., 0] * weights).sum().backward()
    return len(ids) * settings.new


environment.run(work, settings, __doc__, ("torch", "transformers"))
