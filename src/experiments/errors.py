"""The one exception for mistakes of a user; imports nothing of this package."""

import difflib
from collections.abc import Iterable

_MOST_LISTED = 22  # names beside the nearest one, and twice as many when none is near


class ExperimentError(Exception):
    """A mistake that its author can mend: what was given, what is allowed, the nearest name, what to do.

    The command prints the message without a traceback and exits with status 2.

    Args:
        problem: what was given and why it cannot work; a full sentence.
        given: the unknown name, when `allowed` lists the known ones.
        allowed: every name that would have worked; too long a list is left out.
        advice: what to do instead; a full sentence.
    """

    def __init__(self, problem: str, *, given: str = "", allowed: Iterable[str] = (), advice: str = "") -> None:
        names = sorted(allowed)
        question = did_you_mean(given, names)
        most = _MOST_LISTED if question else 2 * _MOST_LISTED
        listed = f"Allowed: {', '.join(names)}." if 0 < len(names) <= most else ""
        super().__init__(" ".join(part for part in (problem, question, listed, advice) if part))


class JobsFailed(Exception):
    """A sweep is over, and not all of its jobs have a result; the table has said which."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A question with the name nearest to `given`, or nothing when none is near."""
    nearest = difflib.get_close_matches(given, list(allowed), n=1)
    return f"Did you mean {nearest[0]}?" if nearest else ""
