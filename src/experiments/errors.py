"""The exception for mistakes of the user; imports nothing of this package."""

import difflib
from collections.abc import Iterable

_MOST_LISTED = 22  # allowed names that are shown; twice as many if none is near


class ExperimentError(Exception):
    """A mistake of the user: says what was given, what is allowed, the nearest name and what to do.

    The command line prints the message without a traceback and exits with status 2.

    Args:
        problem: what was given and why it cannot work, as a full sentence.
        given: the unknown name, if `allowed` lists the known ones.
        allowed: every name that would have worked; not shown if there are too many.
        advice: what to do instead, as a full sentence.
    """

    def __init__(self, problem: str, *, given: str = "", allowed: Iterable[str] = (), advice: str = "") -> None:
        names = sorted(allowed)
        question = did_you_mean(given, names)
        most = _MOST_LISTED if question else 2 * _MOST_LISTED
        listed = f"Allowed: {', '.join(names)}." if 0 < len(names) <= most else ""
        super().__init__(" ".join(part for part in (problem, question, listed, advice) if part))


class JobsFailed(Exception):
    """Jobs of a finished sweep have no result; its table has shown which."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A question with the name nearest to `given`, empty if none is near."""
    nearest = difflib.get_close_matches(given, list(allowed), n=1)
    return f"Did you mean {nearest[0]}?" if nearest else ""
