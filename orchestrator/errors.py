"""What a user can get wrong, as exceptions that the CLI prints in one message, without traceback,
exit code 2.

UserError
├── SpecError        the sweep file: every fault in one message
├── StoreError       the MLflow store: unreachable at a verb that needs it, or an experiment that
was deleted ├── SweepLocked      another driver works on this sweep
└── NothingRecorded  analyse or report before anything was measured
"""


class UserError(ValueError):
    """The request was wrong; the message says what, where, and what to do."""


class SpecError(UserError):
    """A fault in the sweep file. `faults` are lines, each with its place in the file."""

    def __init__(self, path: str, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(f"{path}: {fault}" for fault in faults))


class StoreError(UserError):
    """The MLflow store cannot do what a verb needs of it."""


class SweepLocked(UserError):
    """Another driver holds this sweep's results folder."""


class NothingRecorded(UserError):
    """There are no records to analyse yet."""
