"""Evaluation: the one-pass kernel, the records it fills, and the statistics on them.

  kernel.py          generate under every condition and score, in one program
  records.py         Record rows ⇄ Parquet; record_builder.py builds one
  measures.py        measures of a row, cells, rows of metrics.json
  stats.py           intervals over clusters, pairs and seeds; AUROC

`stats` is numpy and scipy alone, so that it can be checked by hand.
"""
