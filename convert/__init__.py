"""Conversion of published weights to MODEL folders and back: `python -m convert --help`."""
