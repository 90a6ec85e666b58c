"""The exceptions that the command line prints as a single line."""


class InputError(ValueError):
    """Bad input from the user. The message names the thing, its value, what was expected and the way out."""


class DivergedError(RuntimeError):
    """A training run whose gradients stay NaN or infinite. The message says when, and what to try."""
