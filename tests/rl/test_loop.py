"""The loop as a whole, on a toy: grouped equals separate rows at every step, the same
run twice is the same, resuming is exact, and every switch does what it says."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import kit
from vlmrl import metrics, perturb, sharding
from vlmrl.answers import reading, strict
from vlmrl.client import http
from vlmrl.engine import memory
from vlmrl.engine.generate import Sampling, branch_keys, make_stops
from vlmrl.engine.score import completions, score
from vlmrl.judges import judge as judging
from vlmrl.policy import Policy, prefixes
from vlmrl.prompts import styles, tokens
from vlmrl.rl import (
    loop,
    losses,
    recipe,
    replay,
    rollouts,
    sampling,
    update,
    verdict_source,
)
from vlmrl.rl.batch_advantages import Advantages, Rewards
from vlmrl.run import checkpoint
from vlmrl.types import Rollout, UserError

PROMPTS, GROUP, LENGTH, RATE = 4, 4, 6, 1e-3
BUCKETS = tokens.Buckets(prefix=(160,), branch=(64,), windows=(4,))
# A random model never writes the format: what tells its completions apart is measured
# of a think that the prompt has begun.
PLAIN = {
    "sampling.group_size": GROUP,
    "sampling.max_tokens": LENGTH,
    "reward.name": "grpo",
    "advantage.name": "grpo",
    "mix": {"wrong_think": 1.0},
    "loss": {"entropy_weight": 0.01},
    "reward.shaping": {"repetition": 1.0, "copied": 1.0},
}


@functools.cache
def policy() -> Policy:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    places = sharding.param_shardings(mesh, kit.model().table)
    params = {
        n: jax.device_put(np.array(p), places[n]) for n, p in kit.params().items()
    }
    processor = kit.processor()
    stops = make_stops(processor)
    return Policy(
        kit.model(), params, processor, stops, "tiny", (BUCKETS,), mesh, "toy"
    )


def example(position: int):
    return kit.examples(12, "train")[position % 12]


def sampled(made: recipe.Recipe, steps: int) -> list[rollouts.RolloutBatch]:
    """The rollout batches of the first steps, all with the policy's own parameters."""
    context = rollouts.make_context(policy(), made, batches(0), seed=3)
    params = policy().params
    return [rollouts.rollout_batch(context, params, i + 1)[0] for i in range(steps)]


def batches(start: int, prompts: int = PROMPTS):
    while True:
        yield (
            start + prompts,
            [example(p) for p in range(start, start + prompts)],
        )
        start += prompts


def begun(settings, prompts=PROMPTS):
    tx = optax.sgd(RATE)
    params = jax.tree.map(lambda x: x.copy(), policy().params)
    made = recipe.make(**settings)
    how = {"freeze": made.optimizer.freeze, "ema": bool(made.learner.ema)}
    state = update.init_state(params, tx, **how)
    return tx, loop.begin(state, made, prompts=prompts)


def run(settings, steps, carry=None, prompts=PROMPTS, actor=None):
    """Every Step, with its metrics as floats and its carry on the host (the next update
    takes the arrays)."""
    tx, fresh = begun(settings, prompts)
    carry = carry or fresh
    made = loop.train(
        rollouts.make_context(
            actor or policy(),
            recipe.make(**settings),
            batches(carry.position, prompts),
            seed=3,
        ),
        tx,
        carry,
        last=steps,
        example_at=example,
    )
    return [
        s._replace(metrics=metrics.values(s.metrics), carry=jax.device_get(s.carry))
        for s in made
    ]


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def plain():
    """(steps of a plain run, [(parameters before, batch)] of its updates)."""
    seen, real = [], update.jit_update

    def watched(step, state):
        compiled = real(step, state)

        def call(state, batch):
            seen.append(jax.device_get((state.params, batch)))
            return compiled(state, batch)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "jit_update", watched)
        steps = run(PLAIN, 3)
    return steps, seen


