"""The one exception that a user causes and can cure."""


class UserError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do.

    Command lines print it without a traceback and exit with code 2; everything else that is raised is a defect of ours.
    """
