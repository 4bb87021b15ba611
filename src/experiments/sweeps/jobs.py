"""The jobs of a sweep: every combination that was asked for, composed and checked."""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override

from experiments.config.compose import checked, compose_unchecked
from experiments.config.configuration import Configuration, Plan
from experiments.config.identity import digest
from experiments.config.overrides import parse
from experiments.errors import ExperimentError
from experiments.tracking.runs import StoredRun

MOST_JOBS = 1000

#: States of a job. Those of the first line need no further run, those of the last are errors.
FINISHED, PRUNED, DIVERGED = "finished", "pruned", "diverged"
WAITING, RUNNING, NOT_STARTED = "waiting", "running", "not started"
FAILED, KILLED, ELSEWHERE, NOT_RECORDED = "failed", "killed", "running elsewhere", "not recorded"


@dataclass
class Job:
    """One job of a sweep, and how far it has come."""

    number: int  # in the whole list
    overrides: tuple[str, ...]  # that compose it
    own: Mapping[str, str]  # swept key -> its value here
    configuration: Configuration
    differing: Mapping[str, str] = field(default_factory=dict)  # those of `own` that are not the same in all jobs
    plan: Plan | None = None
    twin: "Job | None" = None  # an earlier job of the list that is the very same run
    state: str = WAITING
    reason: str = ""  # of an error
    run: StoredRun | None = None
    attempts: Mapping[str, object] = field(default_factory=dict)  # run id -> how far equal runs were before this call
    trial: int | None = None  # of a study
    earlier: bool = False  # ended in an earlier call of the same command

    @property
    def label(self) -> str:
        """What tells it from the other jobs."""
        words = [f"{key}={value}" for key, value in self.differing.items()]
        return " ".join(words) or self.configuration.choices["model"]

    @property
    def label_without_seed(self) -> str:
        """What tells its variant from the others."""
        words = [f"{key}={value}" for key, value in self.differing.items() if key != "seed"]
        return " ".join(words) or self.configuration.choices["model"]

    @property
    def result(self) -> str:
        """What jobs share whose results are those of one variant: the same configuration on the same data."""
        return f"{self.configuration.variant} {self.plan.data_sha256 if self.plan else ''}"

    @property
    def fingerprint(self) -> str:
        """What tells equal runs; empty for a job that could not be planned."""
        return self.plan.fingerprint if self.plan else ""

    @property
    def objective(self) -> float | None:
        """The best epoch's value of the metric that chooses."""
        name = f"best/{self.configuration.cfg.objective}"
        return self.run.metrics.get(name) if self.run and self.state in (FINISHED, PRUNED) else None

    def share_with_twin(self) -> None:
        """Has the result of the job that is the very same run, if there is one."""
        if self.twin:
            self.state, self.run, self.reason = self.twin.state, self.twin.run, self.twin.reason


def combinations(
    arguments: Sequence[str],
    params: Mapping[str, Any],
    listed: Sequence[Mapping[str, Any]],
    config_loader: ConfigLoader,
) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """The overrides of every job, and which of them the sweep has set.

    What the command line sweeps is crossed with the combinations of the configuration: those of `params`, and each
    entry of `listed`. A key on the command line wins.

    Raises:
        ExperimentError: a sweep without jobs, or with too many.
    """
    parsed = parse(arguments, config_loader)
    fixed = tuple(text for text, part in zip(arguments, parsed, strict=True) if not part.is_sweep_override())
    typed = {part.key_or_group for part in parsed}
    swept = _values([part for part in parsed if part.is_sweep_override()])
    if "sweep" in swept:
        raise ExperimentError("sweep= names one sweep, and cannot be swept.", advice="Start them one after another.")
    found: list[tuple[tuple[str, ...], dict[str, str]]] = []
    for block in [*([params] if params or not listed else []), *listed]:
        texts = [f"{key}={as_text(value)}" for key, value in block.items() if key not in typed]
        values = _values(parse(texts, config_loader)) | swept
        if len(found) + math.prod(map(len, values.values())) > MOST_JOBS:
            raise ExperimentError(
                f"The sweep has more than {MOST_JOBS:,} jobs.",
                advice="Sweep less, or search with hydra/sweeper=optuna.",
            )
        for combination in itertools.product(*values.values()):
            own = dict(zip(values, combination, strict=True))
            found.append(((*fixed, *(f"{key}={value}" for key, value in own.items())), own))
    if not found:
        raise ExperimentError("The sweep has no job: a key is swept over no value.")
    return found


