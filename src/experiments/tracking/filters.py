"""Filters of runs: MLflow's search syntax, and numbers of parameters, which MLflow itself compares as text only."""

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from experiments.tracking.runs import StoredRun

_COMPARE = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "=": operator.eq, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_AND = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|\s(and)\s""", re.IGNORECASE)
_CONDITION = re.compile(
    r"""\s*(?P<entity>(?:params?|parameters?)\.)?(?P<quote>`?)(?P<key>[\w.]+)(?P=quote)
    \s*(?P<operator><=|>=|!=|=|<|>)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*""",
    re.IGNORECASE | re.VERBOSE,
)
#: What else MLflow's own syntax compares with numbers.
_OF_MLFLOW = re.compile(
    r"(metrics?|tags?|attributes?|attr|run|datasets?)\..*|(start_time|end_time|created|Created)", re.IGNORECASE
)


@dataclass(frozen=True)
class Condition:
    """A comparison of a numeric parameter, such as `optimizer.learning_rate > 0.01`."""

    text: str
    key: str
    operator: str
    number: float

    def holds(self, params: Mapping[str, str]) -> bool:
        """Whether it holds for the parameters of a run; it does not where the parameter is missing or null.

        Raises:
            ExperimentError: the parameter is text.
        """
        value = params.get(self.key, "null")
        if value == "null":
            return False
        try:
            return bool(_COMPARE[self.operator](float(value), self.number))
        except ValueError:
            advice = f"Compare it as text, as in: params.`{self.key}` = '{value}'"
            problem = f"{self.text}: {self.key} is not a number, it is {value!r}."
            raise ExperimentError(problem, advice=advice) from None


def split(query: str) -> tuple[str, list[Condition]]:
    """Splits a filter into what MLflow evaluates, and the conditions on numeric parameters.

    Args:
        query: comparisons joined with `and`, of which those of a parameter with a number may do without `params.`.
    """
    of_mlflow, conditions = [], []
    for text in _comparisons(query):
        found = _CONDITION.fullmatch(text)
        if found and (found["entity"] or not _OF_MLFLOW.fullmatch(found["key"])):
            conditions.append(Condition(text.strip(), found["key"], found["operator"], float(found["number"])))
        elif text.strip():
            of_mlflow.append(text.strip())
    return " and ".join(of_mlflow), conditions


def _comparisons(query: str) -> Iterator[str]:
    start = 0
    for found in _AND.finditer(query):
        if found[1]:
            yield query[start : found.start()]
            start = found.end()
    yield query[start:]


def matching(runs: Iterable["StoredRun"], conditions: Iterable[Condition]) -> Iterator["StoredRun"]:
    """The runs for which all conditions hold.

    Raises:
        ExperimentError: a condition compares text, or no run has its parameter.
    """
    unknown = {condition.key: condition for condition in conditions}
    keys: set[str] = set()
    for run in runs:
        keys |= run.params.keys()
        unknown = {key: condition for key, condition in unknown.items() if key not in run.params}
        # All of them, so that a comparison with text is refused whatever the others say.
        if all([condition.holds(run.params) for condition in conditions]):
            yield run
    if keys and unknown:
        key = next(iter(unknown))
        problem = f"{unknown[key].text}: no run has the parameter {key}."
        raise ExperimentError(problem, given=key, allowed=keys)
