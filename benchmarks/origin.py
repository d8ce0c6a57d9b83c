"""Origin of a figure, as every result file states it."""

from ic_jax.measuring.origin import commit_of, origin

__all__ = ["commit_of", "origin"]
