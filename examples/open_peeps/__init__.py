"""Open Peeps: everything that made and measures the small model."""
