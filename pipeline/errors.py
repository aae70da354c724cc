"""What can go wrong through no fault of the program, said in one line that names the next step."""


class UserError(Exception):
    """A mistake or a lack that its reader can mend. The message is one line: what, the allowed values, what to do next."""


class DataMissing(UserError):
    """There are no photos to work on."""


class BadImage(Exception):
    """One photo cannot be used. The message is the reason, as it stands in ``skipped.csv``."""
