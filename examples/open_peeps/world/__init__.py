"""Open Peeps as a world of characters: drawn, captioned, split and measured exactly."""
