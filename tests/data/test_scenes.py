import collections
import json
import re

import numpy as np
import pytest

from vlmrl.data import drawing, scenes, traces
from vlmrl.types import Example

NUMBER = {word: i for i, word in enumerate(scenes.NUMBERS, start=1)}
TASKS = ("count", "relation", "depth", "size", "identity", "multihop")


class Facts:
    """Reads sentences back and checks them against a scene graph. It shares no code
    with what writes them."""

    def __init__(self, example: Example):
        meta = json.loads(example.meta)["scene"]
        self.objects = meta["objects"]
        self.overlap = meta["overlap"]
        self.example = example
        self.listed = []  # cells given in a running count

    def one(self, words):
        """The object that 'red circle' names."""
        colour, shape = words.split()
        (actual,) = [
            o for o in self.objects if (o["colour"], o["shape"]) == (colour, shape)
        ]
        return actual

    def select(self, words):
        """The objects that 'red shapes', 'circle' or 'shapes' name."""
        words = words.split()
        noun = re.sub("(es|s)$", "", words[-1]) if words[-1] != "cross" else "cross"
        noun = {"circl": "circle", "squar": "square", "triangl": "triangle"}.get(
            noun, noun
        )
        noun = {"shap": "shape"}.get(noun, noun)
        tests = list(words[:-1]) + ([] if noun == "shape" else [noun])
        values = ("colour", "shape", "size")
        return [
            o for o in self.objects if all(t in [o[v] for v in values] for t in tests)
        ]

    def is_true(self, s):
        """Truth of one lower-case sentence; an AssertionError if it can't be read."""
        rules = [
            (r"(\w+) is in row (\w+) column (\w+)", self.listing),
            (r"the (\w+ \w+) is in row (\w+) column (\w+)", self.cell),
            (r"the (\w+) is in row (\w+) column (\w+)", self.cell),
            (r"the (\w+ \w+) is in (row|column) (\w+)", self.line),
            (r"(\w+) is (less|more) than (\w+)", self.compare),
            (r"there (?:is|are) (\w+) ([\w ]+)", self.number),
            (r"the (\w+ \w+) is (left|right|above|below)(?: of)? the (.+)", self.side),
            (r"they( do not)? overlap", self.overlapping),
            (r"the (\w+ \w+) is in front of the (\w+ \w+)", self.front),
            (r"neither the (\w+ \w+) nor the (\w+ \w+) is in front", self.neither),
            (r"the (\w+ \w+) is (large|small)", self.size),
            (r"the (\w+ \w+) is larger than the (\w+ \w+)", self.larger),
            (r"the (\w+ \w+) and the (\w+ \w+) are the same size", self.same),
            (r"the shape in row (\w+) column (\w+) is (.+)", self.at),
            (r"the other shape in the (row|column) of the (\w+ \w+) is (.+)", self.hop),
            (r"an? (\w+) (\w+) (\w+) is in row (\w+) column (\w+)", self.full),
            (r"the (\w+)(?: shape)? is ((?:a )?\w+)", self.kind),
        ]
        for pattern, check in rules:
            match = re.fullmatch(pattern, s)
            if match and not (check == self.listing and match[1] not in NUMBER):
                return bool(check(*match.groups()))
        raise AssertionError(f"can't read {s!r}")

    def listing(self, number, row, column):
        self.listed.append((NUMBER[row] - 1, NUMBER[column] - 1))
        asked = re.fullmatch(r"How many (.+) are there\?", self.example.question)[1]
        cells = {(o["row"], o["column"]) for o in self.select(asked)}
        fresh = len(set(self.listed)) == len(self.listed) == NUMBER[number]
        return fresh and self.listed[-1] in cells

    def cell(self, words, row, column):
        if words.split()[-1] in drawing.SHAPES and " " in words:
            o = self.one(words)
        else:
            (o,) = self.select(words)
        return (o["row"], o["column"]) == (NUMBER[row] - 1, NUMBER[column] - 1)

    def line(self, words, axis, number):
        return self.one(words)[axis] == NUMBER[number] - 1

    def compare(self, a, word, b):
        return NUMBER[a] < NUMBER[b] if word == "less" else NUMBER[a] > NUMBER[b]

    def number(self, number, words):
        return len(self.select(words)) == NUMBER[number]

    def side(self, a, word, b):
        a, b = self.one(a), self.one(b)
        return {
            "left": a["x"] < b["x"],
            "right": a["x"] > b["x"],
            "above": a["y"] < b["y"],
            "below": a["y"] > b["y"],
        }[word]

    def pair(self, a, b):
        return {self.objects.index(self.one(words)) for words in (a, b)}

    def asked_pair(self):
        return re.findall(r"the (\w+ \w+)", self.example.question)

    def overlapping(self, negated):
        apart = self.pair(*self.asked_pair()) != set(self.overlap)
        return apart if negated else not apart

    def front(self, a, b):
        return [self.objects.index(self.one(w)) for w in (b, a)] == self.overlap

    def neither(self, a, b):
        return self.pair(a, b) != set(self.overlap)

    def size(self, words, size):
        return self.one(words)["size"] == size

    def larger(self, a, b):
        return (self.one(a)["size"], self.one(b)["size"]) == ("large", "small")

    def same(self, a, b):
        return self.one(a)["size"] == self.one(b)["size"]

    def has(self, o, value):
        return value in (o["colour"], f"a {o['shape']}")

    def at(self, row, column, value):
        place = (NUMBER[row] - 1, NUMBER[column] - 1)
        (o,) = [o for o in self.objects if (o["row"], o["column"]) == place]
        return self.has(o, value)

    def hop(self, axis, words, value):
        a = self.one(words)
        (o,) = [o for o in self.objects if o is not a and o[axis] == a[axis]]
        return self.has(o, value)

    def full(self, size, colour, shape, row, column):
        o = self.one(f"{colour} {shape}")
        return o["size"] == size and self.cell(f"{colour} {shape}", row, column)

    def kind(self, word, value):
        (o,) = [o for o in self.objects if word in (o["colour"], o["shape"])]
        return self.has(o, value)


