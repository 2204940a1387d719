"""`jaxtune quickstart`: a tiny Llama that ships with the package, and its first fine-tuning."""
