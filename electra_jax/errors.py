"""The exceptions that end in one line."""


class UserError(Exception):
    """Bad input or configuration: one line that says what is wrong, where, its value, and what would be right.

    Command lines print the message without a traceback and exit with status 2 (`electra_jax.cli`).
    """


def missing_extra(what: str, extra: str) -> UserError:
    """The error for `what`, such as a setting, that needs the packages of an extra that is not installed."""
    return UserError(f"{what} needs an extra: pip install 'electra_jax[{extra}]'")


class OthersFailed(Exception):
    """Other processes of the run, or a bucket, cannot be reached or have failed: nothing is wrong here, and a retry may work.

    One line, and exit status 75, which is EX_TEMPFAIL of sysexits.h.
    """


class RunFailed(Exception):
    """A run that cannot go on, and would fail again at the same place: a loss that is NaN, or too little memory. Exit status 3."""
