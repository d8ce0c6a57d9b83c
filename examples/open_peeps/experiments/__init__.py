"""Experiments with the adapter: each writes its results as JSON, and a picture, beside itself."""
