"""InstantCharacter in JAX."""
