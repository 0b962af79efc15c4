"""Cost of GRPO on video: against plain TRL, of the loss alone, and how it grows."""
