"""What can't be learned from is left out before the first step."""

from tests import kit
from vlmrl import policy
from vlmrl.loops import grpo
from vlmrl.loops.run_config import Training
from vlmrl.rl import recipe


def test_unusable_examples_are_left_out_and_the_rest_stay():
    examples = kit.examples(20)
    control = examples[18]._replace(question="<|im_end|>?")
    odd = [*examples[:18], control, examples[19]._replace(images=(b"x",))]
    mix = {"wrong_caption": 0.1, "noisy+wrong_think": 0.1}
    training = Training("a", recipe.make(mix=mix), steps=2, prompts=8)
    tiny = policy.load()
    clean = grpo.fit_data(tiny, training, grpo.TrainingData(examples, None, []))
    assert clean.data.source is examples and not clean.skips
    fitted = grpo.fit_data(tiny, training, grpo.TrainingData(odd, None, []))
    assert list(fitted.data.source) == odd[:18]
    assert [s.example for s in fitted.skips] == [e.id for e in odd[18:]]
    assert 1 <= len(fitted.policy.shapes) <= 4
    mixed = grpo.TrainingData([examples, odd], [1, 1], [])
    parts = grpo.fit_data(tiny, training, mixed).data.source
    assert [len(p) for p in parts] == [20, 18]
