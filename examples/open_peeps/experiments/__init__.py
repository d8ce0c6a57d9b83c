"""Experiments: each a script with its results as JSON and a picture beside it."""
