"""The rule judge on traces labelled by hand: precision, coverage, adversaries, bounds."""
# ruff: noqa: E501  (one trace a line)

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrl.judges import agree, labels, verdicts
from vlmrl.judges.judge import ask
from vlmrl.judges.rule import JUDGE, applicable, conclude, verdict
from vlmrl.perturb import ORDER

# item, think, index it concludes (-1: nothing)
# fmt: off
ITEMS = {
    'side': ('Is the dog left or right of the cat?', ('left', 'right')),
    'digits': ('How many circles are there?', ('2', '3', '4', '5')),
    'words': ('How many red circles are in the image?', ('one', 'two', 'three')),
    'yesno': ('Is the mug on the table?', ('yes', 'no')),
    'car': ('Is there a red car in the image?', ('Yes', 'No')),
    'animal': ('Which animal is closer to the camera?', ('the dog', 'the cat', 'the horse')),
    'colour': ('What color is the car next to the bus?', ('red', 'blue', 'dark blue', 'white')),
    'nested': ('Which object is largest?', ('red', 'red circle', 'circle')),
    'place': ('Where is the lamp relative to the sofa?', ('to the left of the sofa', 'to the right of the sofa', 'behind the sofa')),
    'higher': ('Consider the real-world 3D locations of the objects. Which object has a higher location?', ('baseball glove', 'red hat')),
    'points': ('Which point is closer to the camera?', ('A', 'B')),
    'unsure': ('How many circles are there?', ('2', '3', "I'm not sure")),
    'size': ('Which is larger, the red circle or the blue square?', ('the red circle', 'the blue square', 'the same size')),
    'algebra': ('Find the value of x.', ('12', '15', '18.5', '21')),
    'sentences': ('Is the motorcycle on the left or right side of the dog?', ('The motorcycle is on the left side of the dog.', 'The motorcycle is on the right side of the dog.')),
    'above': ('Considering the relative positions of the laptop and the lamp in the image provided, where is the laptop located with respect to the lamp?', ('above', 'below')),
    'organs': ('How many organs are in the image?', ('3', '2', '1', '0')),
    'depth': ('Which object is closer to the camera taking this photo, the chair (highlighted by a red box) or the table (highlighted by a blue box)?', ('chair', 'table')),
    'material': ('What is the material of the glove?', ('rubber', 'cotton', 'kevlar', 'leather')),
    'camera': ('How did the camera likely move when shooting the video?', ('rotated right and moved forward', 'rotated left and moved forward')),
    'front': ('Is the bicycle in front of or behind the tree?', ('in front of', 'behind')),
    'holding': ('What is the person in the yellow shirt holding?', ('an umbrella', 'a phone', 'a bag', 'a dog')),
    'facing': ('Which direction is the dog facing?', ('toward the camera', 'away from the camera', 'to the left', 'to the right')),
    'near': ('Estimate the real-world distances between objects in this image. Which object is closer to the sofa (highlighted by a red box), the lamp (highlighted by a blue box) or the door (highlighted by a green box)?', ('lamp', 'door')),
}

