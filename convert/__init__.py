"""Published weights to MODEL folders and back: `python -m convert --help`."""
