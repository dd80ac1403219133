"""Question and option → sentence: the list that a person has read."""

import itertools
import json
import re
from pathlib import Path

import pytest

from vlmrl.data.sets import SETS
from vlmrl.data.statements import FALLBACK, leaks, state, states

E = "Estimate the real-world distances between objects in this image. "
C3 = "Consider the real-world 3D locations of the objects. "
CV = (
    "Considering the relative positions of the lamp and the bed in the image provided, "
)
ME = "If I stand at the man's position facing where it is facing, "

READ = [  # question, options, index, sentence
    (C3 + "Which object has a higher location?", ["baseball glove", "red hat"], 1)
    + ("The object that has a higher location is the red hat",),
    ("Which side of the dog is facing the camera?", ["front", "left", "right"], 2)
    + ("The right side of the dog is facing the camera",),
    (C3 + "Which is closer to the camera, the man or the bus?", ["man", "bus"], 1)
    + ("The one that is closer to the camera is the bus",),
    (ME + "is the bus on the left or right of me?", ["on the left", "on the right"], 0)
    + (ME + "the bus is on the left of me",),
    (ME + "is the bus in front of me or behind me?", ["in front of", "behind"], 1)
    + (ME + "the bus is behind me",),
    (C3 + "Is the lamp directly above the chair?", ["yes", "no"], 1)
    + ("The lamp is not directly above the chair",),
    (C3 + "Which object is the man facing towards, the dog or the cat?", ["dog", "cat"])
    + (0, "The object that the man is facing towards is the dog"),
    ("How many organs are in the image?", ["3", "2"], 1)
    + ("The number of organs in the image is 2",),
    (CV + "where is the lamp located with respect to the bed?", ["left", "right"], 0)
    + ("The lamp is located to the left of the bed",),
    (CV + "where is the lamp located with respect to the bed?", ["above", "below"], 1)
    + ("The lamp is located below the bed",),
    (
        E + "Which object is closer to the books (highlighted by a red box), the lamp"
        " (highlighted by a blue box) or the table (highlighted by a green box)?",
        ["lamp", "table"],
        1,
        "The object that is closer to the books (highlighted by a red box) is the"
        " table",
    ),
    (
        "Which object is closer to the camera taking this photo, the table"
        " (highlighted by a red box) or the chair (highlighted by a blue box)?",
        ["table", "chair"],
        1,
        "The object that is closer to the camera taking this photo is the chair",
    ),
    ("Where is the kettle?", ["left", "right", "top"], 2, "The kettle is at the top"),
    ("From the camera's perspective, where is the dog relative to the woman?",)
    + (["left", "behind"], 1)
    + ("From the camera's perspective, the dog is behind the woman",),
    ("Where is the cup located from the camera's perspective?", ["left", "right"], 1)
    + ("The cup is located on the right from the camera's perspective",),
    ("What is the material of the glove?", ["rubber", "cotton"], 0)
    + ("The material of the glove is rubber",),
    ("Which caption best describes the image?", ["A cup on a table", "A cup under it"])
    + (0, "The image shows a cup on a table"),
    ("Which caption best describes the image?", ["A photo of a dog on the left", "b"])
    + (0, "This is a photo of a dog on the left"),
    ("How many trucks are visible?", ["3", "The image does not feature the trucks."])
    + (1, "The image does not feature the trucks"),
    ("What color is the umbrella of the man?", ["Red", "Black"], 1)
    + ("The color of the umbrella of the man is black",),
    ("What is the man doing in the picture?", ["riding a horse", "sleeping"], 0)
    + ("The man is riding a horse in the picture",),
    ("What is shown in the image?", ["a dog", "a cat"], 1)
    + ("What is shown in the image is a cat",),
    ("Are the butterfly's wings closer to being open or closed?", ["Open", "Closed"])
    + (1, "The butterfly's wings are closer to being closed"),
    ("Is there a snowboard in the image?", ["Yes", "No"], 1)
    + ("There is no snowboard in the image",),
    ("Is the cat left of the box?", ["yes", "no"], 0, "The cat is left of the box"),
    ("According to the chart, is A above B?", ["Yes", "No"], 1)
    + ("According to the chart, A is not above B",),
    ("Is the bus driving towards or away from the camera?",)
    + (["Towards the camera", "Away from the camera"], 1)
    + ("The bus is driving away from the camera",),
    ("How did the camera likely move when shooting the video?",)
    + (["rotated right", "rotated left"], 1)
    + ("The camera likely rotated left when shooting the video",),
    ("If I turn right by 90 degrees, will the chair be on my left or right?",)
    + (["left", "right"], 0)
    + ("If I turn right by 90 degrees, the chair will be on my left",),
    ("<image>Find x.".removeprefix("<image>"), ["4", "2 \\sqrt { 221 }"], 1)
    + ("The value of x is 2 \\sqrt { 221 }",),
    ("Find the area of the shaded region. Round to the nearest tenth.", ["4", "5"], 0)
    + ("The area of the shaded region is 4",),
    ("How many chairs are there in the image?", ["3", "4"], 1)
    + ("The number of chairs in the image is 4",),
    ("If I need to go to the sofa, which direction should I turn to face it?",)
    + (["left by 30 degrees", "right by 20 degrees"], 0)
    + ("If I need to go to the sofa, the direction that I should turn to face it is"
       " left by 30 degrees",),
    ("Which sample has higher temperature?", ["sample A", "sample B"], 1)
    + ("The sample that has higher temperature is sample B",),
    ("Does the image have a cat?", ["Yes", "No"], 1, "The image does not have a cat"),
    ("Who is the person in this image?", ["Elon Musk", "Bill Gates"], 0)
    + ("The person in this image is Elon Musk",),
    ("Where is this photo taken?", ["Paris", "Rome"], 1)
    + ("The place where this photo is taken is Rome",),
    ("In which hand is the man holding the glass?", ["left", "right"], 1)
    + ("The man is holding the glass in the right hand",),
    ("Where is the pen in relation to the cup?", ["bottom left", "ahead"], 0)
    + ("The pen is at the bottom left of the cup",),
    ("Where is the pen in relation to the cup?", ["left top", "touching"], 1)
    + ("The pen is touching the cup",),
]  # fmt: skip