TRACES = [
    ('side', 'The dog is at the far end. So the answer is B.', 1),
    ('side', 'The dog sits in column 1 and the cat in column 3. Therefore, the dog is to the left of the cat.', 0),
    ('side', 'Looking at the image, the dog is on the right side of the picture while the cat is on the left. Therefore the correct answer is (B) right.', 1),
    ('side', 'The cat is to the right of the dog, so the dog is on the left.', 0),
    ('side', "The dog is to the right of the cat. Wait, let me look again. The dog is actually on the left side. So it's left.", 0),
    ('side', 'So the answer is A. No, wait, the cat is on the left. So the answer is B.', 1),
    ('side', 'It is not left. It must be right.', 1),
    ('side', 'It is left, not right. So the answer is A.', 0),
    ('side', 'The dog could be left or right. It is hard to tell.', -1),
    ('side', 'The answer is either A or B.', -1),
    ('side', 'The dog is brown and the cat is black.', -1),
    ('side', '', -1),
    ('side', 'So the answer is A. But I think it is right.', 1),
    ('side', 'The dog is left of the cat. So it is left but I think', -1),
    ('side', 'The dog is left of the cat. So it is left but I think the dog is in fact on the other side. So it is right.', 1),
    ('side', 'So the cat is left of the dog.', -1),
    ('side', "So it is left. That's right.", -1),
    ('side', 'Hmm, if the dog is left of the cat then the answer is A.', -1),
    ('side', 'Is it left? Is it right?', -1),
    ('side', "The dog's x coordinate is smaller than the cat's, which means it is to the left. Final answer: A", 0),
    ('side', 'Thus, the dog is right of the cat.\n\nAnswer: (B)', 1),
    ('side', 'All right, the dog is on the left. So the answer is A.', 0),
    ('digits', 'Let me count: one on the left, two in the middle. That makes three. So it is three.', 1),
    ('digits', 'I count 1, 2, 3, 4 circles. So there are 4 circles.', 2),
    ('digits', 'There are two circles in the top row and three circles in the bottom row. 2 + 3 = 5. So there are five circles in total.', 3),
    ('digits', 'There are 3 circles in the first row. Then there are 2 circles in the second row. In total, there are 5 circles.', 3),
    ('digits', 'Therefore, the correct answer is (C) 4.', 2),
    ('digits', 'Therefore, the correct answer is C.', 2),
    ('digits', '\\boxed{B}', 1),
    ('digits', 'The total is $\\boxed{4}$.', 2),
    ('digits', 'The final answer is \\boxed{\\text{D}}.', 3),
    ('digits', 'So the answer is 3, wait, I missed one. So the answer is 4.', 2),
    ('digits', 'So the answer is B. Let me double check. One, two, three. Yes, that is correct.', 1),
    ('digits', 'So the answer is B. Let me double check. I see four circles now.', -1),
    ('digits', 'One is in row one column two. Two is in row three column one.', -1),
    ('digits', 'The circle in row two column three is red.', -1),
    ('digits', 'So there are two rows of circles.', -1),
    ('digits', 'So the answer is (B) 4.', -1),
    ('digits', 'The answer is not 3. The answer is 4.', 2),
    ('digits', 'The count is 3, which matches option B.', 1),
    ('digits', 'Option B is correct because there are three circles.', 1),
    ('digits', 'I would go with option C.', 2),
    ('digits', "I'll choose D.", 3),
    ('digits', 'Options A and B are wrong. The answer is C.', 2),
    ('digits', "It can't be A, so it must be B.", 1),
    ('digits', 'So it could be 3 or 4.', -1),
    ('digits', "Okay, so the picture shows several shapes. Let me count the circles. There's one at the top left, another one near the center, and a third at the bottom. Hmm, is that a fourth? No, that's an oval. So there are three circles.", 1),
    ('digits', "Maybe 3. Maybe 4. I'm not sure.", -1),
    ('unsure', "It is too dark to count. So I'm not sure.", 2),
    ('unsure', 'So the answer is C.', 2),
    ('unsure', "I'm not sure at first, but counting again I see 2 circles. So it is 2.", 0),
    ('words', 'There is one red circle. So it is one.', 0),
    ('words', 'The red one is in row two. So the answer is C.', 2),
    ('words', 'One. Two. So two.', 1),
    ('words', 'There are 3 red circles in the image.', 2),
    ('words', 'So there are three circles, one of them blue. So the answer is two.', 1),
    ('words', 'So it is one of the circles in the corner.', -1),
    ('yesno', 'The mug sits on top of the table. So the answer is yes.', 0),
    ('yesno', 'I see the mug on the floor, not on the table. So no.', 1),
    ('yesno', 'No, wait. The mug is on the table. So yes.', 0),
    ('yesno', 'There is no doubt about it, the mug is on the table. The answer is yes.', 0),
    ('yesno', 'So the answer is yes. No, the mug is on the chair.', -1),
    ('yesno', 'So the answer is yes. No, the mug is on the chair, so the answer is no.', 1),
    ('car', 'I looked everywhere. There is no red car. Therefore, the answer is No.', 1),
    ('car', "Hmm, there's something red near the corner. It is a car. So the answer is A.", 0),
    ('animal', 'Hmm... so it must be the dog.', 0),
    ('animal', 'The dog appears bigger than the cat. So the dog is closer to the camera.', 0),
    ('animal', 'So the cat is farther from the camera.', -1),
    ('animal', 'Comparing their sizes, the horse is closer to the camera than the dog. Thus, the answer is the horse.', 2),
    ('animal', "It isn't the cat and it isn't the horse. So it is the dog.", 0),
    ('animal', 'Neither the dog nor the cat is closer, so it is the horse.', 2),
    ('animal', 'It is the cat rather than the dog. Therefore the answer is B.', 1),
    ('animal', 'A cat is in front of the dog. Therefore, the cat is closer to the camera.', 1),
    ('animal', 'A dog stands on the grass.', -1),
    ('animal', 'The dog, the cat and the horse are all in the field.', -1),
    ('colour', 'The car next to the bus is dark blue. So it is dark blue.', 2),
    ('colour', 'The bus is red. The car is white. So the answer is white.', 3),
    ('colour', 'The bus is red.', -1),
    ('colour', 'So the bus is red.', -1),
    ('colour', 'So the car is blue.', 1),
    ('colour', 'Therefore, the color of the car is dark blue.', 2),
    ('colour', 'It looks blue, but I think it is dark blue.', 2),
    ('colour', 'The car next to the bus appears white.', 3),
    ('nested', 'So it is the red circle.', 1),
    ('nested', 'So it is red.', 0),
    ('nested', 'Therefore the circle is the largest.', 2),
    ('place', 'The lamp stands behind the sofa. So the answer is C.', 2),
    ('place', 'The lamp is to the right of the sofa.', 1),
    ('place', 'From the picture, the sofa takes the center. The lamp is on its left side. Therefore, the lamp is to the left of the sofa.', 0),
    ('higher', 'The baseball glove is held near the waist, whereas the red hat is on the head. So the red hat has a higher location.', 1),
    ('higher', 'The red hat is on the head of the player, which is above the glove. Therefore, the answer is red hat.', 1),
    ('higher', 'The baseball glove is lower than the red hat, so the red hat is higher.', 1),
    ('points', 'Point A is lower in the image. So A is closer to the camera.', 0),
    ('points', 'Therefore, B is closer than A.', 1),
    ('points', 'So the answer is B.', 1),
    ('size', 'The red circle is small. The blue square is large. The blue square is larger than the red circle. So it is the blue square.', 1),
    ('size', 'The red circle is larger than the blue square.', 0),
    ('size', 'So they are the same size.', 2),
    ('size', 'So the red circle is smaller than the blue square.', -1),
    ('algebra', 'By Pythagoras, x^2 = 225, so x = 15.', 1),
    ('algebra', 'Solving gives x = 18.5. The answer is 18.5.', 2),
    ('algebra', 'The angle is 12 degrees. x = 21. Therefore, the answer is D.', 3),
    ('algebra', 'Thus the value of x is 12.', 0),
    ('sentences', 'The motorcycle is on the left side of the dog.', 0),
    ('sentences', 'I see the motorcycle at the right edge. So the answer is: The motorcycle is on the right side of the dog.', 1),
    ('sentences', 'The dog is left. So the motorcycle is on the right side of the dog.', 1),
    ('animal', "Let's analyze the image. The horse is in the background, while the cat and the dog are in the foreground. The dog overlaps the cat. This means the dog is closer to the camera. So the answer should be A. the dog.", 0),
    ('animal', "Alternatively, the horse might be closer. But its feet are higher in the image, so it is farther. The cat's feet are lowest. So I conclude that the answer is the cat.", 1),
    ('colour', "First, locate the bus. It is yellow. Next to it there is a car. The car's color is blue, not dark blue. So, the answer is B.", 1),
    ('digits', 'Final Answer: **C**', 2),
    ('digits', '**Answer:** 5', 3),
    ('digits', 'I think the answer is B, but the picture is blurry. Counting again gives 4. So my final answer is C.', 2),
    ('side', 'Oh, I see, the dog is to the right. So the answer is right.', 1),
    ('side', 'Given the layout, I believe the answer is A.', 0),
    ('side', 'Given the layout, I believe the dog is on the left.', 0),
    ('side', 'The answer seems to be left.', 0),
    ('side', 'Based on this, option B is the right choice.', 1),
    ('side', 'Based on this, option A is incorrect, and option B is the correct answer.', 1),
    ('side', 'A is wrong. B is right.', 1),
    ('side', 'The description says the dog is left. However, in the image the dog is right of the cat. So the answer is B.', 1),
    ('side', 'The dog is positioned to the left of the cat. Hence, A.', 0),
    ('side', 'The correct option is B: right.', 1),
    ('side', 'The correct option is B: left.', -1),
    ('digits', 'Thus, the number of circles is 4.', 2),
    ('digits', 'Counting carefully yields three circles. Therefore, B.', 1),
    ('digits', 'So, we have 3 circles.', 1),
    ('digits', 'So 2 + 3 = 5 circles.', 3),
    ('words', 'Therefore, I can see two red circles in the image.', 1),
    ('above', 'The laptop sits on the desk and the lamp hangs from the ceiling. The laptop is below the lamp. So the answer is (B).', 1),
    ('above', 'The lamp is above the laptop, thus the laptop is located below the lamp.', 1),
    ('above', 'To determine the relative position, I look at the y coordinates. The laptop is higher in the picture. Therefore, the laptop is above the lamp.', 0),
    ('above', 'The lamp is above the laptop.', -1),
    ('above', 'Hence the laptop is below.', 1),
    ('organs', "I can see one organ at the church's back. There don't seem to be any others. So the count is 1.", 2),
    ('organs', 'Let me think. There are pipes, which belong to an organ. Wait, there are two sets of pipes. Hmm, the second set belongs to a second organ. So there are two organs. The answer is B.', 1),
    ('organs', 'There are no organs, so the answer is D.', 3),
    ('organs', 'So the final count is 0.', 3),
    ('organs', 'This gives a total of 3.', 0),
    ('depth', 'The chair is highlighted by the red box and appears in the foreground. The table is behind it. Therefore, the chair is closer to the camera.', 0),
    ('depth', 'Based on the size, the table seems to be closer. So B.', 1),
    ('depth', 'The table (blue box) is closer to the camera than the chair (red box). Thus the answer is B. table.', 1),
    ('depth', 'Oh, I see. The chair partially covers the table. So, the chair must be closer.', 0),
    ('depth', 'The chair is further away from the camera. Therefore, the table is closer.', 1),
    ('material', 'The glove looks thick and shiny. This suggests that the glove is made of leather. So the answer is D.', 3),
    ('material', 'It is shiny like rubber, but the stitching indicates leather. Therefore, the glove is made of leather.', 3),
    ('material', "So it's kevlar.", 2),
    ('material', 'The material is probably cotton.', 1),
    ('material', "Rubber gloves are usually yellow. This one is brown. Leather is a better fit. I'd say leather.", 3),
    ('camera', 'In the second image, objects have shifted left. That means the camera rotated right. It also got closer to the sofa, so it moved forward. Therefore the answer is A.', 0),
    ('camera', 'So the camera rotated left and moved forward.', 1),
    ('camera', 'Objects appear larger, so the camera moved forward. They shifted to the right, so it rotated left. So the answer is: rotated left and moved forward.', 1),
    ('side', 'Okay, so I need to figure out whether the dog is left or right of the cat. The dog is near the left edge. The cat is at the center. So the dog is to the left of the cat. The answer is left.', 0),
    ('side', 'Let me verify this. If the dog is left, the answer would be A. The dog is indeed at the left edge. So A it is.', 0),
    ('side', "So the dog is left of the cat. Hmm, but the question may be asking from the camera's view. From the camera's view it is still left. So the answer is A.", 0),
    ('side', 'I first thought the answer was A. Now I see that it is B.', 1),
    ('side', "It's definitely on the right.", 1),
    ('side', "The dog isn't on the left.", -1),
    ('side', 'So, the answer is not A.', -1),
    ('side', 'Both the dog and the cat are in the middle.', -1),
    ('side', 'The answer is right.', 1),
    ('side', 'Am I right? Yes. So the answer is left.', 0),
    ('side', "I can't determine the position of the dog.", -1),
    ('side', 'So the answer is A. Actually no. The answer is B.', 1),
    ('side', 'So the answer is A. Actually, let me reconsider the position of the cat.', -1),
    ('side', 'The answer is A or B.', -1),
    ('side', 'There are two animals, A and B. The dog is B.', -1),
    ('side', 'Choice: B', 1),
    ('side', 'The dog is on the left, the cat is on the right.', 0),
    ('side', 'One can see the cat on the left and the dog on the right. So the dog is on the right of the cat.', 1),
    ('animal', 'The cat is close. The dog is closer. The horse is far away. So the closest is the dog.', 0),
    ('animal', 'The animal closest to the camera is the cat.', 1),
    ('animal', 'The closest animal is the cat. So the answer is the cat.', 1),
    ('animal', "So the answer isn't the horse. It is the dog.", 0),
    ('animal', "I would say it's the horse.", 2),
    ('animal', 'I pick the horse, since it overlaps the others.', 2),
    ('animal', 'Therefore the dog, which overlaps the cat, is closer to the camera.', 0),
    ('animal', 'Therefore the closest animal to the camera is definitely the horse!', 2),
    ('animal', "The dog is closer than the cat, but the horse is closer than the dog. So it's the horse.", 2),
    ('animal', 'The answer might be the dog.', -1),
    ('animal', 'If I had to guess, I would say the dog.', 0),
    ('yesno', 'The cup stands on the table. Yes, the mug is on the table. So the answer is A.', 0),
    ('yesno', 'The mug is not on the table. It is on the floor. Therefore, the answer is no.', 1),
    ('yesno', 'Therefore, no, the mug is not on the table.', 1),
    ('yesno', 'So yes, the mug is on the table.', 0),
    ('yesno', 'The answer to the question is yes.', 0),
    ('digits', 'So the answer is three.', 1),
    ('digits', 'There are 3 red circles and 2 blue circles, so 5 in total.', 3),
    ('digits', "There're 4 circles.", 2),
    ('digits', 'Count = 4', 2),
    ('digits', '1, 2, 3, 4, 5. So five circles. The answer is D. 5', 3),
    ('digits', 'Row one has 2 circles. Row two has 1 circle. Hence 3 circles in total.', 1),
    ('digits', 'So B? No. There are four circles. So the answer is C.', 2),
    ('digits', 'The options are A. 2, B. 3, C. 4, D. 5. I count 4.', 2),
    ('digits', 'The options are A. 2, B. 3, C. 4, D. 5.', -1),
    ('digits', 'The answer is B) 3.', 1),
    ('digits', 'The answer is **(B)**.', 1),
    ('digits', 'So the correct choice is D.', 3),
    ('digits', "I'm confident the answer is C.", 2),
    ('digits', 'So it is 3. Wait. There is another one behind the box. That makes 4.', 2),
    ('digits', 'So it is 3. However, one of them is an oval, so there are 2 circles.', 0),
    ('colour', "The car beside the bus is painted in a deep navy tone, i.e. dark blue. So it's dark blue.", 2),
    ('colour', 'Next to the red bus is a white car. So the answer is white.', 3),
    ('colour', 'The car next to the bus is red. The truck is blue. So it is red.', 0),
    ('colour', 'The truck is white.', -1),
    ('colour', 'The color of the car next to the bus is blue.', 1),
    ('size', 'The two shapes have equal extent. So it is the same size.', 2),
    ('size', 'The blue square spans two cells and the red circle one cell. So the blue square is larger.', 1),
    ('size', 'Comparing the two, the blue square is larger.', 1),
    ('size', 'The blue square is not larger than the red circle.', -1),
    ('place', 'The lamp is on the left of the sofa, so the answer is A.', 0),
    ('place', 'The sofa is to the right of the lamp.', -1),
    ('place', 'Therefore, the lamp is located to the right of the sofa.', 1),
    ('higher', 'The hat is at the top. The glove is near the ground. So the red hat.', 1),
    ('points', 'Comparing point A and point B, point B is nearer. Therefore, point B is closer to the camera.', 1),
    ('points', 'A is further than B. So it is B.', 1),
    ('unsure', "The image is blurry. I'm not sure.", 2),
    ('unsure', 'There might be 2. So the answer is 2.', 0),
    ('algebra', 'Therefore x = 21, option D.', 3),
    ('algebra', 'x = 15 + 3.5 = 18.5. So the answer is C.', 2),
    ('algebra', 'So 2x = 30, thus x = 15.', 1),
    ('nested', 'The circle is red. So the answer is the red circle.', 1),
    ('front', 'The bicycle overlaps the trunk of the tree, so it hides part of it. That means the bicycle is in front of the tree. Answer: A', 0),
    ('front', 'The tree is in front of the bicycle. So the bicycle is behind the tree.', 1),
    ('front', "I notice that the bicycle is partially hidden. Thus it's behind.", 1),
    ('front', 'It is unclear which of the two is in front.', -1),
    ('front', "The bicycle is behind the tree, isn't it? Let me look. No, it hides the trunk. So it's in front of the tree.", 0),
    ('holding', 'There are two people. The person in the yellow shirt stands left. They hold a phone. So the answer is B.', 1),
    ('holding', 'The woman in yellow has something black and thin in her hand. It must be an umbrella.', 0),
    ('holding', 'The man in red is holding a bag. The person in the yellow shirt is holding a phone. So it is a phone.', 1),
    ('holding', 'The man in red is holding a bag.', -1),
    ('holding', 'The person in the yellow shirt is holding an umbrella.', 0),
    ('holding', 'So the person in the yellow shirt is holding a dog.', 3),
    ('facing', 'I can see its eyes and nose. Therefore, the dog is facing toward the camera.', 0),
    ('facing', "Its tail points at us and I can't see its face. So the dog is facing away from the camera. The answer is B.", 1),
    ('facing', 'Its nose points left. So to the left.', 2),
    ('facing', 'The right side of the dog is visible, hence the dog faces right. The answer is (D) to the right.', 3),
    ('near', 'The lamp stands right beside the sofa, while the door is across the room. Therefore, the lamp is closer to the sofa.', 0),
    ('near', 'The door is only a step from the sofa. The lamp is at the window. The answer is the door.', 1),
    ('near', 'The lamp seems far away. So door.', 1),
    ('side', 'the dog is left of the cat. so it is left.', 0),
    ('side', 'THE DOG IS LEFT OF THE CAT. SO THE ANSWER IS LEFT.', 0),
    ('side', 'Step 1: find the dog. Step 2: find the cat. Step 3: compare. The dog has the larger x. Conclusion: right.', 1),
    ('side', 'Dog: column 4. Cat: column 1. 4 > 1, so right.', 1),
    ('side', 'I was going to say left, but the picture is mirrored. I will say right.', 1),
    ('side', 'My answer is left.', 0),
    ('side', 'left', 0),
    ('side', 'B', 1),
    ('side', '(A)', 0),
    ('side', 'The dog stands to the left, so the answer must be A.', 0),
    ('side', 'So the answer is A, since the dog is not right of the cat.', 0),
    ('side', 'We have two choices: left or right. The dog is on the left, so we choose left.', 0),
    ('side', 'The dog left the room. The cat is right there.', -1),
    ('side', 'What is left is to compare the columns.', -1),
    ('digits', 'So there are three circles and two squares. The answer is B.', 1),
    ('digits', 'There seem to be 4 circles.', 2),
    ('digits', 'The number of circles in the image is four.', 2),
    ('digits', 'First circle: red. Second circle: blue. Third circle: green. Total: 3.', 1),
    ('digits', 'I see a cluster of 2 and a cluster of 3, making 5 altogether.', 3),
    ('digits', 'So 5.', 3),
    ('digits', 'So there are 5.', 3),
    ('digits', 'So the answer is not 5 but 4.', 2),
    ('digits', 'The answer is 3 (option B).', 1),
    ('digits', 'The answer is 3 (option C).', -1),
    ('digits', 'The answer is B because 3 circles are visible; 4 would require another.', 1),
    ('digits', '3 circles are visible, thus B.', 1),
    ('digits', 'Circles 2 and 3 overlap.', -1),
    ('animal', 'Given that the cat hides part of the dog, the cat must be closer.', 1),
    ('animal', 'My first guess was the horse. On second thought, the dog is closer.', 0),
    ('animal', "The dog's paws are at the bottom. So I'd go with the dog.", 0),
    ('animal', 'Dog or cat? The dog is bigger. The answer: dog.', 0),
    ('yesno', 'So the mug is on the table. The answer is therefore yes.', 0),
    ('yesno', 'Yes and no are both possible.', -1),
    ('yesno', 'The statement is true, so yes.', 0),
    ('colour', 'The car is not red and not white, so it is blue.', 1),
    ('colour', "It's a white car.", 3),
    ('colour', 'Therefore the car next to the bus must be red.', 0),
    ('size', 'Neither is bigger. They have the same size. So the answer is C.', 2),
    ('size', 'The red circle takes up more space than the blue square, so the red circle is larger.', 0),
    ('material', 'Cotton is soft. Leather is stiff. The glove is stiff. So it must be leather.', 3),
    ('material', 'The glove is rubber.', 0),
    ('organs', 'We see 1 organ on the left and 1 organ on the right, so the total is 2.', 1),
    ('points', '(B) is closer to the camera.', 1),
    ('points', 'Closer means lower in the image. B is lower. Hence the answer is B.', 1),
    ('place', 'The answer is to the left of the sofa.', 0),
    ('place', 'So the lamp is not behind the sofa but to the right of the sofa.', 1),
    ('higher', 'So the answer is A, the baseball glove.', 0),
    ('nested', 'So the largest object is the circle.', 2),
    ('nested', 'So the largest object is the red circle.', 1),
]

