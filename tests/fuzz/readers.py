"""All readers of files that others wrote, by name."""

from tests.fuzz import data, texts, weights

READERS = weights.READERS | data.READERS | texts.READERS
