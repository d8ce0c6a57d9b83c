"""Small foundations (VAE, text and image encoders, FLUX) trained here from random weights."""
