"""Configs that contradict themselves name both fields; those in use pass."""

import pytest

from configs.tiny import grpo
from vlmrl.rl import verify
from vlmrl.rl.check import check, check_loss
from vlmrl.types import UserError

URL = "http://127.0.0.1:8000/v1"


def test_the_recipes_in_use_pass():
    check(grpo.get_config().to_dict())
    check({})


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 1, "advantage": "reinforce_pp"},
        {"top_p": 1.0, "top_k": 0},
        {"reward": "gated", "judge": "blind"},
        {"reward": "grpo", "judge": None},
        {"advantage": "gdpo"},
        {"loss": {"surrogate": "gspo", "aggregation": "sequence", "kl_weight": 0.1}},
        {"loss": {"surrogate": "cispo", "importance": {"level": "sequence"}}},
        {"loss": {"surrogate": "clip_cov", "perception_weight": 0.01}},
        {"loss": {"aggregation": "constant", "length": 64}},
        {"loss": {"kl_estimator": "k1"}},  # no weight: not in the loss
        {"loss": {"kl_weight": 0.1}, "kl_target": 0.05},
        {"reward": "lagrangian", "constraint": {"threshold": 0.9}},
        {"advantage": "decoupled", "constraint": {"threshold": 0.9}},
        {"ranking": {"by": "p_correct", "weight": 0.4}, "judge": "shuffle"},
        {"reward": "additive", "reward_options": {"weight": 0.3}},
        {"rounds": 3, "replay_groups": {"capacity": 32}, "ema": 0.99},
        {"lag": 1, "loss": {"importance": {"level": "token"}}},
        {"noise": {"share": 0.5}, "group_size": 8},
        {"guide": {"share": 0.5}, "group_size": 8},
        {"mix": {"noisy": 0.2, "blank+wrong_think": 0.1}},
        {"overlong": {"limit": 64, "buffer": 16}, "max_tokens": 72},
        {"judge": "rule,http:m", "judging": {"url": URL, "seconds": 5.0, "parts": 2}},
        {"judge": "model:tiny"},
    ],
)
def test_what_fits_together_passes(settings):
    check(settings)


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"group_size": 1}, ["config.group_size is 1", "config.advantage='grpo'"]),
        (
            {"group_size": 1, "advantage": "gdpo"},
            ["config.group_size", "config.advantage='gdpo'"],
        ),
        ({"group_size": 0}, ["config.group_size is 0"]),
        (
            {"reward": "gated", "judge": None},
            ["config.reward='gated'", "config.judge is None"],
        ),
        (
            {"advantage": "decoupled", "judge": None},
            ["config.advantage='decoupled'", "config.judge is None"],
        ),
        ({"top_p": 0.9}, ["config.top_p=0.9", "config.loss"]),
        ({"top_k": 20}, ["config.top_k=20", "config.loss"]),
        ({"judge": "gpt"}, ["config.judge is 'gpt'", "rule"]),
        ({"judge": ""} | {"reward": "gated"}, ["config.reward='gated'", "judge is ''"]),
        ({"judge": "http:m"}, ["config.judge: an http judge needs a url"]),
        ({"judge": "rule,gpt:m"}, ["config.judge: 'gpt:m' is none of rule, model:DIR"]),
        ({"judge": "model:/nowhere"}, ["model '/nowhere': no such directory"]),
        (
            {"judge": "http:m", "judging": {"url": "http://example.com", "seconds": 1}},
            ["plain http to another machine"],
        ),
        (
            {"judge": "http:m", "judging": {"url": URL, "key_env": "NO_KEY"}},
            ["no environment variable NO_KEY"],
        ),
        ({"judging": {"url": URL}}, ["config.judging.url=", "config.judge='rule'"]),
        (
            {"judge": "http:m", "judging": {"url": URL, "seconds": 0}},
            ["config.judging.seconds is 0,", "config.judge='http:m'"],
        ),
        (
            {"lag": 1, "judging": {"parts": 2}},
            ["config.judging.parts=2", "config.lag=1"],
        ),
        ({"judging": {"parts": 0}}, ["config.judging.parts is 0, want 1 or more"]),
        ({"judging": {"part": 2}}, ["config.judging.part: unknown"]),
        ({"shaping": {"style": 1.0}}, ["config.shaping.style", "evidence"]),
        (
            {"ranking": {"by": "style", "weight": 0.3}},
            ["config.ranking.by is 'style'", "p_correct"],
        ),
        ({"ranking": {"weigth": 0.3}}, ["config.ranking.weigth: unknown"]),
        (
            {"reward_options": {"weight": 0.3}},
            ["config.reward_options.weight", "config.reward='grpo'"],
        ),
        (
            {"constraint": {"threshold": 0.9}},
            ["config.constraint.threshold=0.9", "config.reward='grpo'"],
        ),
        ({"reward": "lagrangian"}, ["config.reward", "config.constraint.threshold"]),
        ({"lag": 2}, ["config.lag is 2"]),
        ({"lag": 1, "rounds": 2}, ["config.lag=1", "config.rounds=2"]),
        (
            {"rounds": 2, "group_size": 1, "advantage": "reinforce_pp"},
            ["config.rounds=2", "config.group_size is 1"],
        ),
        (
            {"noise": {"share": 0.1}, "group_size": 4},
            ["config.noise.share=0.1", "config.group_size=4"],
        ),
        (
            {"guide": {"share": 0.5}, "noise": {"share": 0.5}, "group_size": 8},
            ["config.guide.share=0.5", "config.noise.share=0.5"],
        ),
        (
            {"guide": {"share": 0.5}, "loss": {"importance": {"level": "token"}}},
            ["config.guide.share=0.5", "config.loss.importance"],
        ),
        ({"noise": {"distortion": "x"}}, ["config.noise.distortion is 'x'"]),
        ({"ema": 1.0}, ["config.ema is 1.0"]),
        ({"token_budget": -1}, ["config.token_budget is -1"]),
        ({"kl_rule": "pid"}, ["config.kl_rule is 'pid'", "proportional"]),
        ({"entropy_target": -0.1}, ["config.entropy_target is -0.1"]),
        (
            {"kl_reward": {"weight": 0.1, "estimator": "k4"}},
            ["config.kl_reward.estimator is 'k4'"],
        ),
        ({"replay_groups": {"capacity": -1}}, ["config.replay_groups.capacity is -1"]),
        ({"temperature": 0.0}, ["config.temperature is 0.0", "config.group_size"]),
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
        ({"loss": {"clip_low": 2.0}}, ["config.loss: clip_low: got 2.0"]),
        (
            {"loss": {"clip_dual": 1.1}},
            ["config.loss: clip_dual: got 1.1", "1 + clip_high"],
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
        ({"kl_target": 0.1}, ["config.kl_target=0.1", "config.loss.kl_weight"]),
        (
            {"overlong": {"limit": 99, "buffer": 9}, "max_tokens": 72},
            ["config.overlong.limit=99", "config.max_tokens=72"],
        ),
        (
            {"overlong": {"limit": 64, "buffer": 65}},
            ["overlong.buffer=65", "overlong.limit=64"],
        ),
        ({"reward": "best"}, ["config.reward is 'best'", "gated"]),
        ({"advantage": "gae"}, ["config.advantage is 'gae'", "rloo"]),
        ({"verifier": "sympy"}, ["config.verifier is 'sympy'", "exact"]),
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


def test_math_needs_its_package(monkeypatch):
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="math-verify"):
        check({"verifier": "math"})


def test_a_loss_of_ones_own_is_traced_as_it_is():
    def own(logprobs, old_logprobs, advantages, mask, *, tau, **how):
        raise UserError(f"tau: got {tau}")

    with pytest.raises(UserError, match=r"^loss: tau: got 3$"):
        check_loss({"surrogate": own, "tau": 3}, "loss")
