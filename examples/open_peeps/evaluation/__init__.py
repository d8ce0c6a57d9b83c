"""How well a model draws whom it is shown and what it is told, measured against exact renders."""
