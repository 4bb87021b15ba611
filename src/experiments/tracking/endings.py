"""Why a run or a job has failed or was killed."""

import signal
from dataclasses import dataclass

from experiments.errors import reason_of
from experiments.tracking.store import StoreLost

_SIGNALS = {number.value: number.name for number in signal.Signals}


@dataclass(frozen=True)
class Ending:
    """The status of a run that has not finished, and why."""

    status: str  # FAILED, or KILLED from outside
    reason: str  # one word, such as error, exit, signal, timeout or memory
    failure: str  # in words

    @property
    def tags(self) -> dict[str, object]:
        """The tags of the run that say it."""
        return {"reason": self.reason, "failure": self.failure}

    @classmethod
    def of(cls, error: BaseException) -> "Ending":
        """How an exception ends a run."""
        if isinstance(error, JobDied):
            return error.ending
        if isinstance(error, KeyboardInterrupt):
            return cls("KILLED", "interrupted", "SIGINT")
        if isinstance(error, SystemExit):
            return cls.of_exit_code(error.code)
        if isinstance(error, StoreLost):
            return cls("FAILED", "store", str(error))
        kind, failure = type(error).__name__, reason_of(error)
        if not failure.startswith(f"{kind}:"):  # as in what TensorFlow says of the user's code
            failure = f"{kind}: {failure}" if failure else kind
        # TensorFlow has an exception of its own for it.
        is_memory = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
        return cls("FAILED", "memory" if is_memory else "error", failure)

    @classmethod
    def of_exit_code(cls, code: int | str | None) -> "Ending":
        """How a process has ended: with an exit status, or by signal n, whose code is -n or 128 + n."""
        if isinstance(code, int) and (code < 0 or code - 128 in _SIGNALS):
            number = -code if code < 0 else code - 128
            return cls("KILLED", "signal", _SIGNALS.get(number, f"signal {number}"))
        return cls("FAILED", "exit", f"exit status {code or 0}")


class JobDied(Exception):
    """A job has ended without a result."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending
        super().__init__(ending)

    def __str__(self) -> str:
        return self.ending.failure
