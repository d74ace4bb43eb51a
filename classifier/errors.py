"""The one error for a user's mistakes."""


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what was expected, what came, and what to do.

    Commands turn it, and nothing else, into one line without a traceback.
    """
