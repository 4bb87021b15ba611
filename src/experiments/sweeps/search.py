"""The sweeper `optuna`: earlier trials decide what is tried next; the same command resumes the study."""

import contextlib
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config.compose import compose
from experiments.config.configuration import Plan
from experiments.config.identity import digest
from experiments.config.overrides import absolute_paths, as_typed
from experiments.errors import ExperimentError
from experiments.sweeps import jobs as job_list
from experiments.sweeps import launcher, space
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import Job, State, apply_result
from experiments.sweeps.plan import (
    checked_jobs,
    config_dir,
    dry_table,
    experiment_of,
    plan_job,
    plan_jobs,
    planner_of,
)
from experiments.sweeps.study import (
    differences,
    importances,
    instantiate,
    journal,
    load_study,
    open_storage,
    open_study,
    running_trial,
)
from experiments.sweeps.sweep import Sweep, open_sweep
from experiments.tracking import runs
from experiments.tracking.locks import close_stale_runs
from experiments.tracking.runs import earlier_runs, get_run
from experiments.tracking.store import StoreLost, StoreRefused, check_store, check_writable

if TYPE_CHECKING:
    from hydra_plugins.experiments_sweeps import OptunaSweeper

#: What a trial remembers: whether it was interrupted; fingerprint, run and reason of failure of each job by its number.
_INTERRUPTED, _ENDED = "interrupted", "ended"
_MOST_COMPARED = 20  # older studies
_CONFIRMED = 3  # trials
_ENOUGH = 10  # trials, to say which keys matter
_OPEN = (State.ELSEWHERE, State.NOT_RECORDED, State.NOT_STARTED)  # trials that are left to the next call


def run(sweeper: "OptunaSweeper", arguments: Sequence[str]) -> None:
    """Runs or continues the study that the command line and the configuration describe.

    Args:
        sweeper: the plugin, set up by Hydra.
        arguments: overrides of the command line, searched ones among them.

    Raises:
        ExperimentError: something that cannot work; nothing has been recorded.
        JobsFailed: a trial has no result.
    """
    arguments = as_typed(arguments)
    display = Display()
    with launcher.server():
        fixed, distributions = space.search_space(arguments, sweeper.params, sweeper.hydra_context.config_loader)
        swept = [space.overrides(params) for params in space.boundary_points(distributions)]
        found = [((*fixed, *(f"{key}={value}" for key, value in values.items())), values) for values in swept]
        checked = checked_jobs(found, [], sweeper, display)
        first = checked[0].configuration
        _check_pruner(instantiate("pruner", sweeper.pruner), first.cfg, distributions, sweeper.replicates)
        instantiate("sampler", sweeper.sampler)
        check_store()
        check_writable(journal("").parent, "The file of a study")
        with planner_of(sweeper, display) as planner:
            plan_jobs(checked, planner, display)
            if first.cfg.dry_run:
                display.print(f"{sweeper.n_trials} trials within these boundary points:")
                display.show(dry_table(checked))
                return
            identity = _identity(checked, distributions, sweeper.replicates)
            choice = sweeper.config.hydra.runtime.choices.get("sweep")
            name = job_list.sweep_name(checked, choice, arguments, identity)
            close_stale_runs()
            for parent in runs.parents(name):
                load_study(journal(parent.run_id))
            assert checked[0].plan  # noqa: S101 - all have been planned
            mode = checked[0].plan.mode
            with open_sweep([], first, experiment_of(checked), name, display) as sweep:
                _Search(sweeper, sweep, planner, fixed, distributions, identity, mode).run()


def _check_pruner(
    pruner: BasePruner, cfg: DictConfig, distributions: Mapping[str, BaseDistribution], replicates: int
) -> None:
    between_epochs = not isinstance(pruner, NopPruner) and replicates == 1
    if between_epochs and cfg.epochs == 1 and "epochs" not in distributions:
        raise ExperimentError(
            "A pruner stops a run between epochs, and epochs=1 leaves nothing to stop.",
            advice="Add more epochs, or hydra/sweeper/pruner=none.",
        )


