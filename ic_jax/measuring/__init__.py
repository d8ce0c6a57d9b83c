"""Measuring: what programs do on devices that are attached, with random weights of a named size."""
