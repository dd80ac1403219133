"""One prefix, many branches: prefix cache, attention, sampling, scoring,
option probabilities."""
