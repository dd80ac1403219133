"""RL fine-tuning of vision-language models in JAX, and what it does to them.

The public names are resolved when first used (PEP 562), so that `import vlmrl` and
`vlmrl --help` import neither JAX nor anything else that takes long.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmrl.loops.evaluate import evaluate, score_options
    from vlmrl.loops.grpo import train
    from vlmrl.policy import load
    from vlmrl.rl.rewards import Reward
    from vlmrl.types import Completion, Example, Record

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Example",
    "Record",
    "Reward",
    "__version__",
    "evaluate",
    "load",
    "score_options",
    "train",
]

_MODULES = {
    "Completion": "vlmrl.types",
    "Example": "vlmrl.types",
    "Record": "vlmrl.types",
    "Reward": "vlmrl.rl.rewards",
    "evaluate": "vlmrl.loops.evaluate",
    "load": "vlmrl.policy",
    "score_options": "vlmrl.loops.evaluate",
    "train": "vlmrl.loops.grpo",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'vlmrl' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
