"""What can go wrong through no fault of the program, said in one line that names the next step."""


class UserError(Exception):
    """A mistake or a lack that its reader can mend. The message is one line: what, the allowed values, what to do next."""


class DataMissing(UserError):
    """There are no photos to work on."""


class BadImage(Exception):
    """One photo cannot be used. The message is the reason, as it stands in ``skipped.csv``."""


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand in a line of ours."""
    # TensorFlow puts a heading and the place of the node before what happened.
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith(("Graph execution error", "Detected at ", "Node: "))]
    return next((line[:200] for line in lines if line), type(error).__name__)
