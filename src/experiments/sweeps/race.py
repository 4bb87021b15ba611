"""The sweeper `race`: adds seeds to the variants whose comparison with the best one is not settled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.compare.samples import samples_of
from experiments.compare.sequential import FIRST_SEEDS, Decision, Race, Standing
from experiments.compare.variants import Variant
from experiments.config.compose import compose
from experiments.config.overrides import as_typed
from experiments.errors import ExperimentError
from experiments.sweeps import jobs as job_list
from experiments.sweeps import launcher
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import Job, State
from experiments.sweeps.plan import (
    checked_jobs,
    config_dir,
    dry_table,
    experiment_of,
    find_finished_jobs,
    plan_for,
    plan_jobs,
    planner_of,
)
from experiments.sweeps.sweep import Sweep, open_sweep
from experiments.tracking.locks import close_stale_runs
from experiments.tracking.store import check_store

if TYPE_CHECKING:
    from hydra_plugins.experiments_sweeps import RaceSweeper

_IN_WORDS = {
    Standing.WORSE: "worse than {best}",
    Standing.EQUAL: "equal to {best} within {margin:g}",
    Standing.IMAGES: "limited by the validation images, more seeds would not settle it",
    Standing.CAP: "undecided",
    Standing.FAILED: "out of the race, as a run has failed or diverged",
}


@dataclass(frozen=True)
class Result:
    """How a race has ended, for scripts."""

    sweep: str
    metric: str
    variants: tuple[Mapping[str, Any], ...]  # the best first

    def as_json(self) -> str:
        """The result as JSON."""
        return json.dumps(asdict(self), indent=2)


#: The race of this process, once it has ended: Hydra passes on nothing that a sweeper returns.
results: list[Result] = []


def run(sweeper: "RaceSweeper", arguments: Sequence[str]) -> None:
    """Runs or continues the race that the command line and the configuration describe.

    Args:
        sweeper: the plugin, set up by Hydra.
        arguments: overrides of the command line, swept ones among them.

    Raises:
        ExperimentError: something that cannot work; nothing has been recorded.
        JobsFailed: a job has no result.
    """
    arguments = as_typed(arguments)
    display = Display()
    with launcher.server():
        params, include = _without_seeds(sweeper.params), [_without_seeds(entry) for entry in sweeper.include]
        found = job_list.combinations(arguments, params, include, sweeper.hydra_context.config_loader)
        jobs = checked_jobs(found, sweeper.exclude, sweeper, display)
        _check(jobs)
        check_store()
        with planner_of(sweeper, display) as planner:
            plan_jobs(jobs, planner, display)
        if jobs[0].configuration.cfg.dry_run:
            display.print(f"{FIRST_SEEDS} to {sweeper.max_seeds} seeds of each of these variants:")
            display.show(dry_table(jobs))
            return
        close_stale_runs()
        choice = sweeper.config.hydra.runtime.choices.get("sweep")
        first = [[job.configuration.variant, job.configuration.replicate, job.configuration.paths] for job in jobs]
        name = job_list.sweep_name(jobs, choice, arguments, ["race", sweeper.max_seeds, sweeper.equal_within, first])
        with open_sweep([], jobs[0].configuration, experiment_of(jobs), name, display) as sweep:
            _Runner(sweeper, sweep, jobs).run()


def _without_seeds(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "seed"}


def _check(jobs: Sequence[Job]) -> None:
    if any("seed" in job.swept_values for job in jobs):
        raise ExperimentError("A race chooses the seeds itself.", advice="Give the first one, as in seed=0, or none.")
    if key := next((key for job in jobs for key in job.swept_values if key.partition(".")[0] == "data"), None):
        raise ExperimentError(f"{key} differs, but a race compares variants on the same images.")
    identities = [(job.configuration.variant, str(job.configuration.paths)) for job in jobs]
    if len(set(identities)) < len(jobs):
        second = next(
            job for job, identity in zip(jobs, identities, strict=True) if identities.index(identity) != job.number
        )
        first = jobs[identities.index(identities[second.number])]
        raise ExperimentError(
            f"{first.label} and {second.label} are the same variant.", advice="Leave one of them out."
        )
    if len(jobs) < 2:
        raise ExperimentError("A race needs at least two variants.", advice="Sweep a key, as in model=conv2,conv3.")


class _Runner:
    """A race whose parent run is open."""

    def __init__(self, sweeper: "RaceSweeper", sweep: Sweep, first: Sequence[Job]) -> None:
        self.sweeper = sweeper
        self.sweep = sweep
        self.race = sweep.race = Race(sweeper.max_seeds, sweeper.equal_within)
        self.first = first  # of each variant, to make the others of
        self.jobs: list[list[Job]] = [[] for _ in first]  # of each variant, one per seed
        assert first[0].plan  # noqa: S101 - all have been planned
        self.mode = first[0].plan.mode
        self.labels = [job.label for job in first]
        self.told: dict[int, Standing] = {}

    def run(self) -> None:
        """Trains and decides in turn, until all is settled."""
        sweep, cap = self.sweep, self.sweeper.max_seeds
        sweep.display.print(f"{len(self.jobs)} variants, {FIRST_SEEDS} to {cap} seeds each")
        rule = {"race.max_seeds": cap, "race.equal_within": self.sweeper.equal_within or ""}
        sweep.parent.set_tags(rule)
        wanted = dict.fromkeys(range(len(self.jobs)), FIRST_SEEDS)
        while wanted:
            jobs = self._jobs_for(wanted)
            sweep.jobs.extend(jobs)
            find_finished_jobs(jobs, sweep.display)
            sweep.run(self.sweeper.launcher, [job for job in jobs if job.state is State.WAITING])
            if any(job.state is State.NOT_STARTED for job in sweep.jobs):  # on_error=stop
                return
            decisions = self._decide()
            self._tell(decisions)
            wanted = self.race.next_seeds(decisions)
        results[:] = [self._result(decisions)]
        sweep.display.print(f"Decided with {len(sweep.jobs)} of {len(self.jobs) * cap} jobs")

    def _jobs_for(self, wanted: Mapping[int, int]) -> list[Job]:
        """The jobs that give variants so many seeds, seed by seed."""
        new = []
        for place in range(max(wanted.values())):
            for number in [number for number, seeds in wanted.items() if len(self.jobs[number]) <= place < seeds]:
                new.append(self._with_seed(number, place))
                self.jobs[number].append(new[-1])
        return new

    def _with_seed(self, number: int, place: int) -> Job:
        first = self.first[number]
        assert first.plan  # noqa: S101 - all have been planned
        seed = self.sweep.cfg.seed + place
        overrides = (*(word for word in first.overrides if not word.startswith("seed=")), f"seed={seed}")
        configuration = compose(overrides, config_dir(self.sweeper)).pinned(first.plan.init_from)
        return replace(
            first,
            number=place * len(self.first) + number,
            overrides=overrides,
            configuration=configuration,
            distinguishing_values={**first.distinguishing_values, "seed": str(seed)},
            plan=plan_for(configuration, first.plan),
        )

    def _decide(self) -> dict[int, Decision]:
        failed = {n for n, jobs in enumerate(self.jobs) if any(job.state is not State.FINISHED for job in jobs)}
        variants = {
            number: Variant(self.labels[number], {}, tuple(job.run for job in jobs if job.run))
            for number, jobs in enumerate(self.jobs)
            if number not in failed
        }
        metric = f"best/{self.sweep.cfg.objective}"
        samples = samples_of(list(variants.values()), metric, self.mode, these_images=False) if variants else []
        decisions = self.race.decide(dict(zip(variants, samples, strict=True)), 1 if self.mode == "max" else -1)
        return decisions | {number: Decision(Standing.FAILED, len(self.jobs[number])) for number in failed}

    def _tell(self, decisions: Mapping[int, Decision]) -> None:
        """Prints what has been settled since the last time; shows who is in the race, and why others are not."""
        display = self.sweep.display
        best = next((number for number, found in decisions.items() if found.standing is Standing.BEST), None)
        first = self.labels[best] if best is not None else ""
        lines = {}
        for number, found in sorted(decisions.items()):
            if found.standing in _IN_WORDS:
                than = self.labels[found.best] if found.best is not None else ""
                size = f" ({found.difference:+.4f}, p {found.p:.3f})" if found.difference is not None else ""
                text = _IN_WORDS[found.standing].format(best=than, margin=self.sweeper.equal_within or 0)
                lines[number] = f"{self.labels[number]}: {text}, after {found.seeds} seeds{size}"
                if self.told.get(number) is not found.standing:
                    display.print(lines[number])
        self.told = {number: found.standing for number, found in decisions.items()}
        open_ = [self.labels[number] for number, found in decisions.items() if found.standing is Standing.OPEN]
        if first and open_:
            lines[-1] = f"First: {first}; in question: {', '.join(open_)}"
            display.print(lines[-1])
        display.standings = list(lines.values())

    def _result(self, decisions: Mapping[int, Decision]) -> Result:
        metric = f"best/{self.sweep.cfg.objective}"
        found = []
        for number, decision in sorted(decisions.items(), key=lambda each: _place(each[1])):
            runs = [job.run for job in self.jobs[number] if job.run]
            values = [run.metrics[metric] for run in runs if metric in run.metrics]
            found.append({
                "number": number,
                "variant": self.labels[number],
                "values": dict(self.first[number].swept_values),
                "standing": decision.standing,
                "seeds": decision.seeds,
                "mean": fmean(values) if values else None,
                "difference": decision.difference,
                "from": None if decision.best is None else self.labels[decision.best],
                "p": decision.p,
                "run_ids": [run.run_id for run in runs],
            })  # fmt: skip
        return Result(self.sweep.parent.name, metric, tuple(found))


def _place(decision: Decision) -> tuple[bool, float]:
    """What to sort by: the best first, the others by their distance from it, and those that have failed last."""
    return decision.standing is Standing.FAILED, abs(decision.difference or 0.0)
