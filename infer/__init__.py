"""Application: draw pictures (`python -m infer`)."""
