"""Training: loop, checkpoints, LoRA, and the mixture of tasks."""
