"""Question and option → sentence: right values that a person has read."""

import itertools
import json
import re
from pathlib import Path

import pytest

from vlmrl.data.sets import SETS
from vlmrl.data.statements import QUOTED, leaks, state, states

C3 = "Consider the real-world 3D locations of the objects. "
CV = (
    "Considering the relative positions of the lamp and the bed in the image provided, "
)
STAND = "If I stand at the man's position facing where it is facing, "

# Question, option, sentence.
STATED = [
    ("Is there a snowboard in the image?", "Yes", "There is a snowboard in the image"),
    ("Is there a snowboard in the image?", "no", "There is no snowboard in the image"),
    ("is there a dog in the picture", "No", "There is no dog in the picture"),
    ("Is there an umbrella in this photo?", "Yes")
    + ("There is an umbrella in this photo",),
    ("Is there a red car in the image?", "No", "There is no red car in the image"),
    ("Are there any dogs in the image?", "Yes", "There are dogs in the image"),
    ("Are there any dogs in the image?", "No", "There are no dogs in the image"),
    ("Are there any people in the scene?", "No", "There are no people in the scene"),
    ("How many organs are in the image?", "2")
    + ("The number of organs in the image is 2",),
    ("how many cats are there in the image?", "Three")
    + ("The number of cats in the image is three",),
    ("How many traffic lights are there?", "0", "The number of traffic lights is 0"),
    ("How many people are visible in the photo?", "12")
    + ("The number of people visible in the photo is 12",),
    ("How many red shapes are there?", "4", "The number of red shapes is 4"),
    ("What color is the umbrella?", "Red", "The color of the umbrella is red"),
    ("What colour is the small dog?", "black", "The color of the small dog is black"),
    ("What is the color of the umbrella of the man?", "Black")
    + ("The color of the umbrella of the man is black",),
    ("Is the cat behind the box?", "yes", "The cat is behind the box"),
    ("Is the red cup on the table?", "No", "The red cup is not on the table"),
    ("Are the shoes under the bed?", "No", "The shoes are not under the bed"),
    ("Is the dog to the left of the cat?", "No")
    + ("The dog is not to the left of the cat",),
    (C3 + "Is the lamp directly above the coffee table?", "no")
    + ("The lamp is not directly above the coffee table",),
    (C3 + "Is the cup next to or far from the plate?", "far from")
    + ("The cup is far from the plate",),
    ("Is the cat on top of or under the table?", "Under", "The cat is under the table"),
    ("Is the door open or closed?", "Closed", "The door is closed"),
    ("Is the light red or green?", "green", "The light is green"),
    (C3 + "Are the sofa and the table parallel or perpendicular to each other?",)
    + ("parallel", "The sofa and the table are parallel to each other"),
    (CV + "where is the lamp located with respect to the bed?", "left")
    + ("The lamp is to the left of the bed",),
    (CV + "where is the lamp located with respect to the bed?", "below")
    + ("The lamp is below the bed",),
    (C3 + "Which is closer to the camera, the man or the bus?", "bus")
    + ("The one that is closer to the camera is the bus",),
    (
        "Which object is closer to the camera taking this photo, the table"
        " (highlighted by a red box) or the chair (highlighted by a blue box)?",
        "chair",
        "The object that is closer to the camera taking this photo is the chair",
    ),
    (C3 + "Which object is the man facing towards, the dog or the cat?", "dog")
    + ("The object that the man is facing towards is the dog",),
    (C3 + "Which object has a higher location?", "red hat")
    + ("The object that has a higher location is the red hat",),
    ("Which side of the teddy bear is facing the camera?", "right")
    + ("The right side of the teddy bear is facing the camera",),
    (STAND + "is the bus on the left or right of me?", "on the left")
    + (STAND + "the bus is on the left of me",),
    (STAND + "is the bus in front of me or behind me?", "behind")
    + (STAND + "the bus is behind me",),
    ("Which caption best describes the image?", "A cup on a table")
    + ("The image shows a cup on a table",),
    ("Which caption best describes the image?", "A photo of a dog on the left")
    + ("This is a photo of a dog on the left",),
    ("Find x.", "2 \\sqrt { 221 }", "The value of x is 2 \\sqrt { 221 }"),
    ("How many trucks are visible?", "The image does not feature the trucks.")
    + ("The image does not feature the trucks",),
    ("What color is the dog?", "It is red.", "It is red"),
    ("What is the color of the dog?", "The color of the dog is black.")
    + ("The color of the dog is black",),
]  # fmt: skip

