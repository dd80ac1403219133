"""The blind probe as the judge: the accuracy reward is given where the CoT alone,
re-read without the image and with its conclusion stripped, gives the answer; with a
small reward for evidence, on augmented prompts. No judge."""

from configs.tiny import grpo


def get_config(arg=None):
    c = grpo.recipe(
        arg, name="blind-faithful-augmented", reward="agreement", mix=grpo.MIX
    )
    c.judge.name = "blind"
    c.reward.shaping = {"evidence": 0.1}
    return c
