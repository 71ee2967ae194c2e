"""The one exception a user's own mistake may end in."""


class UserError(Exception):
    """Bad input or configuration: one line that says what, where, its value and what would be right.

    Command lines print the message without a traceback and exit with status 2 (`electra_jax.cli`).
    """


class RunFailed(Exception):
    """A run that cannot go on through no fault of its configuration, a NaN loss for one: exit status 1."""
