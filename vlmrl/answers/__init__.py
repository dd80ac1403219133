"""One reading of an answer, for training, records, scores and imports.

reading.py   a whole assistant turn → strict and lenient reading, right or wrong
strict.py    the strict parser: <think>…</think><answer>…</answer>
lenient.py   what a fair reader would say the turn answers
phrases.py   words that announce an answer, correct it or conclude
mentions.py  the options that a clause names
tools.py     the parsers of other tools
kinds.py     the kinds of answer: option, number, maths, box, text
equality.py  does an answer equal the gold one, by its kind
numbers.py   numbers in digits and words, with units
maths.py     relations, tuples, intervals, sets, named quantities
latex.py     mathematical text as plain LaTeX
algebra.py   expressions: parse, evaluate, compare
values.py    boxes and edit distances
"""
