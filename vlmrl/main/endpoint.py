"""The endpoint and the budget that flags of `ask`, `judge` and `data texts` name."""

from __future__ import annotations

from vlmrl.client.cache import Budget
from vlmrl.client.http import Endpoint

# Flags that change how a result is reached, not what it is: not part of a run's config.
NOT_IN_CONFIG = (
    "args concurrency attempts budget_tokens budget_cost prompt_price completion_price"
    " again"
).split()


def endpoint(flags, model: str = "") -> Endpoint:
    """Return the endpoint that --url, --key_env and the like describe."""
    names = ("key_env", "insecure", "concurrency", "attempts")
    given = {name: getattr(flags, name) for name in names if hasattr(flags, name)}
    return Endpoint(flags.url, model, **given)


def budget(flags) -> Budget:
    """Return the budget of --budget_tokens, --budget_cost and the two prices."""
    return Budget(
        flags.budget_tokens,
        flags.budget_cost,
        flags.prompt_price,
        flags.completion_price,
    )