def sentences(text):
    assert text.endswith(".")
    return [s[0].lower() + s[1:] for s in text[:-1].split(". ")]


@pytest.fixture(scope="module")
def examples():
    """All six tasks over scenes of all splits."""
    return [
        example
        for split in drawing.SPLITS
        for i in range(150)
        for example in scenes.questions(
            drawing.make_scene(split, i), np.random.default_rng(i), 6
        )
    ]


def test_the_right_statement_is_true_and_the_others_are_false(examples):
    for e in examples:
        truths = [Facts(e).is_true(s) for s in e.statements]
        assert truths == [i == e.answer for i in range(len(e.options))], e


def test_every_sentence_of_a_trace_is_true(examples):
    for e in examples:
        *steps, end = sentences(e.trace)
        facts = Facts(e)
        assert len(steps) >= 2
        assert all(facts.is_true(s) for s in steps), e.trace
        assert steps[-1] == e.statements[e.answer]
        assert end in (
            f"so it is {e.options[e.answer]}",
            f"so it is {e.options[e.answer]}, answer {'ABCDE'[e.answer]}",
        )


def test_the_reader_of_facts_tells_lies():
    """The checker itself: a scene where every kind of sentence is false once."""
    built = (drawing.make_scene("test", i) for i in range(99))
    scene = next(s for s in built if s.overlap and len(s.objects) == 3)
    e = scenes.depth(scene, np.random.default_rng(0))
    far, near = (scene.objects[i] for i in scene.overlap)
    a, b = f"{near.colour} {near.shape}", f"{far.colour} {far.shape}"
    assert Facts(e).is_true(f"the {a} is in front of the {b}")
    assert not Facts(e).is_true(f"the {b} is in front of the {a}")
    assert not Facts(e).is_true(f"neither the {a} nor the {b} is in front")
    wrong = scenes.NUMBERS[(near.row + 1) % 4]
    assert not Facts(e).is_true(f"the {a} is in row {wrong}")
    assert not Facts(e).is_true("there are four shapes")
    assert not Facts(e).is_true("two is less than one")
    with pytest.raises(AssertionError, match="can't read"):
        Facts(e).is_true("the moon is made of cheese")


def test_thinks_state_their_option_and_conclude_it(examples):
    ways = collections.Counter()
    for e in examples:
        letters = {", answer " in think.rsplit(". ", 1)[1] for think in e.thinks}
        assert len(letters) == 1  # one way per example, whatever the option
        by_letter = letters.pop()
        ways[by_letter] += 1
        for i, think in enumerate(e.thinks):
            end = f", answer {'ABCDE'[i]}" if by_letter else ""
            output = [e.statements[i], f"so it is {e.options[i]}{end}"]
            assert sentences(think) == output
    share = ways[True] / len(examples)
    assert abs(share - 0.5) < 4 * 0.5 / len(examples) ** 0.5