# Written after the rules and never used to change them.
HELD_OUT = [
    ('side', 'I look for the dog first. It is at the far right. Then I look for the cat. It is in the center. So relative to the cat, the dog is on the right. Answer B.', 1),
    ('side', 'The picture shows the dog to the left of the cat, so I answer left.', 0),
    ('side', "Since the dog's column is smaller, it is left.", 0),
    ('side', 'The cat is left of the dog, therefore the dog is right of the cat.', 1),
    ('side', 'Hmm, left or right? The dog is near the left border. So left.', 0),
    ('side', "So it's left. Hmm, wait. Let me check again. The dog is near the left border. Yes, so it is left.", 0),
    ('side', "So it's left. Hold on, the image might be mirrored.", -1),
    ('side', 'It seems the dog is to the right of the cat.', 1),
    ('side', 'The dog is on the left side of the image. The cat is on the right side. Thus the final answer is A.', 0),
    ('side', 'The answer would be left if the cat were the reference, but the reference is the dog.', -1),
    ('side', 'The dog is not on the right but on the left.', 0),
    ('side', 'Option (A) says left, option (B) says right. The dog is on the left.', 0),
    ('digits', "Counting the circles: red, blue, green. That's three. So the answer is B. 3.", 1),
    ('digits', 'There are three circles visible in the image.', 1),
    ('digits', 'I can count four circles. Therefore the answer is (C).', 2),
    ('digits', 'So the total number of circles is 5.', 3),
    ('digits', 'So there are 3 + 2 = 5 circles, which is option D.', 3),
    ('digits', 'There is 1 circle in column 1, and 2 circles in column 2.', -1),
    ('digits', 'I see 2. No, 3. So 3.', 1),
    ('digits', 'The answer cannot be 2. It cannot be 3 either.', -1),
    ('digits', '2 circles are red and 1 is blue. In total, 3 circles.', 1),
    ('digits', 'My count gives 4, so option C.', 2),
    ('yesno', "The mug rests on the table's surface. So it is yes.", 0),
    ('yesno', "I don't see a mug on the table. The answer should be no.", 1),
    ('yesno', 'Is the mug on the table? It is on the shelf. So no.', 1),
    ('animal', 'The horse is big but far. The dog is near. I conclude the dog is closer to the camera.', 0),
    ('animal', 'Which animal is closer? The cat, because it overlaps the dog. So the answer is B.', 1),
    ('animal', "It's a tough one, but I'd go for the cat.", 1),
    ('animal', 'Among the three, the cat is the closest to the camera.', 1),
    ('animal', 'The dog is in front of the cat and the horse. So it is the dog.', 0),
    ('animal', 'The dog and the horse are far away. That leaves the cat.', 1),
    ('colour', 'I see a bus with a car beside it. The car is white. Therefore: D', 3),
    ('colour', 'The bus is blue and the car is red. So the answer is (A) red.', 0),
    ('colour', 'The color is dark blue, so C.', 2),
    ('place', 'The lamp stands on the right of the sofa. So the answer is: to the right of the sofa.', 1),
    ('place', 'Clearly the lamp is behind the sofa.', 2),
    ('depth', 'The table is nearer than the chair, so the answer is table.', 1),
    ('depth', "Therefore, it's the chair that is closer to the camera.", 0),
    ('above', 'Therefore, the correct choice is: below', 1),
    ('camera', 'Everything moved to the left, meaning the camera rotated right and moved forward.', 0),
    ('holding', 'Looking at the yellow shirt, I can see a phone in the hand. So a phone.', 1),
    ('holding', 'The object is long and curved at the end. It is an umbrella.', 0),
    ('facing', 'The dog is facing to the left.', 2),
    ('facing', 'We see the back of the dog, so it is facing away from the camera.', 1),
    ('near', 'The door is closer to the sofa than the lamp.', 1),
    ('near', 'Lamp to sofa: about 1 meter. Door to sofa: about 3 meters. So the lamp is closer.', 0),
    ('points', 'A is at the back. B is at the front. So the closer one is B.', 1),
    ('algebra', '2x + 6 = 30, so 2x = 24 and x = 12.', 0),
    ('unsure', 'I can count 3 circles, so the answer is 3.', 1),
    ('unsure', "The image does not show it, so I'm not sure.", 2),
    ('material', 'Looks like leather to me. So the answer is leather.', 3),
    ('material', "It could be rubber or cotton. The sheen tells me it's rubber.", 0),
    ('size', 'Both shapes are of the same size. So it is the same size.', 2),
    ('front', 'The tree hides a wheel of the bicycle. So the bicycle is behind.', 1),
]
# fmt: on