def _values(overrides: Iterable[Override]) -> dict[str, list[str]]:
    """Key -> every value it takes, as text."""
    values = {}
    for part in overrides:
        if part.is_sweep_override() and not part.is_discrete_sweep():
            raise ExperimentError(
                f"{part.input_line}: a grid needs single values.",
                advice="Write them out, as in 0.1,0.2, or search with hydra/sweeper=optuna.",
            )
        swept = part.is_sweep_override()
        values[part.get_key_element()] = (
            list(part.sweep_string_iterator()) if swept else [part.get_value_element_as_str()]
        )
    return values


def as_text(value: Any) -> str:
    """A value of YAML in Hydra's grammar, in which a text stands as it is."""
    return value if isinstance(value, str) else _inner_text(value)


def _inner_text(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_inner_text(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_inner_text, value))}]"
    return json.dumps(value)


def composed(
    found: Sequence[tuple[tuple[str, ...], dict[str, str]]],
    excluded: Sequence[Mapping[str, Any]],
    config_dir: str | None,
) -> Iterator[Job]:
    """The jobs, each checked as a single run is; those that an exclusion describes are left out.

    Raises:
        ExperimentError: a job that cannot work, by its number and values, or an exclusion that names an unknown key.
    """
    number = 0
    unknown: dict[str, ExperimentError] = {key: ExperimentError("") for exclusion in excluded for key in exclusion}
    for overrides, own in found:
        with in_job(number, own):
            configuration = compose_unchecked(overrides, config_dir)
        values = {}
        for key in {key for exclusion in excluded for key in exclusion}:
            try:
                values[key] = configuration.value(key)
                unknown.pop(key, None)
            except ExperimentError as error:  # another job may have it
                if key in unknown:
                    unknown[key] = error
        if any(_matches(values, exclusion) for exclusion in excluded):
            continue
        with in_job(number, own):
            checked(configuration)
        yield Job(number, overrides, own, configuration)
        number += 1
    if unknown:
        raise next(iter(unknown.values()))


def _matches(values: Mapping[str, Any], exclusion: Mapping[str, Any]) -> bool:
    return all(key in values and values[key] == _as_choice(key, value) for key, value in exclusion.items())


def _as_choice(key: str, value: Any) -> Any:
    """A value as a configuration has it: that of `callbacks` is the sorted text of its list."""
    return f"[{','.join(sorted(value))}]" if key == "callbacks" and isinstance(value, list) else value


@contextlib.contextmanager
def in_job(number: int, own: Mapping[str, str]) -> Iterator[None]:
    """Says in which job of a sweep an error is."""
    try:
        yield
    except ExperimentError as error:
        values = " ".join(f"{key}={value}" for key, value in own.items())
        raise ExperimentError(f"Job {number} ({values}): {error}" if values else str(error)) from error


def tell_apart(jobs: Sequence[Job]) -> None:
    """Finds the values in which each job differs from another one."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.own))
    differing = [key for key in keys if len({job.own.get(key) for job in jobs}) > 1] or keys[:1]
    for job in jobs:
        job.differing = {key: job.own[key] for key in differing if key in job.own}


def sweep_name(jobs: Sequence[Job], choice: str | None, arguments: Sequence[str], identity: Any) -> str:
    """The choice of `sweep=` or the first swept override, and six hex digits of what makes this sweep."""
    swept = [text for text in arguments if jobs and text.partition("=")[0] in jobs[0].own]
    head = choice or next(iter([*swept, *arguments]), "sweep")
    # MLflow's filters cannot quote quotes, and take these others for wildcards.
    plain = re.sub(r"""[`%'"\\]""", "", head)
    return f"{plain[:80]}-{digest(identity)[:6]}"


def apply_result(job: Job, run: StoredRun | None) -> None:
    """Lets `job` be as its run is."""
    if run is None:
        return
    job.run = run
    job.reason = run.tags.get("failure", "")
    if run.status == "FINISHED":
        job.state = PRUNED if "pruned" in run.tags else FINISHED
    elif run.diverged:
        job.state = DIVERGED
    else:
        job.state = KILLED if run.status == "KILLED" else FAILED


def counts(jobs: Sequence[Job]) -> str:
    """How many jobs are in each state."""
    order = (FINISHED, PRUNED, DIVERGED, FAILED, KILLED, ELSEWHERE, NOT_RECORDED, NOT_STARTED, WAITING)
    found = {state: sum(job.state == state for job in jobs) for state in order}
    head = f"{len(jobs):,} {'job' if len(jobs) == 1 else 'jobs'}"
    return f"{head}: {', '.join(f'{count} {state}' for state, count in found.items() if count)}"
