"""One reading of an answer, for training, records, scores and imports.

reading.py   a whole assistant turn → strict and lenient reading, right or wrong
strict.py    the strict parser: <think>…</think><answer>…</answer>
lenient.py   what a fair reader would say the turn answers
tools.py     the parsers of other tools
equality.py  does an answer equal the gold one: option, number, maths, box, text
values.py    numbers, phrases and boxes in a text
"""