def rates(traces):
    """(precision, coverage, [mistakes]) of the judge on labelled traces."""
    output = right = concluded = 0
    wrong = []
    for name, think, label in traces:
        got = conclude(think, *ITEMS[name])
        concluded += label >= 0
        output += got >= 0
        right += got == label and got >= 0
        if got >= 0 and got != label:
            wrong.append((name, think, got))
    return right / output, right / concluded, wrong


def test_every_developed_trace_is_read_right_or_left_undecided():
    precision, coverage, wrong = rates(TRACES)
    assert not wrong
    assert precision == 1 and coverage >= 0.98


def test_held_out_traces_reach_the_aim():
    precision, coverage, wrong = rates(HELD_OUT)
    assert precision >= 0.99, wrong
    assert coverage >= 0.90


def test_traces_from_after_rl_that_were_labelled_by_reading_reach_the_aim():
    """260 thinks of the demo's two recipes after RL, 65 of each condition; who labelled
    them and how: vlmrl/README.md, Measured."""
    rows = verdicts.of_labels(labels.read(Path(__file__).with_name("after_rl.jsonl")))
    assert Counter(r.condition for r in rows) == dict.fromkeys(
        ("base", "wrong_caption", "wrong_think", "wrong_think_but"), 65
    )
    output = ask(JUDGE, [row.item for row in rows])
    actual = agree.against([r.truth for r in rows], output, [r.cluster for r in rows])
    assert actual.precision.value >= 0.99 and actual.coverage.value >= 0.90, actual


