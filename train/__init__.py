"""Training the adapter: data, stages, step and loop. `python -m train`."""