@pytest.mark.slow
def test_float32_is_trained_and_bfloat16_computed(plain):
    """Layers rematerialised. What is sampled from is what the update and the KL term
    read, so the first ratio is one and the first KL nothing, to rounding; gradients are
    those of float32 to a few of bfloat16's steps."""
    half = policy()._replace(compute=jnp.dtype("bfloat16"))
    settings = PLAIN | {"learner.remat": "nothing_saveable"}
    settings["loss"] = PLAIN["loss"] | {"kl_weight": 0.1}
    steps = run(settings, 2, actor=half)
    for step in steps:
        state = step.carry.state
        assert {p.dtype.name for p in state.params.values()} == {"float32"}
        assert step.metrics["ratio_max"] == pytest.approx(1, abs=1e-3)
        assert 0 <= step.metrics["kl_old"] < 1e-6
    assert abs(steps[0].metrics["kl_ref"]) < 1e-6
    before, after = policy().params, steps[0].carry.state.params
    wide = plain[0][0].metrics["grad_norm"]
    assert any((np.asarray(before[n]) != after[n]).any() for n in before)
    assert steps[0].metrics["grad_norm"] == pytest.approx(wide, rel=0.5)


@pytest.mark.slow
def test_in_slots_the_same_completions_are_drawn(plain, monkeypatch):
    """5 slots for 16 branches, lengths unlike, prompts read when their turn comes: each
    branch has the tokens it has without slots, in the loop as well."""
    made, _ = plain
    common = np.isin(np.arange(len(policy().stops.end)), np.arange(40, 100))
    ending = policy()._replace(
        stops=policy().stops._replace(end=policy().stops.end | common)
    )
    written = ending.write([example(i) for i in range(PROMPTS)])
    group = ending.put(prefixes(ending, written))
    keys = ending.put(branch_keys(0, "rollout", 1, list("abcd"), GROUP))
    how = dict(max_tokens=LENGTH, sampling=Sampling(1.0))
    whole, some = (
        jax.device_get(sampling.make_sampler(ending, slots=n, **how)(
            ending.params, group, keys
        ))
        for n in (0, 5)
    )  # fmt: skip
    assert len(set(whole.mask.sum(-1).tolist())) > 2
    for name in ("tokens", "mask", "stopped"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name))
    np.testing.assert_allclose(some.logprobs, whole.logprobs, atol=1e-5)

    def drawn():
        chosen = recipe.make(**PLAIN, slots=5)
        return sampled(chosen, 1)[0]

    assert [s.text for s in drawn().samples] == [s.text for s in made[0].samples]
    monkeypatch.setattr(memory, "available", lambda device: 10**6)
    with pytest.raises(UserError, match=r"config\.slots: .* need .* slots fit"):
        drawn()
    eight = policy()._replace(mesh=sharding.make_mesh())
    with pytest.raises(UserError, match="config.slots is 5: expected one data shard"):
        sampling.make_sampler(eight, slots=5, **how)


@pytest.mark.slow
def test_grouped_equals_separate_rows_at_every_step(plain):
    steps, seen = plain

    banned = policy().stops.banned

    def objective(logp, ent, batch):
        mask = batch.group.branches.mask
        total, _ = losses.policy_objective(
            logp, ent, mask, batch.extra, **PLAIN["loss"]
        )
        return total.value, logp

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def separate(params, rows, batch):
        raw = kit.row_logits(kit.model(), params, rows)
        logp = kit.branch_logprobs(raw, batch.group, banned=banned)
        return objective(logp, branch_entropy(raw, batch.group), batch)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def grouped(params, batch):
        how = {"temperature": 1.0, "banned": banned}
        logp, ent = score(kit.model(), params, batch.group, **how)
        return objective(logp, ent, batch)

    assert len(seen) == 3
    for step, (params, batch) in zip(steps, seen, strict=True):
        assert np.abs(batch.extra["advantages"]).max() > 0.1
        rows = kit.ordinary(batch.group)
        (_, logp), grads = jax.device_get(separate(params, rows, batch))
        (_, own), found = jax.device_get(grouped(params, batch))
        mask = batch.group.branches.mask
        np.testing.assert_allclose(own[mask], logp[mask], atol=1e-5)
        np.testing.assert_allclose(
            batch.extra["old_logprobs"][mask], logp[mask], atol=1e-5
        )
        for name, grad in grads.items():
            assert kit.normwise(found[name], grad) < 1e-5, name
            after = step.carry.state.params[name]
            np.testing.assert_allclose(
                after, params[name] - RATE * grad, atol=1e-5, rtol=1e-6, err_msg=name
            )


