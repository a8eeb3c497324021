"""The mistakes of a user, told apart from those of the program."""


class UserError(ValueError):
    """A request that cannot be met as it stands. One paragraph: what came, what is allowed, what to do.

    The command line prints it without a traceback and exits with 2.
    """
