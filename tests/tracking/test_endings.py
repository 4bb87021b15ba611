"""What an exception or an exit code says about how a run has ended."""

import pickle
import signal

import pytest

from experiments.tracking.endings import Ending, JobDied
from experiments.tracking.store import StoreLost

TIMEOUT = Ending("KILLED", "timeout", "took longer than 3 minutes")


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ValueError("spoiled"), Ending("FAILED", "error", "ValueError: spoiled")),
        (ValueError("first\n  last\n"), Ending("FAILED", "error", "ValueError: first last")),
        (ValueError(), Ending("FAILED", "error", "ValueError")),
        (MemoryError(), Ending("FAILED", "memory", "MemoryError")),
        (KeyboardInterrupt(), Ending("KILLED", "interrupted", "SIGINT")),
        (SystemExit(3), Ending("FAILED", "exit", "exit status 3")),
        (SystemExit(), Ending("FAILED", "exit", "exit status 0")),
        (SystemExit("enough"), Ending("FAILED", "exit", "exit status enough")),
        (SystemExit(128 + signal.SIGTERM), Ending("KILLED", "signal", "SIGTERM")),
        (StoreLost("The store is gone."), Ending("FAILED", "store", "The store is gone.")),
        (JobDied(TIMEOUT), TIMEOUT),
    ],
    ids=repr,
)
def test_how_an_exception_ends_a_run(error, ending):
    assert Ending.of(error) == ending


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (0, Ending("FAILED", "exit", "exit status 0")),
        (255, Ending("FAILED", "exit", "exit status 255")),
        (-signal.SIGKILL, Ending("KILLED", "signal", "SIGKILL")),
        (128 + signal.SIGABRT, Ending("KILLED", "signal", "SIGABRT")),
        (-40, Ending("KILLED", "signal", "signal 40")),
    ],
)
def test_how_a_process_has_ended(code, ending):
    assert Ending.of_exit_code(code) == ending


def test_an_ending_goes_from_one_process_to_another():
    died = pickle.loads(pickle.dumps(JobDied(TIMEOUT)))  # noqa: S301 - written by this test
    assert (died.ending, str(died)) == (TIMEOUT, "took longer than 3 minutes")
