"""Evaluation of a model on held-out people, measured against exact renders."""
