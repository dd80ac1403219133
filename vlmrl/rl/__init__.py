"""Reinforcement learning as composable pure functions.

  rewards.py     host: a parsed answer and a verdict → a reward and its parts
  augment.py     host: an example id → the condition it is trained under
  advantages.py  float32[N,G] rewards → float32[N,G] advantages
  losses.py      log-probs, advantages and masks → sums and counts

None of them sees a model, a config or a logger. A new algorithm is a new function here
and its name in a config.
"""
