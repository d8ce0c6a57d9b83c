"""What is wrong with a data set."""


class DataError(ValueError):
    """A data set that cannot be used; one line: where, what is wrong, what to do."""

    exit_code = 4
