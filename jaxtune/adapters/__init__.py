"""LoRA: which modules get it, counting, and its PEFT form."""
