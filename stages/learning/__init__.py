"""Models: the factory, how frames enter the processor, supervised and reinforcement training, generation."""
