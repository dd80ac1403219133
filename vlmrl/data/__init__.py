"""Sources of Examples, one file per data set, and the loader that stores them.

`drawing` makes pictures, `scenes` asks about them, `traces` writes their supervised
targets; `images` is the one decoder of image files; `loader` stores Examples as a TFDS
data set and reads them back through grain.
"""
