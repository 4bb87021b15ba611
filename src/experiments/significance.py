"""Intervals, tests and the seeds they need: SciPy and statsmodels do the arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number and, where one can be had, its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""  # what the interval is made from: "t over seeds", "Wilson over images", …