@pytest.mark.parametrize(
    "think, index",
    [
        ("So it is left, answer B.", -1),
        ("So it is left, answer A.", 0),
        ("The dog is left of the cat, answer B.", -1),
        ("It is right, answer: B", 1),
        ("So it is not left, answer B.", 1),
        ("The dog is left. So the answer is B.", 1),  # the last judgement counts
    ],
)
def test_a_text_and_a_letter_that_contradict_each_other(think, index):
    assert conclude(think, "Where is the dog?", ("left", "right")) == index


@pytest.mark.parametrize("by", ["letter", "text"])
def test_scenes_style_is_read_whole_cut_retracted_and_sampled(by):
    question = "Is the red circle left or right of the blue square?"
    options = ("right", "left")

    def think(k):
        end = (
            f"So the answer is {'AB'[k]}."
            if by == "letter"
            else f"So it is {options[k]}."
        )
        return f"The red circle is {options[k]} of the blue square. {end}"

    steps = "The red circle is in column two. The blue square is in column one. Two is more than one. "
    for k in range(2):
        other = think(1 - k)
        assert conclude(think(k), question, options) == k
        assert conclude(steps + think(k), question, options) == k
        assert conclude(steps, question, options) == -1  # cut before it concludes
        assert conclude(other[:-1] + " but I think", question, options) == -1
        assert conclude(f"{other[:-1]} but I think {think(k)}", question, options) == k
        assert conclude(f"{other} {steps}{think(k)}", question, options) == k
        assert conclude(f" it is {options[k]}.", question, options) == k


