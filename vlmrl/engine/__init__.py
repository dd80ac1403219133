"""One prefix, many branches: chains of links, generation, scoring."""
