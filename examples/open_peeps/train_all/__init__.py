"""The small model from nothing within minutes, by one command that can go on anywhere."""