@pytest.mark.parametrize(
    "think, index",
    [
        ("One is in row one column two. That makes two. So it is two.", 1),
        ("One is in row one column two. Two is in row two column one.", -1),
        ("So it is 2.", 1),
        ("So the answer is B. So the answer is C.", 2),
        ("So the answer is B or C.", -1),
        ("So the answer is (B) three.", -1),  # letter and text disagree
        ("So the answer is F.", -1),  # no such option
        ("So the answer is not B.", -1),
        ("So the answer is В.", -1),  # Cyrillic
        ("So the answer is Ｂ.", -1),  # fullwidth
        ("A circle is red.", -1),  # an article, no letter
        ("So it is one of them.", -1),
        ("So it is 2.5.", -1),
        ("So it is 12.", -1),
    ],
)
def test_numbers_and_letters(think, index):
    options = ("one", "two", "three", "four")
    assert conclude(think, "How many circles are there?", options) == index


def test_longest_option_text_wins():
    options = ("red", "red circle", "circle", "dark red circle")
    for index, text in enumerate(options):
        assert conclude(f"So it is the {text}.", "Which is largest?", options) == index


def test_an_option_text_shared_by_two_options_decides_nothing():
    assert conclude("So it is left.", "Where is it?", ("left", "Left.")) == -1
    assert conclude("So the answer is B.", "Where is it?", ("left", "Left.")) == 1


