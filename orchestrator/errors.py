"""What the CLI prints in one message, without traceback: what a user can get wrong (exit code 2),
and what can stop a sweep through no fault of theirs (exit code 1).

UserError
├── SpecError        the sweep file: every fault in one message
├── StoreError       the MLflow store: unreachable at a verb that needs it, or an experiment that
│   │                was deleted
│   └── StoreRefused it lets us in neither now nor later: a wrong password, a wrong name for it
├── SweepLocked      another driver works on this sweep
└── NothingRecorded  analyse or report before anything was measured
SweepStopped
├── LeaseLost        another driver has taken this sweep over
├── DiskFull         records or results cannot be written
└── EngineLost       the cluster that ran the cells is gone
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


class StoreRefused(StoreError):
    """The MLflow store lets us in neither now nor later: waiting for it is of no use."""


class SweepLocked(UserError):
    """Another driver holds this sweep's results folder."""


class NothingRecorded(UserError):
    """There are no records to analyse yet."""


class SweepStopped(RuntimeError):
    """A sweep cannot go on here; what it has recorded is kept. The message says what to do."""


class LeaseLost(SweepStopped):
    """Another driver has taken over the sweep: this one may write nothing more."""


class DiskFull(SweepStopped):
    """The disk takes nothing more."""


class EngineLost(SweepStopped):
    """What ran the cells went away in the middle."""
