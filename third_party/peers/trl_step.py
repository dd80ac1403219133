"""A step of TRL's GRPOTrainer, float32: --samples completions of --new tokens of each
prompt by transformers' generate, a reward in Python (share of even ids), advantages
within groups, clipped loss without KL, AdamW. Those tokens count."""

import json
import sys
import tempfile
import time

import environment

environment.enter(
    "trl", "torch==2.13.0", "trl==1.16.0", "transformers>=5.0", "numpy", "pillow"
)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

settings = environment.arguments(__doc__)
torch.set_num_threads(settings.threads)
ids = np.load(settings.inputs)["ids"]
model = transformers.AutoModelForCausalLM.from_pretrained(
    settings.model, dtype=torch.float32
)
rows = len(ids) * settings.samples

# A tokenizer whose words are ids.
words = {str(i): i for i in range(model.config.vocab_size)}
plain = Tokenizer(models.WordLevel(words, unk_token="0"))
plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=plain,
    eos_token=str(model.config.eos_token_id),
    pad_token=str(model.config.pad_token_id),
)


def even(completion_ids, **_):
    for row in completion_ids:
        assert len(row) == settings.new, len(row)
    return [float(np.mean(np.array(row) % 2 == 0)) for row in completion_ids]


class Turns(transformers.TrainerCallback):
    """A step for every line that is read, or --rounds of them after one to warm up; a
    step begins before its completions are drawn and ends after the optimizer."""

    rounds: list[dict] = []

    def on_train_begin(self, *_, **__):
        if settings.serve:
            versions = environment.versions(PACKAGES)
            print(json.dumps({"ready": __doc__, "versions": versions}), flush=True)

    def on_step_begin(self, args, state, control, **_):
        if settings.serve and not sys.stdin.readline():
            sys.exit()
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        spent = time.perf_counter() - self.begin
        one = {"seconds": spent, "tokens": rows * settings.new}
        if settings.serve:
            print(json.dumps(one), flush=True)
        else:
            self.rounds.append(one)


PACKAGES = ("torch", "transformers", "trl")
with tempfile.TemporaryDirectory() as place:
    config = GRPOConfig(
        place,
        per_device_train_batch_size=rows,
        num_generations=settings.samples,
        max_completion_length=settings.new,
        max_steps=10**6 if settings.serve else 1 + settings.rounds,
        generation_kwargs={"min_new_tokens": settings.new},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=1e-6,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    texts = [" ".join(map(str, row)) for row in ids]
    GRPOTrainer(
        model,
        reward_funcs=even,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=[Turns()],
    ).train()
environment.report(Turns.rounds[1:], settings, __doc__, PACKAGES)
