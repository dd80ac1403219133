"""What a job needs on a machine that nobody here has."""
