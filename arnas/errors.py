"""What can go wrong in a way that the user can mend."""


class InvalidInput(ValueError):
    """Something given to ARNAS cannot be used; one sentence names the value, the place and what would be right."""


class Diverged(RuntimeError):
    """A loss is no longer finite; the last good checkpoint is kept."""


class Unreachable(RuntimeError):
    """The object store stayed away for longer than the longest outage; what was saved before is kept."""


class Interrupted(SystemExit):
    """The stage was asked to stop (SIGINT, SIGTERM), saved its state and leaves with a non-zero exit status.

    Args:
        stage: Name for the message.
        signal_number: What asked.
        saved: Whether its state is; where it is not, or nobody knows (None), the last checkpoint stays.
    """

    def __init__(self, stage: str, signal_number: int, saved: bool | None = True):
        super().__init__(128 + signal_number)
        told = {
            True: "its state is saved and the same command goes on from there",
            False: "its last steps could not be saved since the store is away; "
            "the same command goes on from those before",
            None: "the same command goes on from its last checkpoint",
        }
        self.message = f"{stage} was interrupted; {told[saved]}."


class ProcessLost(RuntimeError):
    """One of the processes that train together was killed; the others were stopped, the last checkpoint is kept."""

    def __init__(self, stage: str, rank: int, processes: int, signal_name: str):
        super().__init__(
            f"{stage}: process {rank} of {processes} (counted from 0) was killed by {signal_name}, and the others were "
            "stopped; if memory ran out, give more or use fewer processes. The same command goes on from the last "
            "checkpoint."
        )
