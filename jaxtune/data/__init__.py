"""Rows of text to static-shape batches."""
