"""RL fine-tuning of vision-language models in JAX, and what it does to them."""

__version__ = "0.1.0"
