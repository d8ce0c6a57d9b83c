"""Benchmarks of drawing: `python -m infer bench`."""
