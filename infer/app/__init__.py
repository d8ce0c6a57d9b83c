"""Page of `python -m infer app`: the engine's pictures in a browser."""