def _identity(
    boundary_jobs: Sequence[Job], distributions: Mapping[str, BaseDistribution], replicates: int
) -> dict[str, Any]:
    """What two studies must have in common to be the same study."""
    first = boundary_jobs[0].plan
    assert first  # noqa: S101 - a space has boundary points
    fixed = {key: value for key, value in first.parameters.items() if key not in distributions}
    return {
        "space": space.described(distributions),
        "parameters": {**fixed, **({"hydra.sweeper.replicates": str(replicates)} if replicates > 1 else {})},
        "data": first.data_sha256,
        "code": first.code_sha256,
        # What the options mean that are chosen from, whichever file they are in.
        "options": digest([[job.result, job.plan.code_sha256] for job in boundary_jobs if job.plan]),
    }


class _Search:
    """A search whose parent run is open: trials that have ended, that run and that are still to come."""

    def __init__(
        self,
        sweeper: "OptunaSweeper",
        sweep: Sweep,
        planner: launcher.Planner,
        fixed: tuple[str, ...],
        distributions: dict[str, BaseDistribution],
        identity: Mapping[str, Any],
        mode: str,
    ) -> None:
        self.sweeper = sweeper
        self.sweep = sweep
        self.planner = planner
        self.fixed = fixed
        self.distributions = distributions
        self.objective = sweep.cfg.objective
        self.mode = mode  # of the objective
        self.seeds = range(sweep.cfg.seed, sweep.cfg.seed + sweeper.replicates)
        self.trials: dict[int, Trial] = {}  # asked in this call
        self.jobs: dict[int, list[Job]] = {}  # of each of them, one per seed
        self.duplicates: dict[str, list[Job]] = {}  # fingerprint of a running job -> other jobs with the same one
        file = journal(sweep.parent.run_id)
        if not file.exists():
            self._print_nearest_study(identity)
        self.storage = open_storage(file)
        self.study = open_study(self.storage, self.mode, sweeper.sampler, sweeper.pruner, identity)

    def run(self) -> None:
        """Runs trials until there are `n_trials`."""
        self._resume_trials()
        ended = self._count_ended()
        self.to_run = max(0, self.sweeper.n_trials - ended)
        each = f" with {len(self.seeds)} seeds each" if len(self.seeds) > 1 else ""
        self.sweep.display.print(f"{self.sweeper.n_trials} trials{each}: {ended} ended, {self.to_run} to run")
        self.sweep.parent.set_tags({"search.trials": self.sweeper.n_trials})
        self.sweep.set_space(space.described(self.distributions))
        launcher = self.sweeper.launcher
        try:
            if hasattr(launcher, "pool"):
                self._run_in_pool(launcher.pool())
            else:
                self._run_in_batches(launcher)
        finally:
            self._draw_history()
        complete = [trial for trial in self.study.trials if trial.state is TrialState.COMPLETE]
        if not complete:
            self.sweep.display.print("No trial has a result: all have failed or were pruned.")
        elif len(complete) > 1:
            if len(complete) >= _ENOUGH and len(self.distributions) > 1:
                self.sweep.set_importance(importances(self.study))
            self.sweep.display.print(f"Confirm the best trials with new seeds: {self._race_of_best(complete)}")

    def _race_of_best(self, complete: Sequence[FrozenTrial]) -> str:
        """The command that races the best trials with seeds that the search has not used."""
        ranked = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=self.mode == "max")
        best = {str(trial.params): space.overrides(trial.params) for trial in ranked}
        folder = config_dir(self.sweeper)
        where = ["--config-dir", folder] if folder else []
        kept = [word for word in absolute_paths(self.fixed) if not word.startswith(("seed=", "sweep", "hydra"))]
        entries = list(best.values())[:_CONFIRMED]
        seed = f"seed={self.seeds.stop}"
        return shlex.join(["experiments", "race", *where, *kept, seed, job_list.include_override(entries)])

    def _draw_history(self) -> None:
        from experiments.compare import tables  # what only the end needs

        file = self.sweep.parent.folder / "history.png"
        try:
            tables.write_search_history(file, self.values(), self.objective, self.mode)
        except Exception as error:  # a figure must neither fail a search nor hide why one has failed
            self.sweep.display.print(f"history.png cannot be drawn: {type(error).__name__}: {error}")

    def values(self) -> list[tuple[int, float, bool]]:
        """Number, value and whether it was pruned, of every trial that has a value."""
        return [
            (trial.number, trial.value, trial.state is TrialState.PRUNED)
            for trial in self.study.trials
            if trial.state.is_finished() and trial.value is not None
        ]

    def _run_in_pool(self, pool: launcher.Pool) -> None:
        """Starts a new trial whenever a process is free."""
        by_number: dict[int, Job] = {}

        def source() -> Iterator[tuple[int, list[str]]]:
            for job in self._next_jobs():
                by_number[job.number] = job
                yield job.number, self.sweep.overrides(job)

        with pool, self.sweep.display.live(self.sweep.jobs, self.to_run * len(self.seeds), pool.n_jobs, self.objective):
            for job in self.sweep.follow(pool.events(source()), by_number):
                self._end(job)

    def _run_in_batches(self, launcher: Launcher) -> None:
        """Runs `n_jobs` trials after another, with a launcher that takes a list and returns all results at the end."""
        source = self._next_jobs()
        while batch := list(itertools.islice(source, self.sweeper.n_jobs)):
            self.sweep.launch(launcher, batch)
            for job in batch:
                self._end(job)

    def _resume_trials(self) -> None:
        """Lists the trials of earlier calls; repeats those that were interrupted."""
        for trial in self.study.trials:
            if trial.state is TrialState.RUNNING:
                running_trial(self.study, self.storage, trial.number).set_user_attr(_INTERRUPTED, True)
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params)
            elif trial.state.is_finished() and _INTERRUPTED not in trial.user_attrs:
                try:
                    self.sweep.jobs.extend(self._earlier_jobs(trial))
                except StoreRefused:
                    gone = f"Trial {trial.number}: its run is no longer in the store; the study keeps its result."
                    self.sweep.display.print(gone)

    def _earlier_jobs(self, trial: FrozenTrial) -> list[Job]:
        reason = trial.user_attrs.get("reason", "")
        ended: Mapping[str, Mapping[str, str]] = trial.user_attrs.get(_ENDED, {})
        if not ended:
            return [replace(self._refused_job(trial.number, trial.params, reason), earlier=True)]
        jobs = []
        for job in self._jobs(trial.number, trial.params):
            if str(job.number) in ended:
                known = ended[str(job.number)]
                job.plan = Plan(job.configuration.variant, known["fingerprint"], "", "", 0, {}, self.mode)
                job.state, job.reason, job.earlier = State.FAILED, known["reason"], True
                if known["run_id"]:
                    apply_result(job, get_run(known["run_id"]))
                jobs.append(job)
        return jobs

    def _count_ended(self) -> int:
        trials = self.study.trials
        return sum(trial.state.is_finished() and _INTERRUPTED not in trial.user_attrs for trial in trials)

    def _next_jobs(self) -> Iterator[Job]:
        """Yields jobs to run, each trial asked for when it is wanted; those with a result are not run."""
        while self._count_ended() + len(self.jobs) < self.sweeper.n_trials:
            trial = self.study.ask(self.distributions)
            try:
                jobs = self._jobs(trial.number, trial.params)
                for job in jobs:
                    job.set_plan(plan_job(self.planner, job.overrides))
            except ExperimentError as error:
                self._refused(trial, str(error))
                continue
            self.trials[trial.number], self.jobs[trial.number] = trial, jobs
            self.sweep.jobs.extend(jobs)
            for job in jobs:
                if trial.number not in self.jobs:  # it has been told: pruned, or failed
                    break
                if self._has_result(job):
                    self._end(job)
                    self.sweep.display.skipped(job)
                elif job.fingerprint in self.duplicates:
                    self.duplicates[job.fingerprint].append(job)
                else:
                    self.duplicates[job.fingerprint] = []
                    yield job

    def _jobs(self, number: int, params: Mapping[str, Any]) -> list[Job]:
        """The jobs of a trial, one per seed."""
        jobs = []
        for place, seed in enumerate(self.seeds):
            job = self._unchecked_job(number, params)
            if len(self.seeds) > 1:
                job.number = number * len(self.seeds) + place
                job.overrides = (*job.overrides, f"seed={seed}")
                job.distinguishing_values = {**job.distinguishing_values, "seed": str(seed)}
            jobs.append(replace(job, configuration=compose(job.overrides, config_dir(self.sweeper))))
        return jobs

    def _refused_job(self, number: int, params: Mapping[str, Any], why: str) -> Job:
        """A trial that cannot be composed or built; it has the configuration of another one in its place."""
        return replace(self._unchecked_job(number, params), state=State.FAILED, reason=why)

    def _unchecked_job(self, number: int, params: Mapping[str, Any]) -> Job:
        swept_values = space.overrides(params)
        words = (*self.fixed, *(f"{key}={value}" for key, value in swept_values.items()))
        distinguishing_values = space.shortened(params, self.distributions)
        return Job(number, words, swept_values, self.sweep.first, distinguishing_values, trial=number)

    def _refused(self, trial: Trial, why: str) -> None:
        trial.set_user_attr("reason", why)
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.sweep.jobs.append(self._refused_job(trial.number, trial.params, why))

    def _has_result(self, job: Job) -> bool:
        """Whether an equal run has a result, in any sweep; one that another study has pruned does not count."""
        try:
            equal = earlier_runs(job.configuration)
        except StoreLost:  # the job itself waits for it
            return False
        equal = [run for run in equal if run.tags.get("fingerprint") == job.fingerprint]
        job.states_before = {run.run_id: run.attempt for run in equal}
        if self.sweep.cfg.force:
            return False
        pruned_here = [run for run in equal if "pruned" in run.tags and run.parent == self.sweep.parent.run_id]
        done = [run for run in equal if run.finished or run.diverged] or pruned_here
        if done:
            apply_result(job, done[0])
        return bool(done)

    def _end(self, job: Job) -> None:
        """Takes the result of a job, for its duplicates as well, and tells the study of trials that have ended."""
        for equal in [job, *self.duplicates.pop(job.fingerprint, [])]:
            equal.state, equal.run, equal.reason = job.state, job.run, job.reason
            if equal.trial in self.jobs and equal.state not in _OPEN:
                self._tell(equal.trial)

    def _tell(self, number: int) -> None:
        """Tells the study the result of a trial: the mean over its seeds, once there is no more to wait for."""
        trial, jobs = self.trials[number], self.jobs[number]
        ended = [job for job in jobs if job.state not in (State.WAITING, State.RUNNING, *_OPEN)]
        bad = next((job for job in ended if job.state != State.FINISHED), None)
        values = [job.objective for job in ended if job.objective is not None]
        if bad:
            state = TrialState.PRUNED if bad.state == State.PRUNED else TrialState.FAIL
        elif len(ended) == len(jobs):
            state = TrialState.COMPLETE
        else:
            trial.report(fmean(values), len(values))
            if not trial.should_prune():
                return
            state = TrialState.PRUNED
        known = {
            job.number: {
                "fingerprint": job.fingerprint,
                "run_id": job.run.run_id if job.run else "",
                "reason": job.reason,
            }
            for job in ended
        }
        trial.set_user_attr(_ENDED, known)
        self.study.tell(number, fmean(values) if state is TrialState.COMPLETE else None, state=state)
        del self.jobs[number]
        for job in jobs:
            if job.state == State.WAITING:  # a seed that nobody needs any more
                self.sweep.jobs.remove(job)

    def _print_nearest_study(self, identity: Mapping[str, Any]) -> None:
        """Prints how a new study differs from the most similar earlier one."""
        try:
            parents = [parent for parent in self.sweep.parent.others() if journal(parent.run_id).exists()]
        except (StoreLost, StoreRefused):  # a hint is not worth the study
            return
        older = []
        for parent in parents[:_MOST_COMPARED]:
            with contextlib.suppress(ExperimentError):  # one that cannot be read is no reason to refuse this one
                study = load_study(journal(parent.run_id))
                if study and "identity" in study.user_attrs:
                    older.append((parent.tags["sweep.name"], study))
        compared = [(name, differences(study.user_attrs["identity"], identity), study) for name, study in older]
        if compared:
            name, different, study = min(compared, key=lambda found: len(found[1]))
            self.sweep.display.print(
                f"This is another study than {name} ({len(study.trials)} trials): {'; '.join(different)}"
            )
