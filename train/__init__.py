"""Training of the adapter or a style LoRA: data, stages, step and loop. `python -m train`."""