def test_a_letter_that_is_another_options_text_decides_nothing():
    assert conclude("So the answer is B.", "Which is closer?", ("B", "A")) == -1
    assert conclude("So the answer is B.", "Which is closer?", ("A", "B")) == 1


def test_nothing_to_conclude():
    assert conclude("So the answer is B.", "Which?", ()) == -1
    assert conclude("", "Which?", ("a", "b")) == -1
    assert conclude(" \n ", "Which?", ("", "")) == -1


def test_verdicts():
    side = ITEMS["side"]
    think = "So it is left."
    assert verdict(think, 0, *side) == "consistent"
    assert verdict(think, 1, *side) == "inconsistent"
    assert verdict(think, -1, *side) == "undecided"  # nothing was answered
    assert verdict("Hmm.", 0, *side) == "undecided"
    assert verdict(think, 0, *side, applicable=False) == "not_applicable"


def test_applicable_needs_a_think_of_the_models_own():
    refused = {name for name in ORDER if not applicable(name)}
    assert refused == {"no_cot", "stop_think", "abstain+no_cot", "abstain+stop_think"}


_WORDS = st.sampled_from(
    "so the answer is A B (C) left right two 2 not wait, but I think no, yes. It . , \n"
    " if or and boxed{ } $ therefore must be ? : ; \ue000t0\ue001 \\boxed{B} it's".split(
        " "
    )
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_WORDS, max_size=40).map(" ".join) | st.text(max_size=80), st.data())
def test_any_text_gives_an_option_or_undecided(think, data):
    texts = st.text(max_size=6) | st.sampled_from(["left", "two", "2", "A", "yes", "("])
    options = tuple(data.draw(st.lists(texts, max_size=5)))
    got = conclude(think, data.draw(st.text(max_size=20)), options)
    assert -1 <= got < max(len(options), 1)
    if not options:
        assert got == -1


@pytest.mark.parametrize(
    "unit",
    ["so it is left ", "left, ", "A ", " ", "\n", "(", "not the ", "wait, ", "$"],
)
def test_degenerate_text_takes_bounded_time(unit):
    start = time.process_time()
    conclude(unit * (40_000 // len(unit)), *ITEMS["side"])
    assert time.process_time() - start < 5
