"""Controllers: single updates by hand, and that each settles where it should."""

import pytest

from vlmrl.rl.controllers import (
    dual_ascent,
    entropy_bonus,
    entropy_target,
    ppo_kl,
    proportional_kl,
)


@pytest.mark.parametrize(
    ("kl", "want"), [(0.0, 0.5), (0.06, 0.5), (0.07, 1), (0.14, 1), (0.16, 2), (9, 2)]
)
def test_ppo_kl_by_hand(kl, want):
    assert float(ppo_kl(1.0, kl, 0.1)) == pytest.approx(want)


@pytest.mark.parametrize(
    ("kl", "want"), [(0.1, 2.0), (0.11, 2.02), (9.0, 2.04), (0.0, 1.96)]
)
def test_proportional_kl_by_hand(kl, want):
    assert float(proportional_kl(2.0, kl, 0.1)) == pytest.approx(want)


def test_both_drive_a_kl_that_falls_with_the_weight_to_the_target():
    """A plant KL = 1/β: the target 0.05 needs β = 20."""
    for update, tolerance in ((ppo_kl, 1.5), (proportional_kl, 1.02)):
        weight = 1.0
        for _ in range(400):
            weight = float(update(weight, 1 / weight, 0.05))
        assert 20 / tolerance <= weight <= 20 * tolerance


def test_entropy_target_by_hand():
    assert float(entropy_target(0.01, 0.1, 0.2)) == pytest.approx(0.015)
    assert float(entropy_target(0.01, 0.3, 0.2)) == pytest.approx(0.005)
    assert float(entropy_target(0.01, 0.2, 0.2)) == pytest.approx(0.01)
    assert float(entropy_target(0.003, 0.3, 0.2)) == 0
    assert float(entropy_bonus(0.01, 0.1, 0.2)) == pytest.approx(0.01)
    assert float(entropy_bonus(0.01, 0.3, 0.2)) == 0


def test_dual_ascent_by_hand():
    assert float(dual_ascent(0.0, 0.7, 0.9)) == pytest.approx(0.02)
    assert float(dual_ascent(0.01, 1.0, 0.9)) == pytest.approx(0)
    assert float(dual_ascent(9.99, 0.0, 0.9, max=10)) == 10
    assert float(dual_ascent(1.0, 0.9, 0.9)) == 1


def test_dual_ascent_finds_the_price_of_the_constraint():
    """A plant that agrees in a share λ/2 of its answers: 0.9 costs λ = 1.8."""
    price = 0.0
    for _ in range(500):
        price = float(dual_ascent(price, min(1.0, price / 2), 0.9))
    assert price == pytest.approx(1.8, abs=0.01)
