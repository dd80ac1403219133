"""Judges: what option does a chain of thought conclude?

A judge reads text only, never the image: the think, the question and the options give
the index of the option that the think finally concludes, or -1 where it does not say
or the judge can't tell. `rule.verdict` turns a conclusion and the parsed answer into
'consistent', 'inconsistent', 'undecided' or 'not_applicable'; those labels are the same
whichever judge concluded.

  rule   cues, letters and option texts by rule: no model, deterministic, says undecided
         rather than guessing
"""
