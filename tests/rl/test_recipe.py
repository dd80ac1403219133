"""A recipe is data: configs name its switches as it does, and typos are refused."""

import pytest

from configs.tiny import grpo
from vlmrl.rl import recipe
from vlmrl.types import UserError


def fields_of(c) -> dict:
    return {k: v for k, v in c.to_dict().items() if k in recipe.Recipe._fields}


def test_defaults_come_back_from_plain_dicts():
    assert recipe.make(**recipe.as_dict()) == recipe.make() == recipe.Recipe()


def test_a_config_starts_from_the_defaults():
    """The tiny recipe sets what a run at toy size needs, and no more."""
    made, defaults = recipe.make(**fields_of(grpo.get_config())), recipe.Recipe()
    differ = {n for n in made._fields if getattr(made, n) != getattr(defaults, n)}
    assert differ == {"sampling", "learner", "loss", "optimizer"}


def test_what_a_config_sets_arrives():
    c = grpo.get_config()
    c.constraint.threshold = 0.9
    made = recipe.make(**fields_of(c))
    assert made.constraint == recipe.ConstraintOptions(0.9, 0.1, 10.0, 0.0)
    assert made.sampling.group_size == 8 and made.sampling.off_policy_steps == 0


def test_sections_fields_and_records_say_the_same():
    one = recipe.make(judge={"name": "blind", "parts": 2})
    two = recipe.make(**{"judge.parts": 2, "judge.name": "blind"})
    three = recipe.make(judge=recipe.VerdictOptions("blind", parts=2))
    assert one == two == three and recipe.get(one, "judge.parts") == 2


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"slot": 1}, "config.slot: unknown; known: sampling"),
        ({"noise": {"sigm": 0.1}}, "config.noise.sigm: unknown; known: share"),
        ({"replay.size": 3}, "config.replay.size: unknown; known: capacity"),
        (
            {"noise": 0.1},
            "config.noise: expected a section of fields .*, got 0.1",
        ),
    ],
)
def test_typos_are_refused(settings, complaint):
    with pytest.raises(UserError, match=f"^{complaint}"):
        recipe.make(**settings)


@pytest.mark.parametrize("old", recipe.RENAMED)
def test_a_name_of_before_is_refused_by_the_name_now(old):
    new = recipe.RENAMED[old]
    if "." in new:
        assert recipe.get(recipe.Recipe(), new) is not None
    section, _, inner = old.rpartition(".")
    settings = {section: {inner: 1}} if section else {old: 1}
    with pytest.raises(UserError) as error:
        recipe.make(**settings)
    message = str(error.value)
    assert f"config.{new}".rpartition(".")[0] in message and "\n" not in message
    assert message.endswith(" now")


def test_every_field_has_a_comment():
    names = {n for n in recipe.Recipe._fields if n not in recipe.SECTIONS}
    for section, kind in recipe.SECTIONS.items():
        names |= {f"{section}.{field}" for field in kind._fields}
    assert names <= set(recipe.comments())
