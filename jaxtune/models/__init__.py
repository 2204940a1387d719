"""The decoder, its families, and loading."""
