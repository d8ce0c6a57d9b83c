"""Planning: what a program needs on devices that are not attached."""