def branch_entropy(raw, group):
    """float[B, T]: entropy of the distribution each branch token was drawn from."""
    logp = jax.nn.log_softmax(raw, -1)
    whole = -(jnp.exp(logp) * logp).sum(-1)
    fold = len(group.branches.ids) // len(group.prefix.ids)
    start = jnp.repeat(group.prefix.mask.sum(-1), fold)
    at = start[:, None] - 1 + jnp.arange(group.branches.ids.shape[1])
    return jnp.take_along_axis(whole, at, axis=1)


@pytest.mark.slow
def test_the_same_run_twice_is_the_same(plain):
    steps, _ = plain
    again = run(PLAIN, 3)
    for one, two in zip(steps, again, strict=True):
        assert one.metrics == two.metrics and one.samples == two.samples
        equal(one.carry, two.carry)


@pytest.mark.slow
def test_what_is_measured(plain):
    steps, _ = plain
    for step in steps:
        m = step.metrics
        assert m["lag"] == 0 and abs(m["ratio"] - 1) < 1e-4
        assert m["reward/total"] <= 0 and 0 <= m["think/template"] <= 1
        assert 0 < m["think/tokens"] <= LENGTH and m["grad_norm"] > 0
        assert m["think/entropy"] > 0 and 0 <= m["degenerate"] <= 1
        assert not any(name.startswith(("control/", "kl_ref")) for name in m)
        assert np.isfinite(list(m.values())).all()
        assert {"repetition", "copied"} == set(step.samples[0].terms)


def test_images_are_held_once_per_example_not_once_per_rollout():
    written = [styles.build(example(i), "tiny") for i in range(PROMPTS)]
    group = prefixes(policy(), written)
    drawn = replay.zeros((PROMPTS * GROUP,), LENGTH)
    whole = completions(group, drawn)
    assert len(whole.branches.ids) == PROMPTS * GROUP
    assert (np.asarray(whole.branches.image) == -1).all()
    assert len(whole.vision.patches) == PROMPTS == len(whole.prefix.ids)
    assert whole.vision is group.vision
    sizes = sorted(x.nbytes for x in jax.tree.leaves((whole, drawn)))
    assert sizes[-1] == whole.vision.patches.nbytes > 10 * sizes[-2]  # no copy of it


