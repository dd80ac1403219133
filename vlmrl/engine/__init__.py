"""One prefix, many branches: attention over a chain of segments, generation, scoring."""
