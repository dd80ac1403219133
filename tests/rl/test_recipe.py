"""A recipe is data: configs name its switches as it does, and typos are refused."""

import pytest
from ml_collections import ConfigDict

from configs.options import switch_off
from configs.tiny import grpo
from vlmrl.rl import recipe
from vlmrl.types import UserError

PLAIN = {
    "group_size": 8,
    "max_tokens": 72,
    "reward": "grpo",
    "advantage": "grpo",
    "mix": {},
    "loss": {},
}
# Fields of a config that the loop does not see.
ELSEWHERE = {"lora", "save_rollouts", "tensorboard", "wandb"}


def test_a_switched_off_config_is_the_defaults():
    off = switch_off(ConfigDict()).to_dict()
    settings = {k: v for k, v in off.items() if k not in ELSEWHERE}
    assert recipe.make(**PLAIN, **settings) == recipe.make(**PLAIN)
    taken = set(recipe.DEFAULTS) - set(settings)
    passes = {"unroll", "remat", "wide"}
    assert taken == {"temperature", "microbatches", "freeze"} | passes


def test_what_a_config_sets_arrives():
    c = grpo.get_config()
    c.constraint.threshold = 0.9
    fields = {k: v for k, v in c.to_dict().items() if k in recipe.Recipe._fields}
    made = recipe.make(**fields)
    assert made.constraint == recipe.Constraint(0.9, 0.1, 10.0, 0.0)
    assert made.group_size == 8 and made.lag == 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lagg": 1}, "config.lagg: unknown; known: group_size"),
        ({"noise": {"sigm": 0.1}}, "config.noise.sigm: unknown; known: share"),
    ],
)
def test_typos_are_refused(settings, complaint):
    with pytest.raises(UserError, match=f"^{complaint}"):
        recipe.make(**PLAIN, **settings)


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match=r"^config\.loss: missing"):
        recipe.make(**{k: v for k, v in PLAIN.items() if k != "loss"})