def test_the_shape_of_an_example(examples):
    for e in examples:
        assert 2 <= len(e.options) <= 5 and len(set(e.options)) == len(e.options)
        assert 0 <= e.suggested < len(e.options) and e.suggested != e.answer
        assert len(e.statements) == len(e.thinks) == len(e.options)
        assert len(set(e.statements)) == len(e.options)
        assert e.id == f"{e.cluster}/{e.task}" and e.source == "scenes"
        assert len(e.images) == 1 and e.images[0].startswith(b"\x89PNG")
        assert len(" ".join([e.question, *e.options]).split()) <= 35
        assert len(e.trace.split()) <= 47
        assert (e.condition, e.caption, e.prefill) == ("base", "", "")
        assert (e.direct, e.abstain) == (False, -1)
        assert json.loads(e.meta)["template"].startswith(e.task + "/")


def test_the_vocabulary_is_small_and_has_no_digits(examples):
    words = set()
    for e in examples:
        text = " ".join([e.question, *e.options, *e.statements, *e.thinks, e.trace])
        assert not re.search(r"\d", text)
        words |= set(re.findall(r"[\w']+", text))
    assert len(words) <= 100


def test_answers_and_suggestions_are_uniform_over_the_slots():
    """Chi-square of both, per number of options, at p = 0.001."""
    limit = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}
    slots = collections.defaultdict(collections.Counter)
    for e in scenes.suite("train", 2400):
        c = len(e.options)
        slots["answer", c][e.answer] += 1
        slots["suggested", c][(e.suggested - e.answer) % c - 1] += 1
    for (what, c), counts in slots.items():
        kinds = c if what == "answer" else c - 1
        if kinds == 1:
            continue
        mean = sum(counts.values()) / kinds
        chi2 = sum((counts[k] - mean) ** 2 / mean for k in range(kinds))
        assert chi2 < limit[kinds - 1], (what, c, counts)


def test_no_two_option_question_leaks_by_its_wording():
    """The first and the second of a pair are right equally often."""
    first = collections.Counter()
    for e in scenes.suite("train", 2400):
        if e.task in ("depth", "size") and len(e.options) == 2:
            output = e.question.index(e.options[e.answer])
            first[e.task] += 1 if output < e.question.index(" or ") else -1
        elif e.task == "relation":
            first[e.options[e.answer]] += 1
    # 400 questions per task: 4 standard deviations are below 80
    assert abs(first["depth"]) < 60 and abs(first["size"]) < 60
    assert abs(first["left"] - first["right"]) < 60
    assert abs(first["above"] - first["below"]) < 60


def test_three_options_do_not_give_the_third_away():
    shares = collections.Counter()
    for e in scenes.suite("validation", 1200):
        if e.task in ("depth", "size") and len(e.options) == 3:
            shares[e.task, e.options[e.answer] in ("neither", "the same size")] += 1
    for task in ("depth", "size"):
        third = shares[task, True] / (shares[task, True] + shares[task, False])
        assert 0.2 < third < 0.5


def test_a_suite_takes_tasks_in_turn_and_one_question_per_scene():
    long, short = scenes.suite("test", 60), scenes.suite("test", 31)
    assert long[:31] == short
    assert [e.task for e in long] == list(TASKS) * 10
    assert len({e.cluster for e in long}) == 60
    assert len({e.id for e in long}) == 60


def test_questions_are_of_distinct_tasks_and_balanced():
    tasks = collections.Counter()
    for i in range(900):
        scene = drawing.make_scene("train", i)
        actual = scenes.questions(scene, np.random.default_rng(i), 2)
        assert len(actual) == len({e.task for e in actual}) == 2
        tasks.update(e.task for e in actual)
    assert set(tasks) == set(TASKS)
    assert max(tasks.values()) < 1.35 * min(tasks.values())


def test_questions_depend_on_their_generator_alone():
    scene = drawing.make_scene("train", 7)
    twice = [scenes.questions(scene, np.random.default_rng(3), 6) for _ in range(2)]
    assert twice[0] == twice[1]
    assert scenes.question("train", 7, "count") == scenes.question("train", 7, "count")


def test_counts_reach_one_to_five():
    counted = collections.Counter(
        e.options[e.answer] for e in scenes.suite("train", 1800) if e.task == "count"
    )
    assert set(counted) == {"one", "two", "three", "four", "five"}
    assert max(counted.values()) < 0.4 * sum(counted.values())


def test_descriptions_name_every_object_truly(examples):
    for e in examples[::5]:
        _, split, index = e.cluster.split("/")
        scene = drawing.make_scene(split, int(index))
        lines = sentences(traces.describe(scene))
        assert len(lines) == len(scene.objects) + (scene.overlap is not None)
        assert all(Facts(e).is_true(s) for s in lines)
