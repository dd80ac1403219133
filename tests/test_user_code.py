"""`path/to/file.py:name` where a config names one of ours: resolved, refused, run."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests import kit
from tests.rl.test_loop import policy
from vlmrl import perturb, user_code
from vlmrl.answers import reading, tools
from vlmrl.data import distort, loader
from vlmrl.judges import judge, named
from vlmrl.loops.evaluate import evaluate
from vlmrl.prompts import styles
from vlmrl.rl import advantages, augment, check, completion_terms, recipe, rollouts
from vlmrl.rl import rewards as rewards_
from vlmrl.rl.losses import policy_objective
from vlmrl.types import Completion, Parsed, UserError
from vlmrl.user_code import UserCodeError

CODE = (Path(__file__).parent / "own_functions.py").read_text()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Return a function name → 'mine/code.py:name', relative to the directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine" / "code.py"
    path.parent.mkdir()
    path.write_text(CODE)
    return lambda name: f"mine/code.py:{name}"


def completion(text="<think>a b</think><answer>A</answer>") -> Completion:
    item = kit.examples(1)[0]
    read = reading.read(text, item, "tiny")
    return Completion(item, "Q", text, read.parsed, read.correct)


# -- every kind


def test_a_reward_and_terms(own):
    chosen = check.check(
        {
            "reward.name": own("words"),
            "reward.options": {"weight": 2.0},
            "reward.shaping": {own("words"): 1.0, "length": 0.0},
            "ranking": {"by": own("words"), "weight": 0.5},
        }
    )
    terms = completion_terms.terms((own("words"),), completion(), chosen.reward)
    assert terms == {"words": pytest.approx(0.2)}
    terms["length"] = 0.0
    got = rollouts.compute_reward(chosen, completion(), terms)
    assert got.total == pytest.approx(2 * 2 + 0.2) and got.format == 1


def test_an_advantage_and_a_surrogate(own):
    rewards, mask = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3), bool)
    half = advantages.advantage_of(own("half"), "x")
    np.testing.assert_array_equal(half(rewards, mask), rewards / 2)
    with pytest.raises(UserCodeError, match="code.py:flat: 2 groups of 3: expected"):
        advantages.advantage_of(own("flat"), "x")(rewards, mask)
    check.check({"advantage.name": own("half")})
    loss = {"surrogate": own("plain"), "tau": 3.0}
    check.check({"loss": loss})
    x, extra = jnp.full((2, 3), -2.0), {"old_logprobs": jnp.zeros((2, 3))}
    got = policy_objective(x, x, mask, extra | {"advantages": jnp.ones(2)}, **loss)
    assert got[0].sum == 36 and got[0].count == 6


def test_a_condition(own):
    item = kit.examples(1)[0]
    shouted = perturb.apply(item, own("shout"))
    assert shouted.question == item.question.upper() and shouted.condition == "shout"
    abstain = perturb.apply(item, "abstain+" + own("shout"))
    assert abstain.condition == "abstain+shout" and abstain.abstain >= 0
    mix = {
        own("shout"): 0.5,
        f"noisy+{own('shout')}": 0.2,
        f"{own('invert')}+base": 0.1,
    }
    augment.check(mix)
    conditions = {augment.apply(item, name, 0).condition for name in mix}
    assert conditions == {"shout", "noisy+shout", "invert+base"}


def test_a_distortion(own):
    item = kit.examples(1)[0]
    twice = item
    for _ in range(2):
        twice = distort.distort(twice, own("invert"), 0)
    plain = distort.distort(item, "noisy", 0, sigma=0.0)
    assert twice.images == plain.images and twice.condition == "invert+invert+base"
    check.check({"noise": {"distortion": own("invert"), "share": 0.5}})


def test_a_style_and_its_parser(own):
    item = kit.examples(1)[0]
    assert styles.style(own("STYLE")).system == "Think."
    assert styles.build(item, own("STYLE")).style == own("STYLE")
    assert styles.style(own("style")) == styles.style(own("style"))
    reading.check(own("STYLE"))
    got = reading.read("</think>so?", item, own("STYLE"))
    assert got.parsed.option == len(item.options) - 1
    assert tools.parser_of(own("likeliest")).read("so?", ("x", "y")) == 1


def test_a_source(own, tmp_path):
    for n, count in ((3, 3), (0, 5)):
        examples = loader.examples_of(own("source"), "train", n, tmp_path / "data")
        assert [e.id for e in examples] == [f"train/{i}" for i in range(count)]
        assert [e.suggested for e in examples] == [1 - i % 2 for i in range(count)]
    assert loader.names_of(f"scenes, {own('source')}") == ["scenes", own("source")]


def test_a_judge(own):
    judges = named.named(own("judge"))
    items = [judge.JudgeItem("a", "?", ("x", "y"), "so x", k) for k in (0, 1, -1)]
    labels = [v.label for v in judge.ask(judges.judge, items)]
    assert labels == ["consistent", "inconsistent", "undecided"]
    check.check({"judge.name": own("judge"), "reward.name": "gated"})
    check.check({"judge.name": f"rule,{own('judge')}"})


@pytest.mark.slow
def test_an_evaluation_under_a_users_condition_and_style(own):
    toy, items = policy()._replace(style=own("style")), kit.examples(2)
    rows = evaluate(toy, items, ["base", own("shout")], max_tokens=2)
    assert [r.condition for r in rows] == ["base", "shout"] * 2
    for row, item in zip(rows[1::2], items, strict=True):
        assert item.question.upper() in row.prompt
    assert {r.code for r in rows} == {user_code.stamp([own("shout"), own("style")])}
    assert rows[0].code.count("mine/code.py:") == 2


# -- what is refused before a run


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"reward.name": "no.py:f"}, "config.reward.name: no.py: no such file in /"),
        ({"reward.name": "mine/code.py:wrods"}, "has no 'wrods'; did you mean words?"),
        ({"reward.name": "mine/code.py:zzz"}, "has no 'zzz'; it defines words, needy"),
        (
            {"reward.name": "mine/code.py:NUMBER"},
            "config.reward.name: expected a function, got int 5",
        ),
        (
            {"reward.name": "mine/code.py:old"},
            "mine/code.py:old: expected old(completion, **options), got (parsed",
        ),
        (
            {"reward.name": "mine/code.py:needy"},
            "config.reward.options: expected a value of weight",
        ),
        (
            {"reward.name": "mine/code.py:words", "reward.options": {"wieght": 1}},
            "config.reward.options.wieght: no option of",
        ),
        ({"reward.name": "grop"}, "or path/to/file.py:name; did you mean grpo?"),
        ({"reward.name": "mine/code.py"}, "is 'mine/code.py', expected one of grpo"),
        (
            {"reward.shaping": {"mine/code.py:half": 1.0}},
            "expected half(completion, **options), got (rewards, mask)",
        ),
        (
            {"ranking": {"by": "mine/code.py:half", "weight": 0.1}},
            "config.ranking.by: mine/code.py:half: expected",
        ),
        (
            {"advantage.name": "mine/code.py:words"},
            "expected words(rewards, mask, **options), got (completion",
        ),
        (
            {"noise": {"distortion": "mine/code.py:shout"}},
            "config.noise.distortion: mine/code.py:shout: expected shout(pixels, rng",
        ),
        (
            {"loss": {"surrogate": "mine/code.py:half"}},
            "config.loss.surrogate: mine/code.py:half: expected half(logprobs, old_log",
        ),
        (
            {"loss": {"surrogate": "mine/code.py:no_loss"}},
            "config.loss: mine/code.py:no_loss: expected a NamedTuple with a Mean",
        ),
        (
            {"mix": {"mine/code.py:invert": 0.1}},
            "config.mix: condition: mine/code.py:in",
        ),
        ({"mix": {"mine/code.py:base": 0.1}}, "mine/code.py:base and ours are both"),
        (
            {"judge.name": "mine/code.py:half"},
            "config.judge.name: mine/code.py:half: ex",
        ),
        ({"judge.name": "mine/code.py:zzz"}, "config.judge.name: mine/code.py has no"),
        ({"reward.name": "syntax.py:f"}, "syntax.py, line 2: "),
        ({"reward.name": "script.py:f"}, "script.py, line 2: SystemExit: 3"),
        (
            {"reward.name": "imports.py:f"},
            "imports.py, line 1: ModuleNotFoundError: No",
        ),
    ],
)
def test_what_is_wrong_with_a_name_is_said_in_one_line(own, settings, complaint):
    with open("syntax.py", "w") as file:
        file.write("x = 1\ndef f(:\n")
    with open("script.py", "w") as file:
        file.write("import sys\nsys.exit(3)\n")
    with open("imports.py", "w") as file:
        file.write("import nothing_of_this_name\n")
    with pytest.raises(UserError) as error:
        check.check(settings)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_two_functions_of_one_name_are_refused(own, tmp_path):
    (tmp_path / "b.py").write_text("def shout(example):\n    return example\n")
    with pytest.raises(UserError, match=r"b.py:shout and mine/code.py:shout are both"):
        perturb.check(own("shout"), "b.py:shout")
    perturb.check(own("shout"), "abstain+" + own("shout"), "base")


def test_styles_and_parsers_are_refused(own, tmp_path):
    (tmp_path / "s.py").write_text(
        "from vlmrl.prompts.styles import Style\n"
        "S = Style('', '', '', parser='s.py:gone')\ndef f():\n    return 3\n"
    )
    for name, complaint in (
        ("s.py:S", "answer parser: s.py has no 'gone'"),
        ("s.py:f", "s.py:f: expected a prompts.styles.Style, got int"),
        (own("NUMBER"), "prompt style: expected a function, got int"),
        ("s.py:T", "prompt style: s.py has no 'T'"),
    ):
        with pytest.raises(UserError, match=complaint):
            reading.check(name)


# -- what goes wrong in a run


def test_a_function_that_raises_is_named_with_its_item(own):
    item = completion().example
    line = 1 + CODE.splitlines().index("    return {}[completion.example.id]")
    for name, problem in (
        ("bad", f"line {line}: KeyError: {item.id!r}"),
        ("none", "expected a finite number, got NoneType None"),
        ("nan", "expected a finite number, got nan"),
    ):
        chosen = recipe.make(**{"reward.name": own(name)})
        message = f"mine/code.py:{name}: example {item.id!r}: {problem}"
        with pytest.raises(UserCodeError) as error:
            rollouts.compute_reward(chosen, completion(), {})
        assert str(error.value) == message
        with pytest.raises(UserCodeError) as error:
            completion_terms.terms((own(name),), completion(), chosen.reward)
        assert str(error.value) == message


def test_a_function_given_from_python_is_named_too():
    def reward(completion):
        raise ValueError("two\nlines")

    with pytest.raises(UserCodeError, match=r"test_user_code.py:reward: .* two lines$"):
        rollouts.compute_reward(
            recipe.make(**{"reward.name": reward}), completion(), {}
        )
    assert "test_user_code.py:reward=" in user_code.stamp({"reward": reward})
    assert user_code.stamp({"reward": rewards_.grpo_reward}) == ""


def test_conditions_distortions_parsers_sources_and_judges(own, tmp_path):
    item = kit.examples(1)[0]
    data = tmp_path / "data"
    items = [judge.JudgeItem(k, "?", ("x", "y"), "so x", 0) for k in "ab"]
    items[1] = items[1]._replace(predicted=1)
    for call, problem in (
        (lambda: perturb.apply(item, own("other")), "other: example .*, got x"),
        (lambda: distort.distort(item, own("floats"), 0), "floats: .* uint8"),
        (lambda: loader.prepare(own("short"), {"t": 4}, data), "has 2 examples, not 4"),
        (
            lambda: loader.prepare(own("broken"), {"t": 4}, data),
            "broken: split 't', example 0: line .*: OSError: the disk is gone",
        ),
        (
            lambda: judge.ask(named.named(own("one_verdict")).judge, items),
            "one_verdict: 2 items from 'a' on: expected a list of 2 verdicts, got 1",
        ),
    ):
        with pytest.raises(UserCodeError, match=problem):
            call()
    assert not list(data.rglob("*.array_record"))


# -- loading, and what a run keeps


def test_a_file_is_loaded_once_wherever_one_stands(own, tmp_path, monkeypatch):
    (tmp_path / "count.py").write_text(
        "loads = []\ndef f(completion):\n    loads.append(1)\n    return len(loads)\n"
    )
    first = rewards_.reward_of("count.py:f")
    monkeypatch.chdir(tmp_path / "mine")
    for name in ("../count.py:f", f"{tmp_path}/count.py:f"):
        assert rewards_.reward_of(name) is first
    (tmp_path / "count.py").write_text("def f(completion):\n    return 7\n")
    assert rewards_.reward_of("../count.py:f") is first
    user_code.refresh()
    assert rewards_.reward_of("../count.py:f")(None) == 7


def test_a_run_directory_keeps_the_source_and_its_hash(own, tmp_path):
    settings = {"reward": {"name": own("words")}, "mix": {"abstain+" + own("shout"): 1}}
    for name in ("words", "shout", "nan"):
        user_code.lookup(own(name), {}, "x")
    hashes = user_code.hashes(settings)
    assert list(hashes) == [own("shout"), own("words")]
    assert user_code.save(tmp_path / "run", settings) == []
    (copy,) = (tmp_path / "run/user_code").glob("*.py")
    assert copy.read_text() == (tmp_path / "mine/code.py").read_text()
    assert copy.name == f"code-{hashes[own('words')]}.py"
    assert user_code.stamp(settings) == "; ".join(
        f"{own(n)}={hashes[own(n)]}" for n in ("shout", "words")
    )
    with open("mine/code.py", "a") as file:
        file.write("# mended\n")
    user_code.refresh()
    user_code.lookup(own("words"), {}, "x")
    (line,) = user_code.save(tmp_path / "run", {"a": own("words")})
    assert line.startswith("mine/code.py:words has changed since this run began")
    assert len(list((tmp_path / "run/user_code").glob("*.py"))) == 2
    kept = json.loads((tmp_path / "run/user_code/hashes.json").read_text())
    assert kept[own("shout")] == hashes[own("shout")]
    assert kept[own("words")] != hashes[own("words")]


def test_number_takes_scalars_alone():
    for value in (1, True, 0.5, np.float32(2), jnp.float32(3), np.array(4)):
        assert math.isfinite(user_code.number(value, completion, ""))
    for value in (None, "1", 1j, [1.0], np.ones(1), float("inf"), Parsed):
        with pytest.raises(UserCodeError, match="expected a finite number"):
            user_code.number(value, completion, "")