# Forms that no template fits: negated, contracted, colloquial, incomplete, comparative,
# arithmetic, of the wrong number, with a verb or a clause in the place of a noun.
FORMS = """
Is there not a blue shape in the image? | yes
Isn't there a blue shape in the image? | no
Is there no dog in the image? | yes
Does the image not contain a gray shape? | no
Doesn't the image contain a gray shape? | yes
Is the cat not on the table? | no
Isn't the cat on the table? | yes
Aren't there any dogs in the image? | no
Are there no dogs in the image? | yes
Is it not true that the dog is brown? | no
Which object is not red? | cup
What isn't on the table? | cup
Can't you see the dog? | no
Won't the chair be on my left? | yes
How many dogs are not in the image? | 3
How many dogs aren't in the image? | 3
What color is the dog not? | red
What color isn't the dog? | red
Is neither dog in the image? | yes
Is nothing on the table? | no
What's the color of the dog? | red
What's on the table? | cup
Where's the dog? | on the table
Who's that? | a man
How's the weather? | sunny
There's a dog in the image, right? | yes
It's a dog, isn't it? | no
Y'all see a dog in the pic? | yes
any dogs here? | no
got a dog in there? | yes
dog or cat? | dog
u see the cat? | yes
so what color's the car | red
is that a dog or what? | yes
wanna guess how many cats? | 4
whats in the image | a dog
hey, is there a dog in the image? | yes
ok so where is the cat? | left
The color of the car? | red
Color of the car? | red
What color? | red
How many? | 3
How many dogs? | 3
How many dogs are? | 3
How many are in the image? | 3
Is there a? | yes
Is there? | no
Where? | left
Which? | the left one
Which side? | left
Is the dog? | yes
The dog is | brown
A dog and a ___ | cat
In the image, | a dog
? | yes
What | 3
Which object is closer? | cup
Which object is closer to the camera? | cup
Which is closer, the cup or the dog? | cup
Is the cup bigger than the dog? | yes
Is the cup as big as the dog? | no
Is the cup closer to the dog than the cat is? | no
Which cup is bigger, the red one or the blue one? | the red one
Are there more dogs than cats in the image? | yes
Are there any more dogs in the image? | no
Are there any fewer dogs in the image? | no
How many more dogs are in the image? | 2
How many more dogs than cats are there? | 2
How many fewer cats are there? | 2
How many times are there? | often
Is the tallest in the image? | yes
What color is the most common? | red
What color is the biggest? | red
What color is the same? | red
What is 6 plus 7? | 13
What is 6 + 7? | 13
6 + 7 = ? | 13
How much is 6 times 7? | 42
What is half of the number of dogs? | 2
What is the sum of 3 and 4? | 7
What is the difference between the two bars? | 5
Subtract all red balls. How many objects are left? | 3
Subtract all dogs. How many dogs are left? | 0
Is 6 more than 7? | no
What is x if x + 2 = 5? | 3
Find x if y = 3. | 3
Find x and y. | 3
Find the area of the circle. | 5
Are these people related? | yes
Are these people related? | no
Is the red shape a circle? | yes
Is the red shape circle or square? | circle
Is the red shape a circle or a square? | circle
What shape is the red shape? | circle
What is the red shape? | circle
What is this? | dog
What are these? | dogs
What is the man doing? | running
What is the man holding? | a cup
What color is the man holding? | red
What color is the man wearing? | red
What color is the wall painted? | red
What color is the car parked here? | red
What color is the light showing? | red
What color is the shirt the man wears? | red
What color are the dogs? | red
What color is a dog? | red
What color is it? | red
What color is the dog? | red and white
What color is the dog? | I don't know
What is the color of the car and the bus? | red
What is the color of the car that is parked? | red
Is the door open behind the man? | yes
Is the man sitting on the chair? | yes
Is the man sitting or standing? | sitting
Is the man on the left or the right? | left
Is the man behind the running? | no
Is the cat left of the box? | yes
Is the cat on? | yes
Is the cat or the dog on the table? | yes
Is the cat on the dog or the table? | no
Is the cat on the table and the dog? | yes
Is the shape to the right of the circle red? | no
Is the light on? | yes
Is anyone in the image? | no
Is he on the table? | yes
Is this the cat? | no
Is there a dog or a cat in the image? | no
Is there a red in the image? | no
Is there a umbrella in the image? | yes
Is there any water in the image? | yes
Is there something in the image? | yes
Is there a lot in the image? | yes
Is there a few dogs in the image? | yes
Is there a dog? | maybe
Is there a dog in the image? | maybe
Is there a dog in the image? | a dog
Is there a dog that runs in the image? | no
Is there a man who is running in the image? | no
Are there any left in the image? | no
Are there any red in the image? | no
Are there any of these in the image? | no
Are there any missing in the image? | no
Are there two dogs in the image? | yes
Are there any dog in the image? | yes
Are there dogs in the image? | yes
How many of the dogs are in the image? | 3
How many dog are in the image? | 3
How many is in the image? | 3
How many dogs are in the image? | many
How many dogs are in the image? | 3 dogs
How many dogs are running in the image? | 3
How many dogs do you see? | 3
How many dogs are there? And how many cats are there? | 3
Where is the dog? | left
Where is the man going? | to the store
Where is the cup located? | on the right
Why is the man smiling? | because he won
When was this taken? | at night
Who is in the image? | a man
Whose dog is this? | the man's
Which dog is brown? | the left one
Which hand holds the cup? | left
Which of these is a dog? | the left one
Which side of the dog faces the camera? | left
Which side of the dog is facing the camera? | none
Which object is closer to the cup, the dog or the cat? | bird
Which object is the man facing, the dog or the cat? | dog
Which object has a higher location? | neither
Which caption best describes the image? | A man rides a wave.
Which caption best describes the image? | none of them
Does the dog run? | yes
Do you see a dog? | no
Did the man fall? | yes
Has the man fallen? | no
Can you see the dog? | yes
Should I turn left? | yes
Will it rain? | no
True or false: the dog is brown. | true
The dog is brown, true or false? | true
Name the animal. | dog
Count the dogs. | 3
Tell me the color of the dog. | red
Point to the dog. | left
IS THERE A DOG IN THE IMAGE? | yes
Is There A Dog In The Image? | yes
"""


