"""InputError: what a user can mend, said in one message."""


class InputError(ValueError):
    """Bad input: a config, a file, a size. The command line prints the message alone and exits with code 2.

    The message says who needs what, what came, and what would do.
    """


class NotFinite(InputError):
    """A loss or gradient that is not finite, found in all processes before the weights change."""


class NoTokenizer(InputError):
    """An objective needs a visual tokenizer that its backbone does not have."""


class UnreadablePicture(InputError):
    """A picture that is missing, corrupt or too large; data that skip go on without it."""
