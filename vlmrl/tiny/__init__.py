"""The toy models that ship with the project, and how they were made."""
