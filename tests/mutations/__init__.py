"""Small deliberate errors, each with the test that catches it: `python -m tests.mutations`."""