@pytest.mark.parametrize("question, options, index, wanted", READ)
def test_sentences_that_were_read(question, options, index, wanted):
    said, rule = state(question, options, index)
    assert said == wanted and rule != "fallback"


@pytest.mark.parametrize("question, options, index, wanted", READ)
def test_no_sentence_is_broken_or_gives_the_right_one_away(
    question, options, index, wanted
):
    for i, said in enumerate(states(question, options)[0]):
        words = said.lower().split()
        assert "?" not in said and not said.endswith(".") and "  " not in said
        assert said[:1] == said[:1].upper()
        assert all(a != b for a, b in itertools.pairwise(words)), said
        for right in options[:i] + options[i + 1 :]:
            assert not leaks(said, question, right, options[i]), said


# Questions in the wording of every multiple-choice set, with what is said of their
# first two options, as they were read; nothing where the fallback quotes.
ASKED = [
    json.loads(line)
    for line in Path(__file__).with_name("asked.jsonl").read_text().splitlines()
]
OPEN = ("pixmo_count", "refcoco")


@pytest.mark.parametrize("name", [n for n in SETS if n not in OPEN])
def test_each_set_is_stated_by_template_as_it_was_read(name):
    rows = [r for r in ASKED if r["set"] == name]
    for row in rows:
        said, rule = states(row["question"], row["options"])
        assert (list(said[:2]) if rule != "fallback" else []) == row["says"]
        for i, sentence in enumerate(said if row["says"] else ()):
            plain = re.sub('".*"', "", sentence)  # an option that asks is quoted
            words = plain.lower().split()
            assert "?" not in plain and not plain.endswith(".") and "  " not in plain
            assert all(a != b for a, b in itertools.pairwise(words)), sentence
            for right in row["options"][:i] + row["options"][i + 1 :]:
                told = leaks(sentence, row["question"], right, row["options"][i])
                assert not told, sentence
    assert len(rows) >= 3 and sum(not r["says"] for r in rows) <= 0.05 * len(rows)


def test_what_no_template_fits_is_quoted_and_counted():
    question, options = "Why is the man smiling?", ["He won.", "because he won"]
    said, rule = states(question, options)
    assert rule == "fallback"
    assert said[1] == FALLBACK.format(question, "because he won")
    assert states("", ["a", "b"])[1] == "fallback"
    assert states("What?", ["", "b"])[1] == "fallback"


def test_leaks():
    assert leaks("The cup is left, not right", "Where is it?", "right", "left")
    assert not leaks("The cup is bright", "Where is it?", "right", "bright")
    assert not leaks("Of left and right it is left", "Left or right?", "right", "left")
