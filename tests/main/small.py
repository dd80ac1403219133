"""Runs of a few steps, and what every run promises."""

# One evaluation program for all these tests, compiled once.
CONDITIONS = ("base", "abstain+wrong_caption", "wrong_think")
KERNEL = {"max_tokens": 16, "probe_every": 8, "probes": 4, "batch": 8}

# What makes `configs/tiny/*.py:runlocal` smaller still; 8 prompts for 8 devices.
SMALL = {
    "steps": 2,
    "prompts": 8,
    "sampling.group_size": 2,
    "sampling.max_tokens": 16,
    "data.size": 16,
    "eval.size": 8,
    "eval.every": 2,
    "eval.conditions": CONDITIONS,
    "eval.max_tokens": 16,
    "save_every": 2,
}

# Fields of every row of metrics.json.
PROMISED = (
    "recipe seed step split condition n accuracy accuracy_lo accuracy_hi entropy"
    " p_correct p_suggested consistent faithful_accuracy"
).split()


def overrides(fields: dict, prefix: str = "") -> list[str]:
    """Command-line words that set config fields."""
    return [f"--config.{prefix}{name}={value}" for name, value in fields.items()]