AHEAD = PLAIN | {
    "sampling.off_policy_steps": 1,
    "noise": {"share": 0.5, "sigma": 0.3, "anneal": 4},
    "loss": {"kl_weight": 0.1, "importance": {"level": "token"}, "entropy_weight": 0.1},
    "adaptive_kl.target": 1e-4,
    "adaptive_entropy.target": 50.0,
    "learner.ema": 0.5,
    "optimizer.freeze": ("vision.",),
    "overlong": {"limit": 6, "buffer": 4, "weight": 0.1},
}
JUDGED = PLAIN | {
    "sampling.resampling_rounds": 2,
    "replay": {"capacity": 6},
    "reward.name": "agreement",
    "advantage.name": "decoupled",
    "constraint": {"threshold": 0.9, "rate": 0.5},
    "judge.name": "shuffle",
    "ranking": {"by": "p_correct", "weight": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [AHEAD, JUDGED], ids=["ahead", "judged"])
def test_resuming_is_exact(settings, tmp_path):
    straight = run(settings, 3)
    begun_ = run(settings, 1)
    equal(begun_[0].carry, straight[0].carry)
    checkpoint.save(tmp_path, 1, begun_[0].carry)()
    _, like = begun(settings)
    carry, _ = checkpoint.restore(tmp_path, 1, like)
    rest = run(settings, 3, carry)
    assert [s.step for s in rest] == [2, 3]
    for one, two in zip(straight[1:], rest, strict=True):
        assert one.metrics == two.metrics and one.samples == two.samples
        equal(one.carry, two.carry)
    check = _ahead if settings is AHEAD else _judged
    check(straight)


def _ahead(steps):
    assert [s.metrics["lag"] for s in steps] == [0, 1, 1]
    start, carry = policy().params, steps[-1].carry
    for name, was in start.items():
        same = np.array_equal(carry.state.params[name], was)
        assert same == name.startswith("vision."), name
    assert not any(n.startswith("vision.") for n in carry.state.ema)
    last, before = steps[-1].carry.state, steps[-2].carry.state
    for name, value in last.ema.items():
        want = 0.5 * before.ema[name] + 0.5 * last.params[name]
        np.testing.assert_allclose(value, want, rtol=1e-6)
    # Rollouts of the noisy image and of older parameters: the raw ratio is logged.
    assert all(s.metrics["mismatch"] > 0 for s in steps)
    assert all(abs(s.metrics["ratio"] - 1) < 1e-4 for s in steps)
    assert all(s.metrics["kl_ref"] >= 0 for s in steps)
    kl = [s.carry.coefficients["kl_weight"] for s in steps]
    moves = np.array(kl) / np.array([0.1, *kl[:-1]])
    assert np.isclose(moves[:, None], [0.5, 1.0, 2.0]).any(-1).all()
    assert np.isclose(kl[0], 0.05)  # at the start there is no divergence
    bonus = [s.carry.coefficients["entropy_weight"] for s in steps]
    np.testing.assert_allclose(bonus, [0.105, 0.11, 0.115], atol=1e-6)


def _judged(steps):
    for step in steps:
        assert {s.verdict for s in step.samples} <= {
            "consistent",
            "inconsistent",
            "undecided",
        }
        assert all(0 <= s.terms["p_correct"] <= 1 for s in step.samples)
    # A random model answers nothing: all undecided, no group is mixed, the price rises.
    price = [s.carry.coefficients["multiplier"] for s in steps]
    np.testing.assert_allclose(price, [0.45, 0.9, 1.35], atol=1e-6)
    assert [s.carry.position for s in steps] == [8, 16, 24]  # two draws per step
    assert all(s.metrics["kept"] == 0 for s in steps)


def test_guided_completions_go_on_from_what_misleads():
    """Without their opening tag, after a space; numbers stay with their tokens."""
    processor = policy().processor
    encode = functools.partial(processor.tokenizer.encode, add_special_tokens=False)
    texts = ["<think>So it is red, answer A.</think>", "So", "<think>So it is red"]
    ids = [np.array(encode(t), np.int32) for t in texts]
    length = len(ids[0])
    mask = np.arange(length) < np.array([len(x) for x in ids])[:, None]
    rows = np.zeros(mask.shape, np.int32)
    rows[mask] = np.concatenate(ids)
    marks = np.where(mask, np.arange(1, length + 1, dtype=np.float32), 0)
    drawn = Rollout(rows, -marks, marks, mask, np.ones(3, bool))
    misled = perturb.apply(example(0), "wrong_think")
    assert perturb.unmisled(misled)._replace(condition="base") == perturb.apply(
        example(0), "base"
    )
    onto = [
        styles.build(e, "tiny")
        for e in (misled, misled, perturb.apply(example(0), "wrong_caption"))
    ]
    others = [styles.build(perturb.unmisled(p.example), "tiny") for p in onto]
    found = sampling.grafted(processor, drawn, onto, others)
    shown = [
        tokens.decode(processor, r[m])
        for r, m in zip(found.tokens, found.mask, strict=True)
    ]
    assert shown == [" So it is red, answer A.</think>", *texts[1:]]
    size = found.mask[0].sum()
    # The opening tag's tokens are gone; the last ones keep their numbers.
    np.testing.assert_array_equal(
        found.entropy[0, 2:size], marks[0, length - size + 2 :]
    )
    np.testing.assert_array_equal(found.logprobs, -found.entropy)
    assert found.stopped.all() and not found.tokens[0, size:].any()
    opened = [p._replace(turn="<think>\n") for p in others]  # by the chat template
    found = sampling.grafted(processor, drawn, onto, opened)
    assert tokens.decode(processor, found.tokens[1][found.mask[1]]) == " So"


@pytest.mark.slow
def test_one_completion_per_prompt_perception_and_a_token_budget():
    settings = PLAIN | {
        "sampling.group_size": 1,
        "advantage.name": "reinforce_pp",
        "kl_penalty": {"weight": 0.1, "to_go": True},
        "loss": {"perception_weight": 0.02, "surrogate": "clip_cov"},
        "learner.token_budget": 2 * (160 + LENGTH),
    }
    (step,) = run(settings, 1)
    assert step.advantages.shape == (PROMPTS, 1)
    assert abs(float(np.sum(step.advantages))) < 1e-4
    assert step.metrics["perception"] > 0  # a masked image says something else
    assert step.metrics["grad_norm"] > 0


@pytest.mark.slow
def test_idle_groups_give_way_to_those_of_the_buffer():
    """What stands in is scored behind its own prompt, with its own advantages."""
    made = recipe.make(**PLAIN, replay={"capacity": 4, "power": 0.0})
    context = rollouts.make_context(policy(), made, batches(0), seed=3)
    first, second = sampled(made, 2)
    rollout = jax.device_get(first.rollout)
    buffer = replay.empty(4, GROUP, LENGTH)
    held = np.array([[0] * 4, [1, -1, 1, -1], [0] * 4, [0] * 4], np.float32)
    buffer = replay.add(buffer, first.positions, rollout, held)
    assert buffer.positions.tolist() == [1, -1, -1, -1]
    new = np.array([[1, -1, 0, 0], [0] * 4, [2, -2, 0, 0], [1, 0, -1, 0]], np.float32)
    training = rollouts.TrainingBatch(second, Advantages(new, new != 0, {}))
    used, after = replay.replace_idle(context, training, buffer, example, step=2)
    np.testing.assert_array_equal(used.advantages.values[1], held[1])
    np.testing.assert_array_equal(used.advantages.values[[0, 2, 3]], new[[0, 2, 3]])
    assert used.advantages.loss_mask[1].all()
    assert used.advantages.metrics["replayed"].value == 0.25
    assert [p.example.id for p in used.batch.prompts] == [
        example(p).id for p in (4, 1, 6, 7)
    ]
    ids = np.asarray(used.batch.group.prefix.ids)
    np.testing.assert_array_equal(ids[1], first.group.prefix.ids[1])
    np.testing.assert_array_equal(ids[2], second.group.prefix.ids[2])
    equal(jax.device_get(used.batch.rollout), used.batch.host)
    tokens_ = np.asarray(used.batch.rollout.tokens).reshape(PROMPTS, GROUP, LENGTH)
    own = np.asarray(second.rollout.tokens).reshape(tokens_.shape)
    np.testing.assert_array_equal(tokens_[1], rollout.tokens[4:8])
    np.testing.assert_array_equal(tokens_[[0, 2, 3]], own[[0, 2, 3]])
    assert after.positions.tolist() == [1, 4, 6, 7]  # the idle group is not kept


def test_draws_are_refilled_with_mixed_groups():
    """Groups all right or all wrong give way, in order, while there are mixed ones."""
    marks = np.array([[1, 1], [1, 0], [0, 0]], np.float32)

    def drawn(correct, first):
        samples = [f"{first + i}/{k}" for i in range(3) for k in range(2)]
        written = [styles.build(example(first + i), "tiny") for i in range(3)]
        rows = np.repeat(np.arange(first, first + 3), 2)
        rollout = jax.tree.map(
            lambda x: x + rows.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype),
            replay.zeros((6,), LENGTH),
        )
        rewards = Rewards(correct, correct, correct, correct > 0, None)
        positions = list(range(first, first + 3))
        group = prefixes(policy(), written)
        return rollouts.RolloutBatch(
            first + 3, positions, 0, written, group, rollout, rollout, samples, rewards
        )

    old, new = drawn(marks, 0), drawn(1 - marks, 3)
    got = rollouts.resample(policy(), old, new)
    assert got.positions == [4, 1, 2] and got.position == 6
    assert got.samples == ["4/0", "4/1", "1/0", "1/1", "2/0", "2/1"]
    assert np.asarray(got.rollout.tokens)[:, 0].tolist() == [4, 4, 1, 1, 2, 2]
    np.testing.assert_array_equal(got.rewards.correct, [[0, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(got.group.prefix.ids[0], new.group.prefix.ids[1])
    same = rollouts.resample(policy(), got, drawn(np.ones((3, 2), np.float32), 6))
    assert same.positions == got.positions and same.position == 9


def judged(judge, **options) -> recipe.Recipe:
    return recipe.make(**PLAIN, judge={"name": judge, **options})


def test_a_judge_of_ones_own_gives_the_verdicts():
    """It is asked once per kind of completion, and never of what the prompt settles."""
    asked = []

    def judge(items):
        asked.extend(items)
        return [judging.Verdict("consistent", 0, 1.0, "", "own") for _ in items]

    own = judging.Judge("own", judge, {})
    made = judged(own, seconds=0.0)
    source = verdict_source.make_source(policy(), made, seed=0)

    def said(source):
        source.submit(written[:1], parsed[:1])
        source.submit(written[1:], parsed[1:])
        return source.collect(None)

    texts = ["<think>So A.</think><answer>A</answer>", "<think>x</think>"]
    written = [styles.build(example(0), "tiny")] * 2
    parsed = [strict.parse(t, example(0).options) for t in texts]
    assert said(source) == (["consistent", "undecided"], {})
    assert [i.think for i in asked] == ["So A."]
    again = judged(own, seconds=5.0)
    found, metrics = said(verdict_source.make_source(policy(), again, seed=0))
    assert found == ["consistent", "undecided"] and len(asked) == 2
    assert metrics["judge"]["late"] == (0.0, 2) and metrics["judge"]["waited"].sum < 5
    nobody = verdict_source.make_source(policy(), judged(None), seed=0)
    assert said(nobody) == ([None, None], {})


def test_a_step_waits_for_a_judge_no_longer_than_it_may():
    """Verdicts of the part that was judged count; the rest is undecided, counted."""
    gate = threading.Event()

    def judge(items):
        if "slow" in items[0].think:
            gate.wait(30)
        return [judging.Verdict("consistent", 0, 1.0, "", "own") for _ in items]

    made = judged(judging.Judge("own", judge, {}), seconds=0.3)
    source = verdict_source.make_source(policy(), made, seed=0)
    written = [styles.build(example(0), "tiny")] * 2
    for word in ("slow", "quick"):
        text = f"<think>{word}: so A.</think><answer>A</answer>"
        source.submit(written, [strict.parse(text, example(0).options)] * 2)
    try:
        found, metrics = source.collect(None)
    finally:
        gate.set()
    assert found == ["undecided"] * 2 + ["consistent"] * 2
    assert metrics["judge"]["late"] == (2.0, 4)
    assert 0.3 <= metrics["judge"]["waited"].sum < 10


@pytest.mark.parametrize("reason", ["budget", "key"])
def test_what_no_completion_could_survive_ends_the_run(reason):
    def judge(items):
        if reason == "key":
            raise UserError("https://x: refuses the key in $KEY (status 401)")
        return [judging.undecided(http.SPENT, "j") for _ in items]

    made = judged(judging.Judge("j", judge, {}), seconds=5.0)
    source = verdict_source.make_source(policy(), made, seed=0)
    parsed = strict.parse("<think>So A.</think><answer>A</answer>", ("a", "b"))
    source.submit([styles.build(example(0), "tiny")], [parsed])
    with pytest.raises(UserError, match=r"budget is spent|refuses the key"):
        source.collect(None)


@pytest.mark.slow
def test_parts_are_judged_while_the_next_are_sampled(monkeypatch):
    """The draw is that of one part, and the judge has the first part's completions
    before the second part's are there."""
    seen, asked, begun = [], [], threading.Semaphore(0)

    def judge(items):
        seen.append("judge")
        asked.extend(i.id for i in items)
        begun.release()
        return [judging.Verdict("consistent", 0, 1.0, "", "own") for _ in items]

    def read_all(texts, examples, style):  # a random model writes no think of its own
        turns = [f"<think>{text}</think><answer>A</answer>" for text in texts]
        parsed = [strict.parse(turn, ("a", "b")) for turn in turns]
        return [reading.Reading(p, False, -1, False) for p in parsed]

    monkeypatch.setattr(rollouts.reading, "read_all", read_all)
    real = rollouts.sharding.fetch

    def fetch(tree):
        assert not seen or begun.acquire(timeout=30)
        seen.append("fetch")
        return real(tree)

    drawn = {}
    for parts in (1, 2):
        made = judged(judging.Judge("own", judge, {}), seconds=10.0, parts=parts)
        with monkeypatch.context() as patch:
            patch.setattr(rollouts.sharding, "fetch", fetch)
            seen.clear()
            asked.clear()
            while begun.acquire(blocking=False):
                pass
            (drawn[parts],) = sampled(made, 1)
    assert seen == ["fetch", "judge", "fetch", "judge"]
    assert len(set(asked)) == len(asked) <= PROMPTS * GROUP
    a, b = (sharding.fetch(drawn[k].rollout) for k in (1, 2))
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    one, two = ([s.verdict for s in drawn[k].samples] for k in (1, 2))
    assert one == two and "consistent" in two
    assert drawn[2].judge_metrics["judge"]["late"] == (0.0, PROMPTS * GROUP)
