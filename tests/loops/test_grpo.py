"""`grpo.train`: from Python, on a list of examples, with a reward of one's own."""

import numpy as np
import pytest

from tests import kit
from tests.rl.test_loop import GROUP, LENGTH, PROMPTS, policy
from vlmrl.loops import grpo
from vlmrl.types import UserError

FIELDS = {
    "sampling": {"group_size": GROUP, "max_tokens": LENGTH},
    "mix": {"wrong_think": 1.0},
    "optimizer": {"peak": 1e-3},
}


def trained(reward, **fields):
    return grpo.train(
        policy(), kit.examples(12), reward, steps=2, prompts=PROMPTS, **FIELDS | fields
    )


@pytest.mark.slow
def test_a_reward_of_ones_own_is_learned_from(tmp_path):
    """It sees the completion; the policy that came in stays as it is."""
    seen = []

    def reward(completion):
        seen.append(completion)
        return len(seen) % 3  # differs within a group

    before = {n: np.array(p) for n, p in policy().params.items()}
    result = trained(reward)
    assert len(seen) == 2 * PROMPTS * GROUP
    assert all(c.verdict and c.tokens and c.example.meta for c in seen)
    assert all(c.text.startswith(c.example.prefill) for c in seen)
    assert all(c.correct == (c.parsed.option == c.example.answer) for c in seen)
    assert [row["step"] for row in result.metrics] == [1, 2]
    total = np.mean([(i + 1) % 3 for i in range(PROMPTS * GROUP)])
    assert result.metrics[0]["reward/total"] == pytest.approx(total)
    assert result.metrics[0]["grad_norm"] > 0
    for name, value in policy().params.items():
        np.testing.assert_array_equal(value, before[name])
    assert any(
        (np.array(p) != before[n]).any() for n, p in result.policy.params.items()
    )


@pytest.mark.parametrize(
    ("reward", "fields", "complaint"),
    [
        ("best", {}, "recipe.reward.name is 'best', expected one of grpo, gated"),
        (
            lambda parsed, answer, verdict: 0.0,
            {},
            "<lambda>(completion, **options), got (parsed, answer, verdict)",
        ),
        (
            lambda parsed, answer=0: 0.0,
            {},
            "<lambda>(completion, **options), got (parsed, answer=0)",
        ),
        ("grpo", {"lag": 1}, "recipe.lag: it is recipe.sampling.off_policy_steps now"),
        (
            "gated",
            {"judge": {"name": ""}},
            "recipe.reward.name='gated' needs a verdict",
        ),
        ("grpo", {"judge": {"name": "model:tiny"}}, "expected a workdir"),
        ("grpo", {"learner": {"microbatches": 3}}, "prompts is 4, expected a multiple"),
    ],
)
def test_fields_that_make_no_sense_are_refused(reward, fields, complaint):
    with pytest.raises(UserError) as error:
        trained(reward, **fields)
    assert complaint in str(error.value)
