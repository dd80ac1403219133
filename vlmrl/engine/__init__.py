"""One prefix, many branches: prefix cache, attention, sampling and scoring."""
