"""Pictures of characters: prepared once into a data set, read at any step of a run."""
