"""`python -m train new`: a commented recipe for a data set, a model and these devices."""
