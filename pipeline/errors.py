"""What can go wrong through no fault of the program, said in one line that names the next step."""


class UserError(Exception):
    """A mistake or a lack that its reader can mend. The message is one line: what, the allowed values, what to do next."""


class DataMissing(UserError):
    """There are no photos to work on."""


class BadImage(Exception):
    """One photo cannot be used. The message is the reason, as it stands in ``skipped.csv``."""


class PhotoChanged(BadImage):
    """A photo's file is not as it was when the run began, or cannot be read any more; by the next run it may be again."""


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand in a line of ours."""
    # Before what happened, TensorFlow tells where the node was made, and ends that with its name.
    before, _, after = str(error).rpartition("\nNode: ")
    text = after.partition("\n")[2] if before else after
    return next((line.strip()[:200] for line in text.splitlines() if line.strip()), type(error).__name__)


# Exit codes.
FAILED = 30
DATA_MISSING = 20
INTERRUPTED = 130  # as shells have it for Ctrl-C
CUT_OFF = 141  # as shells have it for a broken pipe
