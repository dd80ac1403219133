"""Reinforcement learning as composable pure functions.

On the host, from text to numbers:
  augment.py           an example id → the condition or image it is trained under
  rewards.py           a `types.Completion` → a reward; shaping terms
  consistency.py       verdicts without a judge: blind probe, shuffled options
  cot_statistics.py    statistics of a chain of thought: evidence, template, copies
  controllers.py       coefficients that follow a measurement
  check.py             refuse recipes that contradict themselves

On the device:
  advantages.py        float32[N,G] rewards → float32[N,G] advantages
  losses/              log-probs, advantages and masks → sums and counts

None of these sees a model, a config or a logger. A new algorithm is a new function here
and its name in a config, or a function of a file of one's own (`user_code.py`).

What puts them together:
  recipe.py            what a run chooses, as one nested record
  rollouts.py          prompts → completions (`types.Completion`), judged → rewards
  verdict_source.py    who gives the verdicts; cot_probe.py: the policy itself
  completion_terms.py  measured terms of a completion, by name
  batch_advantages.py  rewards of a batch → advantages and loss mask
  replay.py            past groups that replace groups without a gradient
  learner.py           a training batch → one update (update.py)
  step_metrics.py      metrics of a step; coefficients of the next one
  loop.py              all of it, in order
  rollout_log.py       sample rollouts on disk
"""
