"""`scenes`: a procedural visual-reasoning benchmark over the pictures of `drawing`.

Six tasks ask about a scene after the skills of the paper's benchmarks: `count`,
`relation`, `depth`, `size`, `identity` and `multihop`. Each is a function (scene, rng)
→ Example or None where the scene does not allow the question. Everything in an Example,
the right and the wrong sentences and the reference chain of thought (CoT), comes from
the scene graph; the slot of the answer is uniform over the options. A CoT ends with the
statement of an option and a conclusion, by the option's text, in half of the examples
with its letter.

The vocabulary is some 80 lower-case words, numbers written out.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from vlmrl.data.drawing import COLOURS, SHAPES, Object, Scene, make_scene, png
from vlmrl.types import Example

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MAX_COUNT = 5  # largest count asked for, so that every trace stays within 47 words

# -- words -----------------------------------------------------------------------------


def name(o: Object) -> str:
    return f"the {o.colour} {o.shape}"


def row(o: Object) -> str:
    return f"row {NUMBERS[o.row]}"


def column(o: Object) -> str:
    return f"column {NUMBERS[o.column]}"


def sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def conclusion(example_options: Sequence[str], index: int, by_letter: bool) -> str:
    """Return the sentence that ends a CoT: by the option's text alone or with its
    letter."""
    letter = f", answer {chr(ord('A') + index)}" if by_letter else ""
    return f"So it is {example_options[index]}{letter}."


def graph(scene: Scene) -> dict:
    """Return the scene as JSON-able data; rows, columns and objects count from 0."""
    return {
        "objects": [o._asdict() for o in scene.objects],
        "overlap": scene.overlap and list(scene.overlap),
    }


def picture(scene: Scene, template: str, question: str) -> Example:
    """Return an Example of a scene before it has options; `template` is 'task/form'."""
    task, cluster = template.split("/")[0], f"scenes/{scene.split}/{scene.index}"
    return Example(
        id=f"{cluster}/{task}",
        images=(png(scene),),
        question=question,
        options=(),
        answer=-1,
        suggested=-1,
        source="scenes",
        task=task,
        cluster=cluster,
        meta=json.dumps({"scene": graph(scene), "template": template}),
    )


def _example(
    scene: Scene,
    rng: np.random.Generator,
    *,
    template: str,  # 'task/form'
    question: str,
    right: str,
    wrong: Sequence[str],
    state: Callable[[str], str],  # option → sentence asserting it, lower-case
    steps: Sequence[str],  # what leads to the right statement, lower-case sentences
) -> Example:
    options = [wrong[i] for i in rng.permutation(len(wrong))]
    answer = int(rng.integers(len(wrong) + 1))
    options.insert(answer, right)
    suggested = (answer + 1 + int(rng.integers(len(wrong)))) % len(options)
    by_letter = bool(rng.integers(2))
    ends = [conclusion(options, i, by_letter) for i in range(len(options))]
    statements = tuple(state(option) for option in options)
    return picture(scene, template, question)._replace(
        options=tuple(options),
        answer=answer,
        suggested=suggested,
        statements=statements,
        thinks=tuple(
            f"{sentence(s)} {end}" for s, end in zip(statements, ends, strict=True)
        ),
        trace=" ".join([*map(sentence, [*steps, statements[answer]]), ends[answer]]),
    )


def _pick(items: Sequence, rng: np.random.Generator):
    return items[int(rng.integers(len(items)))]


def _others(items: Sequence[str], right: str, number: int, rng) -> list[str]:
    """Draw `number` of the items other than `right`."""
    rest = [item for item in items if item != right]
    return [rest[i] for i in rng.permutation(len(rest))[:number]]


def _pairs(objects: Sequence[Object], rng) -> list[tuple[Object, Object]]:
    """Return all ordered pairs, in random order."""
    pairs = [(a, b) for a in objects for b in objects if a is not b]
    return [pairs[i] for i in rng.permutation(len(pairs))]


# -- tasks -----------------------------------------------------------------------------


def count(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Ask how many objects there are of a colour, a shape, a size, or in all: one to
    five."""
    kinds = {"": scene.objects}
    for o in scene.objects:
        for word in (o.colour, o.shape, o.size):
            kinds[word] = tuple(p for p in scene.objects if word in p[:3])
    numbers = sorted({len(v) for v in kinds.values() if len(v) <= _MAX_COUNT})
    number = _pick(numbers, rng)
    word = _pick([k for k, v in kinds.items() if len(v) == number], rng)
    if word in SHAPES:
        one, many = word, "crosses" if word == "cross" else word + "s"
    else:
        one, many = f"{word} shape".strip(), f"{word} shapes".strip()
    width = int(rng.integers(3, 6))  # consecutive numbers, the answer anywhere in them
    low = int(rng.integers(max(1, number - width + 1), number + 1))
    same = sorted(kinds[word], key=lambda o: (o.row, o.column))
    return _example(
        scene,
        rng,
        template=f"count/{'shape' if word in SHAPES else 'kind' if word else 'all'}",
        question=f"How many {many} are there?",
        right=NUMBERS[number - 1],
        wrong=[NUMBERS[k - 1] for k in range(low, low + width) if k != number],
        state=lambda option: (
            f"there is one {one}" if option == "one" else f"there are {option} {many}"
        ),
        steps=[f"{NUMBERS[i]} is in {row(o)} {column(o)}" for i, o in enumerate(same)],
    )


