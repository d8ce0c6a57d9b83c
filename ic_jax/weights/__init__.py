"""Weights on disk: MODEL folders, safetensors files, LoRA files, and loading them."""
