"""LoRA files in every layout that has matrices for FLUX, and LoRAs applied to models."""