def relation(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Ask left or right, or above or below, of two objects that differ on that axis."""
    axis = _pick(("column", "row"), rng)
    for a, b in _pairs(scene.objects, rng):
        i, j = getattr(a, axis), getattr(b, axis)
        if i != j:
            break
    else:
        return None
    words = ("left", "right") if axis == "column" else ("above", "below")
    asked = f"{words[0]} or {words[1]}" + (" of" if axis == "column" else "")
    of = " of" if axis == "column" else ""
    return _example(
        scene,
        rng,
        template=f"relation/{axis}",
        question=f"Is {name(a)} {asked} {name(b)}?",
        right=words[int(i > j)],
        wrong=[words[int(i < j)]],
        state=lambda option: f"{name(a)} is {option}{of} {name(b)}",
        steps=[
            f"{name(a)} is in {row(a)} {column(a)}",
            f"{name(b)} is in {row(b)} {column(b)}",
            f"{NUMBERS[i]} is {'less' if i < j else 'more'} than {NUMBERS[j]}",
        ],
    )


def depth(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Ask which of two is in front, of scenes with an overlapping pair: of that pair,
    or, where 'neither' is an option, sometimes of two objects that don't overlap."""
    if scene.overlap is None:
        return None
    far, near = (scene.objects[i] for i in scene.overlap)
    apart = [p for p in _pairs(scene.objects, rng) if set(p) != {far, near}]
    three = rng.random() < 0.6
    overlapping = not (three and apart and rng.random() < 0.4)
    a, b = _pick([(far, near), (near, far)], rng) if overlapping else apart[0]
    right = name(near) if overlapping else "neither"
    choices = [name(a), name(b), "neither"][: 3 if three else 2]
    other = {name(a): name(b), name(b): name(a)}
    return _example(
        scene,
        rng,
        template=f"depth/{len(choices)}",
        question=f"Which is in front, {name(a)} or {name(b)}?",
        right=right,
        wrong=[c for c in choices if c != right],
        state=lambda option: (
            f"neither {name(a)} nor {name(b)} is in front"
            if option == "neither"
            else f"{option} is in front of {other[option]}"
        ),
        steps=[
            f"{name(a)} is in {row(a)} {column(a)}",
            f"{name(b)} is in {row(b)} {column(b)}",
            "they overlap" if overlapping else "they do not overlap",
        ],
    )


def size(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Ask which of two is larger; with two options if one is, or with three."""
    pairs = _pairs(scene.objects, rng)
    same = [p for p in pairs if p[0].size == p[1].size]
    differ = [p for p in pairs if p[0].size != p[1].size]
    three = rng.random() < 0.6
    equal = bool(three and same and (not differ or rng.random() < 0.3))
    if not equal and not differ:
        return None
    a, b = (same if equal else differ)[0]
    larger = a if a.size == "large" else b
    right = "the same size" if equal else name(larger)
    choices = [name(a), name(b), "the same size"][: 3 if three else 2]
    other = {name(a): name(b), name(b): name(a)}
    return _example(
        scene,
        rng,
        template=f"size/{len(choices)}",
        question=f"Which is larger, {name(a)} or {name(b)}?",
        right=right,
        wrong=[c for c in choices if c != right],
        state=lambda option: (
            f"{name(a)} and {name(b)} are the same size"
            if option == "the same size"
            else f"{option} is larger than {other[option]}"
        ),
        steps=[f"{name(a)} is {a.size}", f"{name(b)} is {b.size}"],
    )


def _asked(attribute: str, o: Object) -> tuple[str, list[str]]:
    """Return (answer, all answers) to a question for the colour or the shape of an
    object."""
    if attribute == "colour":
        return o.colour, list(COLOURS)
    return f"a {o.shape}", [f"a {shape}" for shape in SHAPES]


def identity(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Ask colour or shape of one object, named by its other property or by its cell."""
    attribute, by = _pick(("colour", "shape"), rng), _pick(("kind", "cell"), rng)
    other = "shape" if attribute == "colour" else "colour"
    kinds = [getattr(o, other) for o in scene.objects]
    single = [o for o in scene.objects if kinds.count(getattr(o, other)) == 1]
    by = by if single else "cell"
    o = _pick(single if by == "kind" else scene.objects, rng)
    where = f"{row(o)} {column(o)}"
    if by == "cell":
        subject = f"the shape in {where}"
    else:
        subject = f"the {o.shape}" if attribute == "colour" else f"the {o.colour} shape"
    right, choices = _asked(attribute, o)
    return _example(
        scene,
        rng,
        template=f"identity/{attribute} by {by}",
        question=(
            f"What colour is {subject}?"
            if attribute == "colour"
            else f"What is {subject}?"
        ),
        right=right,
        wrong=_others(choices, right, int(rng.integers(2, 5)), rng),
        state=lambda option: f"{subject} is {option}",
        steps=[f"{subject if by == 'kind' else name(o)} is in {where}"],
    )


def multihop(scene: Scene, rng: np.random.Generator) -> Example | None:
    """Ask colour or shape of the one other object in the row or column of a named
    one."""
    attribute = _pick(("colour", "shape"), rng)
    for axis in ("row", "column") if rng.integers(2) else ("column", "row"):
        lines = [getattr(o, axis) for o in scene.objects]
        pairs = [
            (a, b)
            for a, b in _pairs(scene.objects, rng)
            if getattr(a, axis) == getattr(b, axis)
            and lines.count(getattr(a, axis)) == 2
        ]
        if pairs:
            break
    else:
        return None
    a, b = pairs[0]
    place = row if axis == "row" else column
    right, choices = _asked(attribute, b)
    subject = f"the other shape in the {axis} of {name(a)}"
    return _example(
        scene,
        rng,
        template=f"multihop/{attribute} by {axis}",
        question=(
            f"What colour is {subject}?"
            if attribute == "colour"
            else f"What is {subject}?"
        ),
        right=right,
        wrong=_others(choices, right, int(rng.integers(3, 5)), rng),
        state=lambda option: f"{subject} is {option}",
        steps=[f"{name(a)} is in {place(a)}", f"{name(b)} is in {place(b)}"],
    )


TASKS = {
    "count": count,
    "relation": relation,
    "depth": depth,
    "size": size,
    "identity": identity,
    "multihop": multihop,
}


def question(split: str, index: int, task: str) -> Example | None:
    """Return the stored question of a task about a scene, or None if the scene has
    none."""
    seed = [zlib.crc32(f"{split}/{task}".encode()), index]
    return TASKS[task](make_scene(split, index), np.random.default_rng(seed))


def suite(split: str, n: int) -> list[Example]:
    """Return `n` stored questions, one per scene, tasks in turn. A scene that does not
    allow the task is skipped; a longer suite begins with the shorter one."""
    examples: list[Example] = []
    index = 0
    while len(examples) < n:
        example = question(split, index, tuple(TASKS)[len(examples) % len(TASKS)])
        examples += [example] if example else []
        index += 1
    return examples


# Shares of scenes that allow a task: depth 0.53, multihop 0.84, relation 0.88, size
# 0.93, others all. With these weights tasks differ by a few per cent at n = 1 to 3.
_WEIGHTS = {"depth": 3.0, "multihop": 1.3, "relation": 1.2, "size": 1.1}


def questions(scene: Scene, rng: np.random.Generator, n: int) -> list[Example]:
    """Return up to `n` questions of distinct tasks about one scene, drawn so that tasks
    come out about equally often over scenes. Ids are unique within one call."""
    wait = {task: rng.exponential() / _WEIGHTS.get(task, 1.0) for task in TASKS}
    drawn = (TASKS[task](scene, rng) for task in sorted(wait, key=wait.get))
    return [example for example in drawn if example][:n]
