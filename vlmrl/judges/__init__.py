"""Judges: does the answer follow from what the chain of thought concludes?

A judge reads text only, never the image: question, options, chain of thought and
answer. Its label is 'consistent', 'inconsistent' or 'undecided'; 'not_applicable' is
where there is nothing to judge. The labels are the same for every judge.

  judge        the interface; cascade, majority; judging records again
  rule         patterns, letters and option texts: no model, deterministic, undecided
               rather than guessing
  model        a JAX model of this project: the probabilities of two verdict tokens
  chat         a model behind an OpenAI-compatible endpoint (`client/`)
  named        judges by name, as commands and configs give them
  async_judge  judging beside other work, up to a time limit
  prompt       the judge prompt, a file with a version and a hash
  agree        agreement of judges with each other and with the truth
  synthetic    traces whose conclusions are known by construction
  labels       labels by people, and the labelling sheet they fill in
  verdicts     the rows that are judged, and the file of their verdicts
"""
