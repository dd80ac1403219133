"""The endpoint and the budget that flags of `ask`, `judge` and `data texts` name."""

from __future__ import annotations

from pathlib import Path

from vlmrl.client.cache import Budget
from vlmrl.client.http import Endpoint
from vlmrl.judges.named import JudgeOptions

# Flags that change how a result is reached, not what it is.
_NOT_IN_CONFIG = (
    "args concurrency attempts budget_tokens budget_cost prompt_price completion_price"
    " again"
).split()


def config_of(flags, *others: str) -> dict:
    """Return the flags that belong to a run's config: not `others`, for example."""
    return {k: v for k, v in vars(flags).items() if k not in (*_NOT_IN_CONFIG, *others)}


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


def judge_options(flags, cache: Path) -> JudgeOptions:
    """Return how `judge` sets up the judges that --judge names."""
    return JudgeOptions(
        endpoint(flags),
        params={"temperature": flags.temperature, "max_tokens": flags.max_tokens},
        cache=cache,
        budget=budget(flags),
        again=flags.again,
        prompt_file=flags.prompt,
        sure=flags.sure,
        brief=flags.brief,
    )
