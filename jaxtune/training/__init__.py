"""The pure training step and the trainer over it."""
