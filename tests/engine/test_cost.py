"""What a shared prefix saves at the sizes that matter: 1,024 image tokens, 64 of text,
8 completions of 256; an evaluation of 10 conditions."""

import functools

import pytest

from vlmrl.bench import workloads


@functools.cache
def counts():
    return workloads.counts(workloads.FULL)


@pytest.mark.slow
def test_a_policy_gradient_step_costs_a_third_of_replicated_rows():
    grouped, rows = counts().step
    assert grouped <= 0.35 * rows
    # 1,088 + 8 · 256 tokens instead of 8 · 1,344, one tower instead of eight: no less.
    assert grouped > (1088 + 8 * 256) / (8 * 1344) * rows / 3


@pytest.mark.slow
def test_ten_conditions_cost_less_than_three_tenths_of_ten_prefills():
    together, apart = counts().evaluation
    assert 1 / 10 < together / apart <= 0.30


@pytest.mark.slow
def test_a_prefix_is_held_once():
    assert counts().cache[0] * 8 == counts().cache[1]
