"""Sources of Examples, one file per data set, and how they are stored and read.

drawing, scenes, traces   the procedural source: pictures, questions, SFT targets
sets                      the published sets by name; each file says how its rows read
reading                   shared by those files: rows, cells, options, image cells
own                       your own data, with no code
fetch                     download published files
build, prepare            rows → Examples on disk, repaired or refused with a reason
statements                question and option → a sentence asserting it
distractors               wrong answers to questions that come without options
texts                     those sentences in a file, released or rewritten by a model
check                     counts, balance, duplicates, label noise of a prepared set
features, loader          Examples as a TFDS data set, and the stream training reads
distributed               the stream read by several processes, each its own part
distort                   image perturbations
images                    the one decoder of image files
"""
