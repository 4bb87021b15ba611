"""The ranked variants of a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from experiments.compare.statistics import Estimate
from experiments.tracking.runs import StoredRun

BEST, WORSE, NO_DIFFERENCE, EQUAL = "best", "worse", "no significant difference", "equal within"
#: Of trials of a search with one seed each: the best of many is the luckiest.
NO_VERDICT = "one seed, no verdict"
#: Metric `cost/…` -> its column in the table.
COSTS = {"parameters": "parameters", "macs": "MACs", "train_seconds": "seconds"}


@dataclass(frozen=True)
class Row:
    """A variant and its comparison with the best one."""

    rank: int
    label: str  # the distinguishing values as text: key=value key=value
    distinguishing_values: Mapping[str, str]  # key -> value, only where they tell the variant from others
    runs: tuple[StoredRun, ...]  # one per seed, in the order of the seeds
    mean: Estimate  # mean of the metric
    difference: Estimate | None  # from the best, at the level of the adjusted p; None for the best itself
    p: float | None  # p-value of the test against the best, adjusted over all pairs; None if no test is possible
    verdict: str
    test: str  # name of the test
    test_accuracy: float | None  # mean over the seeds; not used for selection
    costs: Mapping[str, float]  # key of `COSTS` -> mean over the seeds, if recorded
    pareto: frozenset[str]  # the costs in which the variant is Pareto-optimal
    beside_others: bool = False  # whether other jobs ran on the same machine meanwhile, so that it took longer
    diverged: int = 0  # runs that have diverged; if there are any, the variant is neither ranked nor tested


@dataclass(frozen=True)
class Comparison:
    """The ranked variants, the best first."""

    title: str  # names of the sweeps, or the filter
    metric: str  # name in MLflow, such as best/val_accuracy
    mode: str  # `max` or `min`: whether a higher or lower metric is better
    rows: tuple[Row, ...]
    distinguishing_keys: tuple[str, ...]  # all keys in which variants differ
    notes: tuple[str, ...]  # the result, then how it was obtained and its caveats; one sentence each
    importance: Mapping[str, float]  # searched key -> its share in what makes the best trials of a search good
    #: Searched key -> what its values were drawn from, in words if that was recorded; of a search only.
    space: Mapping[str, str] = field(default_factory=dict)

    @property
    def best_run(self) -> StoredRun:
        """The run with the best seed of the best variant."""
        choose = max if self.mode == "max" else min
        return choose(self.rows[0].runs, key=lambda run: run.metrics[self.metric])
