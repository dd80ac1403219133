"""Evaluation: the one-pass kernel, the records it fills, and the statistics on them.

  records.py  Record rows ⇄ Parquet, the measures of a row, and metrics.json rows
  stats.py    intervals that know about clusters, pairs and seeds; AUROC

`stats` is numpy and scipy alone, so that it can be checked by hand.
"""
