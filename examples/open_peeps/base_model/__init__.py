"""Base model of the small model: VAE, FLUX, text and image encoders, from random weights."""
