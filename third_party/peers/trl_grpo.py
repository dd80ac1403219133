"""TRL's GRPO step on a text decoder in torch, float32: --samples completions of --new
tokens of each prompt, made-up rewards, one AdamW update, no reference model. What is
timed is the trainer's own step: sampling, rewards, loss, update. Completions' tokens
count."""

import json
import os
import sys
import tempfile
import time

import environment

environment.enter("trl", "torch==2.13.0", "transformers>=5.0", "trl>=1.0", "numpy")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

os.environ["TOKENIZERS_PARALLELISM"] = "false"
settings = environment.arguments(__doc__)
torch.set_num_threads(settings.threads)
ids = np.load(settings.inputs)["ids"]
model = transformers.AutoModelForCausalLM.from_pretrained(
    settings.model, dtype=torch.float32
)

# One word per id, so that the trainer reads the very ids it is given.
size = model.config.vocab_size
words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, eos_token=f"t{size - 1}", pad_token=f"t{size - 2}"
)
prompts = [" ".join(f"t{i}" for i in row) for row in ids]
rounds = 10**6 if settings.serve else settings.rounds + 1
count = len(ids) * settings.samples
spent = []


def reward(completions, **_):
    return np.random.default_rng(4).normal(size=len(completions)).tolist()


class Turns(transformers.TrainerCallback):
    """Waits for a line before every step, and says how long the step took."""

    def __init__(self):
        self.begin = 0.0
        if settings.serve:
            print(json.dumps({"ready": __doc__}), flush=True)

    def on_step_begin(self, args, state, control, **_):
        if settings.serve and not sys.stdin.readline():
            os._exit(0)
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        spent.append({"seconds": time.perf_counter() - self.begin, "tokens": count})
        if settings.serve:
            print(json.dumps(spent[-1]), flush=True)


with tempfile.TemporaryDirectory() as place:
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts * 64}),
        callbacks=[],
        args=GRPOConfig(
            output_dir=place,
            use_cpu=True,
            per_device_train_batch_size=count,
            num_generations=settings.samples,
            max_completion_length=settings.new,
            generation_kwargs={"min_new_tokens": settings.new},
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-6,
            max_steps=rounds,
            gradient_checkpointing=False,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.add_callback(Turns())
    trainer.train()
environment.report(spent[1:], settings, __doc__, ("torch", "transformers", "trl"))
