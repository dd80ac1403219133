"""A run: its directory, its phases, its hosts, its checkpoints."""