@pytest.mark.parametrize("question, option, sentence", STATED)
def test_templates(question, option, sentence):
    text, template = state(question, option)
    assert text == sentence and template != "quoted"


@pytest.mark.parametrize("form", FORMS.strip().splitlines())
def test_other_forms_are_quoted(form):
    question, option = form.split(" | ")
    bare = option.removesuffix(".")
    quoted = f'"{bare}"' if option.endswith(".") else bare
    assert state(question, option) == (QUOTED.format(question, quoted), "quoted")


# Questions in the wording of every multiple-choice set, with the sentences of their
# first two options as they were read; nothing where they are quoted.
ASKED = [
    json.loads(line)
    for line in Path(__file__).with_name("asked.jsonl").read_text().split("\n")[:-1]
]
OPEN = ("pixmo_count", "refcoco")


@pytest.mark.parametrize("name", [n for n in SETS if n not in OPEN])
def test_sentences_of_each_set(name):
    rows = [r for r in ASKED if r["set"] == name]
    assert len(rows) >= 3
    for row in rows:
        question, options = row["question"], row["options"]
        sentences, template = states(question, options)
        assert (list(sentences[:2]) if template != "quoted" else []) == row["says"]
        for i, sentence in enumerate(sentences):
            plain = re.sub('".*"', "Q", sentence)
            words = plain.lower().split()
            assert "?" not in plain and not plain.endswith(".") and "  " not in plain
            assert sentence[:1] == sentence[:1].upper()
            assert all(a != b for a, b in itertools.pairwise(words)), sentence
            for right in options[:i] + options[i + 1 :]:
                assert not leaks(sentence, question, right, options[i]), sentence


def test_one_quoted_option_counts_the_question_as_quoted():
    assert states("Is there a dog in the image?", ["yes", "no"])[1] == "there_is"
    assert states("Is there a dog in the image?", ["yes", "maybe"])[1] == "quoted"
    assert states("", []) == ((), "")


def test_leaks():
    assert leaks("The cup is left, not right", "Where is it?", "right", "left")
    assert not leaks("The cup is bright", "Where is it?", "right", "bright")
    assert not leaks("Of left and right it is left", "Left or right?", "right", "left")
