"""Configs that contradict themselves name both fields; those in use pass."""

import pytest

from configs.tiny import grpo
from vlmrl.loops.run_config import RUN_FIELDS
from vlmrl.rl.check import check, check_loss
from vlmrl.types import UserError

URL = "http://127.0.0.1:8000/v1"


def test_the_recipes_in_use_pass():
    settings = grpo.get_config().to_dict()
    check({k: v for k, v in settings.items() if k not in RUN_FIELDS})
    check({})


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling.group_size": 1, "advantage.name": "reinforce_pp"},
        {"reward.name": "gated", "judge.name": "blind"},
        {"reward.name": "grpo", "judge.name": None},
        {"advantage.name": "gdpo"},
        {"loss": {"surrogate": "gspo", "aggregation": "sequence", "kl_weight": 0.1}},
        {"loss": {"surrogate": "cispo", "importance": {"level": "sequence"}}},
        {"loss": {"surrogate": "clip_cov", "perception_weight": 0.01}},
        {"loss": {"aggregation": "constant", "length": 64}},
        {"loss": {"kl_estimator": "k1"}},  # no weight: not in the loss
        {"loss": {"kl_weight": 0.1}, "adaptive_kl.target": 0.05},
        {"reward.name": "lagrangian", "constraint": {"threshold": 0.9}},
        {"advantage.name": "decoupled", "constraint": {"threshold": 0.9}},
        {"ranking": {"by": "p_correct", "weight": 0.4}, "judge.name": "shuffle"},
        {"reward.name": "additive", "reward.options": {"weight": 0.3}},
        {
            "sampling.resampling_rounds": 3,
            "replay": {"capacity": 32},
            "learner.ema": 0.99,
        },
        {"sampling.off_policy_steps": 1, "loss": {"importance": {"level": "token"}}},
        {"noise": {"share": 0.5}, "sampling.group_size": 8},
        {"distillation": {"share": 0.5}, "sampling.group_size": 8},
        {"mix": {"noisy": 0.2, "blank+wrong_think": 0.1}},
        {"overlong": {"limit": 64, "buffer": 16}, "sampling.max_tokens": 72},
        {
            "judge.name": "rule,http:m",
            "judge": {"url": URL, "seconds": 5.0, "parts": 2},
        },
        {"judge.name": "model:tiny"},
    ],
)
def test_what_fits_together_passes(settings):
    check(settings)


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (
            {"sampling.group_size": 1},
            ["config.sampling.group_size is 1", "config.advantage.name='grpo'"],
        ),
        (
            {"sampling.group_size": 1, "advantage.name": "gdpo"},
            ["config.sampling.group_size", "config.advantage.name='gdpo'"],
        ),
        ({"sampling.group_size": 0}, ["config.sampling.group_size is 0"]),
        (
            {"reward.name": "gated", "judge.name": None},
            ["config.reward.name='gated'", "config.judge.name is None"],
        ),
        (
            {"advantage.name": "decoupled", "judge.name": None},
            ["config.advantage.name='decoupled'", "config.judge.name is None"],
        ),
        ({"sampling.top_p": 0.9}, ["config.sampling.top_p: unknown"]),
        ({"judge.name": "gpt"}, ["config.judge.name is 'gpt'", "rule"]),
        (
            {"judge.name": ""} | {"reward.name": "gated"},
            ["config.reward.name='gated'", "judge.name is ''"],
        ),
        ({"judge.name": "http:m"}, ["config.judge.name: an http judge needs a url"]),
        (
            {"judge.name": "rule,gpt:m"},
            ["config.judge.name: expected rule, model:DIR, http:MODEL or", "'gpt:m'"],
        ),
        ({"judge.name": "model:/nowhere"}, ["model '/nowhere': no such directory"]),
        (
            {
                "judge.name": "http:m",
                "judge": {"url": "http://example.com", "seconds": 1},
            },
            ["plain http to another machine"],
        ),
        (
            {"judge.name": "http:m", "judge": {"url": URL, "key_env": "NO_KEY"}},
            ["no environment variable NO_KEY"],
        ),
        ({"judge": {"url": URL}}, ["config.judge.url=", "config.judge.name='rule'"]),
        (
            {"judge.name": "http:m", "judge": {"url": URL, "seconds": 0}},
            ["config.judge.seconds is 0,", "config.judge.name='http:m'"],
        ),
        (
            {"sampling.off_policy_steps": 1, "judge": {"parts": 2}},
            ["config.judge.parts=2", "config.sampling.off_policy_steps=1"],
        ),
        ({"judge": {"parts": 0}}, ["config.judge.parts is 0, expected 1 or more"]),
        ({"judge": {"part": 2}}, ["config.judge.part: unknown"]),
        (
            {"reward.shaping": {"style": 1.0}},
            ["config.reward.shaping.style", "evidence"],
        ),
        (
            {"ranking": {"by": "style", "weight": 0.3}},
            ["config.ranking.by is 'style'", "p_correct"],
        ),
        ({"ranking": {"weigth": 0.3}}, ["config.ranking.weigth: unknown"]),
        (
            {"reward.options": {"weight": 0.3}},
            ["config.reward.options.weight", "config.reward.name='grpo'"],
        ),
        (
            {"constraint": {"threshold": 0.9}},
            ["config.constraint.threshold=0.9", "config.reward.name='grpo'"],
        ),
        (
            {"reward.name": "lagrangian"},
            ["config.reward.name", "config.constraint.threshold"],
        ),
        ({"sampling.off_policy_steps": 2}, ["config.sampling.off_policy_steps is 2"]),
        (
            {"sampling.off_policy_steps": 1, "sampling.resampling_rounds": 2},
            [
                "config.sampling.off_policy_steps=1",
                "config.sampling.resampling_rounds=2",
            ],
        ),
        (
            {
                "sampling.resampling_rounds": 2,
                "sampling.group_size": 1,
                "advantage.name": "reinforce_pp",
            },
            ["config.sampling.resampling_rounds=2", "config.sampling.group_size is 1"],
        ),
        (
            {"noise": {"share": 0.1}, "sampling.group_size": 4},
            ["config.noise.share=0.1", "config.sampling.group_size=4"],
        ),
        (
            {
                "distillation": {"share": 0.5},
                "noise": {"share": 0.5},
                "sampling.group_size": 8,
            },
            ["config.distillation.share=0.5", "config.noise.share=0.5"],
        ),
        (
            {
                "distillation": {"share": 0.5},
                "loss": {"importance": {"level": "token"}},
            },
            ["config.distillation.share=0.5", "config.loss.importance"],
        ),
        ({"noise": {"distortion": "x"}}, ["config.noise.distortion is 'x'"]),
        ({"learner.ema": 1.0}, ["config.learner.ema is 1.0"]),
        ({"learner.token_budget": -1}, ["config.learner.token_budget is -1"]),
        (
            {"adaptive_kl.rule": "pid"},
            ["config.adaptive_kl.rule is 'pid'", "proportional"],
        ),
        ({"adaptive_entropy.target": -0.1}, ["config.adaptive_entropy.target is -0.1"]),
        (
            {"kl_penalty": {"weight": 0.1, "estimator": "k4"}},
            ["config.kl_penalty.estimator is 'k4'"],
        ),
        ({"replay": {"capacity": -1}}, ["config.replay.capacity is -1"]),
        (
            {"sampling.temperature": 0.0},
            ["config.sampling.temperature is 0.0", "config.sampling.group_size"],
        ),
        (
            {"loss": {"kl_estimator": "k1", "kl_weight": 0.1}},
            ["config.loss.kl_estimator='k1'", "config.loss.kl_weight=0.1"],
        ),
        (
            {"loss": {"aggregation": "constant"}},
            ["config.loss: aggregation='constant'", "length=None"],
        ),
        (
            {"loss": {"aggregation": "token", "length": 5}},
            ["config.loss: aggregation='token'", "length=5"],
        ),
        ({"loss": {"clip_low": 2.0}}, ["config.loss: clip_low: expected 0 to 1"]),
        (
            {"loss": {"clip_dual": 1.1}},
            ["config.loss: clip_dual: expected", "1 + clip_high", "got 1.1"],
        ),
        ({"loss": {"clip": 0.2}}, ["config.loss.clip", "surrogate='clipped'"]),
        (
            {"loss": {"surrogate": "gspo", "clip_dual": 3.0}},
            ["config.loss.clip_dual", "surrogate='gspo'"],
        ),
        ({"loss": {"surrogate": "ppo"}}, ["config.loss.surrogate is 'ppo'"]),
        (
            {"loss": {"importance": {"low": 2.0}}},
            ["config.loss: importance.low=2.0", "importance.high"],
        ),
        (
            {"adaptive_kl.target": 0.1},
            ["config.adaptive_kl.target=0.1", "config.loss.kl_weight"],
        ),
        (
            {"overlong": {"limit": 99, "buffer": 9}, "sampling.max_tokens": 72},
            ["config.overlong.limit=99", "config.sampling.max_tokens=72"],
        ),
        (
            {"overlong": {"limit": 64, "buffer": 65}},
            ["overlong.buffer=65", "overlong.limit=64"],
        ),
        ({"reward.name": "best"}, ["config.reward.name is 'best'", "gated"]),
        ({"advantage.name": "gae"}, ["config.advantage.name is 'gae'", "rloo"]),
        ({"mix": {"noisy": 2}}, ["config.mix"]),
    ],
)
def test_contradictions_name_their_fields(settings, fields):
    with pytest.raises(UserError) as error:
        check(settings)
    message = str(error.value)
    assert "\n" not in message
    for field in fields:
        assert field in message


def test_a_loss_of_ones_own_is_traced_as_it_is():
    def own(logprobs, old_logprobs, advantages, mask, *, tau, **how):
        raise UserError(f"tau: got {tau}")

    with pytest.raises(
        UserError, match=r"^loss: .*test_check.py:own: line .*tau: got 3$"
    ):
        check_loss({"surrogate": own, "tau": 3}, "loss")
