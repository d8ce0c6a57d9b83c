"""Fuzzing of all readers of files that others wrote."""
