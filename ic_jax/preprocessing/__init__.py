"""Preprocessing: pictures, prompts and arguments, checked and made ready for the models."""
