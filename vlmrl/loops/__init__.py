"""What runs for hours: GRPO, supervised fine-tuning, evaluation."""
