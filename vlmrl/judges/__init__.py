"""Judges: does the answer follow from what the chain of thought concludes?

A judge reads text only, never the image: question, options, think and answer. It says
'consistent', 'inconsistent' or 'undecided'; 'not_applicable' is where there is nothing
to judge. Those labels are the same whichever judge gave them.

  judge        the interface; cascade, majority; judging records again
  rule         patterns, letters and option texts: no model, deterministic, says
               undecided rather than guessing
  model        a JAX model of this project: the probabilities of two verdict tokens
  http         a careful client of OpenAI-compatible endpoints: budget, cache, retries
  chat         the judge behind such an endpoint
  named        judges by name, as commands and configs give them
  desk         a judge at work beside other work, up to a set time
  prompt       the judge prompt, a file with a version and a hash
  agree        agreement of judges with each other and with the truth
  constructed  thinks whose conclusions are known because they were written to be
  labels       labels that people gave, and the sheet they fill in
  verdicts     the rows that are judged and the file of what was said
"""
