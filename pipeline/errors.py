"""What can go wrong through no fault of the program, said in one line that names the next step."""


class UserError(Exception):
    """A mistake or a lack that its reader can mend. The message is one line: what, the allowed values, what to do next."""


class DataMissing(UserError):
    """There are no photos to work on."""


class BadImage(Exception):
    """One photo cannot be used. The message is the reason, as it stands in ``skipped.csv``."""


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand in a line of ours."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
