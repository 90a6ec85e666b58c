"""The one exception the command line prints as a single line: bad input that the user can mend."""


class InputError(ValueError):
    """Bad input from the user. The message names the thing, its value, what was expected and the way out."""
