"""Reinforcement learning as composable pure functions.

On the host, from text to numbers:
  augment.py      an example id → the condition or image it is trained under
  rewards.py      a parsed answer and a verdict → a reward and its parts; shaping terms
  verify.py       is this open answer the same as that?
  consistency.py  verdicts without a judge: blind probe, shuffled options
  guards.py       what a think is made of: evidence, template, variety, copies
  controllers.py  weights that follow what was measured
  check.py        does a recipe contradict itself?

On the device:
  advantages.py   float32[N,G] rewards → float32[N,G] advantages
  losses/         log-probs, advantages and masks → sums and counts

None of them sees a model, a config or a logger. A new algorithm is a new function here
and its name in a config.

What puts them together:
  recipe.py       what a run chooses, as one record
  rollouts.py     one draw: completions, verdicts (verdicts.py, reread.py), rewards
  measure.py      terms of a completion by name; guards of a batch
  signals.py      what was earned → advantages, and who takes part
  replay.py       past groups that stand in for idle ones
  learner.py      one draw → one update (update.py)
  dynamics.py     what a step showed; weights of the next
  loop.py         all of it, in order
  keep.py         sample rollouts on disk
"""
