"""What can go wrong in a way that the user can mend."""


class InvalidInput(ValueError):
    """Something given to ARNAS cannot be used; one sentence names the value, the place and what would be right."""


class Diverged(RuntimeError):
    """A loss is no longer finite; the last good checkpoint is kept."""


class Interrupted(SystemExit):
    """The stage was asked to stop (SIGINT, SIGTERM), saved its state and leaves with a non-zero exit status."""

    def __init__(self, stage: str, signal_number: int):
        super().__init__(128 + signal_number)
        self.message = f"{stage} was interrupted; its state is saved and the same command goes on from there."


class ProcessLost(RuntimeError):
    """One of the processes that train together was killed; the others were stopped, the last checkpoint is kept."""

    def __init__(self, stage: str, rank: int, processes: int, signal_number: int):
        super().__init__(
            f"{stage}: process {rank} of {processes} (counted from 0) was killed by signal {signal_number}, often for "
            "want of memory, and the others were stopped; the same command goes on from the last checkpoint."
        )
