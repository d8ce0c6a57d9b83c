"""The error of unusable data sets."""


class DataError(ValueError):
    """Unusable data set; the message is one line: where, what is wrong, what to do."""

    exit_code = 4
