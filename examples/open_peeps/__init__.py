"""Open Peeps example: the world, training and evaluation of the small model."""
