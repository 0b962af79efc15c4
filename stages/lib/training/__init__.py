"""The training loop, its checkpoints, LoRA, and the mixture of tasks."""
