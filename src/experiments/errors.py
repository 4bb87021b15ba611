"""The exception for mistakes of the user; imports nothing of this package."""

import difflib
import re
import textwrap
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


def reason_of(error: BaseException) -> str:
    """What an exception says is wrong, in one line.

    Keras writes the reason in bold type between the name of a layer and its arguments; TensorFlow writes it after the
    lines of code that made the operation, and the name of the operation behind it.
    """
    bold = re.search(r"\x1b\[1m(.+?)\x1b\[0m", str(error), re.DOTALL)
    text = textwrap.dedent((bold[1] if bold else str(error)).removeprefix("in user code:"))
    without_code = re.sub(
        r'^(\s*File ".*|    .*|.*\(most recent call last\):|\s*\[\[.*|<stack .*)$', "", text, flags=re.MULTILINE
    )
    paragraph = re.split(r"(?<!:)\n\s*\n", without_code.removeprefix("Graph execution error:").strip())[0]
    return " ".join(re.sub(r"\{\{.*?\}\} | \[Op:.*", "", paragraph).split())


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A question with the name nearest to `given`, empty if none is near."""
    nearest = difflib.get_close_matches(given, list(allowed), n=1)
    return f"Did you mean {nearest[0]}?" if nearest else ""
