"""The sweeper `optuna`: every trial is chosen by what earlier ones have reached; a second call continues the study."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra.utils
import optuna
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.pruners import NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config.compose import compose
from experiments.config.configuration import Plan
from experiments.config.identity import digest
from experiments.errors import ExperimentError
from experiments.sweeps import jobs as job_list
from experiments.sweeps import launcher, space, sweep
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import (
    ELSEWHERE,
    FAILED,
    FINISHED,
    NOT_RECORDED,
    NOT_STARTED,
    PRUNED,
    RUNNING,
    WAITING,
    Job,
    apply_result,
)
from experiments.sweeps.plan import (
    check_objectives,
    config_dir,
    dry_table,
    experiment_of,
    plan_job,
    plan_jobs,
    planner_of,
)
from experiments.sweeps.sweep import Sweep
from experiments.tracking import runs
from experiments.tracking.locks import close_stale_runs
from experiments.tracking.runs import earlier_runs, get_run
from experiments.tracking.store import StoreLost, StoreRefused, check_store, check_writable, home

_NAME = "study"  # each journal holds one
_INTERRUPTED = "interrupted"
_MOST_COMPARED = 20  # older studies
_OPEN = (ELSEWHERE, NOT_RECORDED, NOT_STARTED)  # trials that are left to the next call
optuna.logging.set_verbosity(optuna.logging.WARNING)


def run(sweeper: Any, arguments: Sequence[str]) -> None:
    """Runs or continues the study that the command line and the configuration describe.

    Args:
        sweeper: the plugin, set up by Hydra.
        arguments: overrides of the command line, searched ones among them.

    Raises:
        ExperimentError: something that cannot work; nothing has been recorded.
        JobsFailed: a trial has no result.
    """
    display = Display()
    with launcher.server():
        fixed, distributions = space.search_space(arguments, sweeper.params, sweeper.hydra_context.config_loader)
        checked = _checked(sweeper, fixed, distributions, display)
        first = checked[0].configuration
        _check_pruner(_made("pruner", sweeper.pruner), first.cfg, distributions)
        _made("sampler", sweeper.sampler)
        check_store()
        check_writable(journal("").parent, "The file of a study")
        with planner_of(sweeper, display) as planner:
            plan_jobs(checked, planner, display)
            if first.cfg.dry_run:
                display.say(f"{sweeper.n_trials} trials over these and what lies between:")
                display.show(dry_table(checked))
                return
            identity = _identity(checked, distributions)
            choice = sweeper.config.hydra.runtime.choices.get("sweep")
            name = job_list.sweep_name(checked, choice, arguments, identity)
            close_stale_runs()
            for parent in runs.parents(name):
                _load(journal(parent.run_id))
            assert checked[0].plan  # noqa: S101 - all have been planned
            mode = checked[0].plan.mode
            with sweep.opened([], first, experiment_of(checked), name, display) as opened:
                _Study(sweeper, opened, planner, fixed, distributions, identity, mode).run()


def _checked(
    sweeper: Any, fixed: tuple[str, ...], distributions: Mapping[str, BaseDistribution], display: Display
) -> list[Job]:
    """Jobs at the corners of the search space."""
    found = []
    for params in space.corners(distributions):
        own = space.overrides(params)
        found.append(((*fixed, *(f"{key}={value}" for key, value in own.items())), own))
    composed = job_list.composed(found, [], config_dir(sweeper))
    jobs = list(display.progress("Checking", composed, len(found)))
    check_objectives(jobs)
    job_list.tell_apart(jobs)
    return jobs


def _made(key: str, node: DictConfig, **more: Any) -> Any:
    """The sampler or pruner that `node` describes.

    Raises:
        ExperimentError: Optuna refuses it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return hydra.utils.instantiate(node, **more)
    except Exception as error:
        raise ExperimentError(f"hydra.sweeper.{key}: {error.__cause__ or error}") from error


def _check_pruner(pruner: Any, cfg: DictConfig, distributions: Mapping[str, BaseDistribution]) -> None:
    prunes = not isinstance(pruner, NopPruner)
    if prunes and cfg.epochs == 1 and "epochs" not in distributions:
        raise ExperimentError(
            "A pruner stops a run between epochs, and epochs=1 leaves nothing to stop.",
            advice="Add more epochs, or hydra/sweeper/pruner=none.",
        )


def _identity(corners: Sequence[Job], distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """What makes a study the same as or another than an earlier one."""
    first = corners[0].plan
    assert first  # noqa: S101 - a space has corners
    return {
        "space": space.described(distributions),
        "parameters": {key: value for key, value in first.parameters.items() if key not in distributions},
        "data": first.data_sha256,
        "code": first.code_sha256,
        # What the options mean that are chosen from, whichever file they are in.
        "options": digest([[job.result, job.plan.code_sha256] for job in corners if job.plan]),
    }


class _Study:
    """A study whose parent is open in the store: trials that have ended, run and are still to come."""

    def __init__(
        self,
        sweeper: Any,
        opened: Sweep,
        planner: launcher.Planner,
        fixed: tuple[str, ...],
        distributions: dict[str, BaseDistribution],
        identity: Mapping[str, Any],
        mode: str,
    ) -> None:
        self.sweeper = sweeper
        self.opened = opened
        self.planner = planner
        self.fixed = fixed
        self.distributions = distributions
        self.objective = opened.cfg.objective
        self.mode = mode  # of the objective
        self.trials: dict[int, Trial] = {}  # asked in this call
        self.held: dict[str, list[Job]] = {}  # fingerprint of a running job -> trials that are the very same run
        file = journal(opened.parent.run_id)
        if not file.exists():
            self._tell_of_older(identity)
        self.storage = _storage(file)
        self.study = _open(self.storage, self.mode, sweeper, identity)

    def run(self) -> None:
        """Asks and tells until there are `n_trials`."""
        self._take_up()
        say = self.opened.display.say
        ended = self._ended()
        self.to_run = max(0, self.sweeper.n_trials - ended)
        say(f"{self.sweeper.n_trials} trials: {ended} ended, {self.to_run} to run")
        launcher = self.sweeper.launcher
        try:
            if hasattr(launcher, "pool"):
                self._run_steadily(launcher.pool())
            else:
                self._run_in_batches(launcher)
        finally:
            self._draw_history()
        if not any(trial.state is TrialState.COMPLETE for trial in self.study.trials):
            say("No trial has a result: all have failed or were pruned.")

    def _draw_history(self) -> None:
        from experiments.compare import tables  # what only the end needs

        file = self.opened.parent.folder / "history.png"
        try:
            tables.write_search_history(file, self.values(), self.objective, self.mode)
        except Exception as error:  # a figure must neither fail a search nor hide why one has failed
            self.opened.display.say(f"history.png cannot be drawn: {type(error).__name__}: {error}")

    def values(self) -> list[tuple[int, float, bool]]:
        """Number, value and whether it was pruned, of every trial that has a value."""
        return [
            (trial.number, trial.value, trial.state is TrialState.PRUNED)
            for trial in self.study.trials
            if trial.state.is_finished() and trial.value is not None
        ]

    def _run_steadily(self, pool: launcher.Pool) -> None:
        """A new trial whenever a process is free."""
        by_number: dict[int, Job] = {}

        def source() -> Iterator[tuple[int, list[str]]]:
            for job in self._next_jobs():
                by_number[job.number] = job
                yield job.number, self.opened.overrides(job)

        with pool, self.opened.display.live(self.to_run, pool.n_jobs, self.objective):
            for job in self.opened.follow(pool.events(source()), by_number):
                self._tell(job)

    def _run_in_batches(self, launcher: Any) -> None:
        """All that other launchers can: a list in, all results out."""
        source = self._next_jobs()
        while batch := list(itertools.islice(source, self.sweeper.n_jobs)):
            self.opened.launch(launcher, batch)
            for job in batch:
                self._tell(job)

    def _take_up(self) -> None:
        """Lists the trials of earlier calls; asks again for those that an interruption has cost."""
        for trial in self.study.trials:
            if trial.state is TrialState.RUNNING:
                _trial(self.study, self.storage, trial.number).set_user_attr(_INTERRUPTED, True)
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.study.enqueue_trial(trial.params)
            elif trial.state.is_finished() and _INTERRUPTED not in trial.user_attrs:
                try:
                    self.opened.jobs.append(self._earlier_job(trial))
                except StoreRefused:
                    gone = f"Trial {trial.number}: its run is no longer in the store; the study keeps its result."
                    self.opened.display.say(gone)

    def _earlier_job(self, trial: FrozenTrial) -> Job:
        if "fingerprint" not in trial.user_attrs:
            job = self._refused_job(trial.number, trial.params, trial.user_attrs.get("reason", ""))
        else:
            job = self._job(trial.number, trial.params)
            job.plan = Plan(job.configuration.variant, trial.user_attrs["fingerprint"], "", "", 0, {}, self.mode)
            job.state, job.reason = FAILED, trial.user_attrs.get("reason", "")
            if run_id := trial.user_attrs.get("run_id"):
                apply_result(job, get_run(run_id))
        job.earlier = True
        return job

    def _ended(self) -> int:
        trials = self.study.trials
        return sum(trial.state.is_finished() and _INTERRUPTED not in trial.user_attrs for trial in trials)

    def _next_jobs(self) -> Iterator[Job]:
        """Trials to run, each asked for when it is wanted; what is known already is told at once."""
        while self._ended() + self._under_way() < self.sweeper.n_trials:
            trial = self.study.ask(self.distributions)
            self.trials[trial.number] = trial
            try:
                job = self._job(trial.number, trial.params)
                job.plan = plan_job(self.planner, job.overrides)
            except ExperimentError as error:
                self._refused(trial, str(error))
                continue
            self.opened.jobs.append(job)
            trial.set_user_attr("fingerprint", job.fingerprint)
            if self._known(job):
                self._tell(job)
                self.opened.display.known(job)
            elif job.fingerprint in self.held:
                self.held[job.fingerprint].append(job)
            else:
                self.held[job.fingerprint] = []
                yield job

    def _under_way(self) -> int:
        return sum(job.state in (WAITING, RUNNING, *_OPEN) for job in self.opened.jobs)

    def _job(self, number: int, params: Mapping[str, Any]) -> Job:
        job = self._unchecked_job(number, params)
        return replace(job, configuration=compose(job.overrides, config_dir(self.sweeper)))

    def _refused_job(self, number: int, params: Mapping[str, Any], why: str) -> Job:
        """A trial that could not even be composed or built, with the configuration of another one in its place."""
        return replace(self._unchecked_job(number, params), state=FAILED, reason=why)

    def _unchecked_job(self, number: int, params: Mapping[str, Any]) -> Job:
        own = space.overrides(params)
        words = (*self.fixed, *(f"{key}={value}" for key, value in own.items()))
        differing = space.shortened(params, self.distributions)
        return Job(number, words, own, self.opened.first, differing, trial=number)

    def _refused(self, trial: Trial, why: str) -> None:
        trial.set_user_attr("reason", why)
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.opened.jobs.append(self._refused_job(trial.number, trial.params, why))

    def _known(self, job: Job) -> bool:
        """Whether the very same run has been trained, here or elsewhere; one pruned by another study does not count."""
        try:
            equal = earlier_runs(job.configuration.variant, job.configuration.cfg.seed)
        except StoreLost:  # the job itself waits for it
            return False
        equal = [run for run in equal if run.tags.get("fingerprint") == job.fingerprint]
        job.attempts = {run.run_id: run.attempt for run in equal}
        if self.opened.cfg.force:
            return False
        pruned_here = [run for run in equal if "pruned" in run.tags and run.parent == self.opened.parent.run_id]
        done = [run for run in equal if run.finished or run.diverged] or pruned_here
        if done:
            apply_result(job, done[0])
        return bool(done)

    def _tell(self, job: Job) -> None:
        """Tells the study how a trial, and those that are the very same run, have ended."""
        for equal in [job, *self.held.pop(job.fingerprint, [])]:
            equal.state, equal.run, equal.reason = job.state, job.run, job.reason
            if equal.state in _OPEN:
                continue
            trial = self.trials[equal.number]
            if equal.run:
                trial.set_user_attr("run_id", equal.run.run_id)
            if equal.reason:
                trial.set_user_attr("reason", equal.reason)
            if equal.state == FINISHED:
                self.study.tell(equal.number, equal.objective)
            else:
                self.study.tell(equal.number, state=TrialState.PRUNED if equal.state == PRUNED else TrialState.FAIL)

    def _tell_of_older(self, identity: Mapping[str, Any]) -> None:
        """Says which study is nearest to a new one, and in what they differ."""
        try:
            parents = [parent for parent in self.opened.parent.others() if journal(parent.run_id).exists()]
        except (StoreLost, StoreRefused):  # a hint is not worth the study
            return
        older = []
        for parent in parents[:_MOST_COMPARED]:
            with contextlib.suppress(ExperimentError):  # one that cannot be read is no reason to refuse this one
                study = _load(journal(parent.run_id))
                if study and "identity" in study.user_attrs:
                    older.append((parent.tags["sweep.name"], study))
        differences = [(name, _difference(study.user_attrs["identity"], identity), study) for name, study in older]
        if differences:
            name, different, study = min(differences, key=lambda found: len(found[1]))
            self.opened.display.say(
                f"This is another study than {name} ({len(study.trials)} trials): {'; '.join(different)}"
            )


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two identities differ, in words."""
    found = [f"other {what}" for what in ("data", "code") if old[what] != new[what]]
    for part in ("space", "parameters"):
        for key in sorted({*old[part], *new[part]}):
            if old[part].get(key) != new[part].get(key):
                found.append(f"{key}: {old[part].get(key, 'not there')} is now {new[part].get(key, 'not there')}")
    return found or ["an option that is chosen from says something else"]


# The file of a study


def journal(parent: str) -> Path:
    """Where the study of a parent run is kept."""
    return home() / "mlruns" / "studies" / f"{parent}.journal"


def _storage(file: Path) -> JournalStorage:
    file.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(file)))


def _open(storage: JournalStorage, mode: str, sweeper: Any, identity: Mapping[str, Any]) -> optuna.Study:
    """The study in `storage`, made if need be."""
    study = optuna.create_study(
        storage=storage,
        study_name=_NAME,
        direction="maximize" if mode == "max" else "minimize",
        pruner=_made("pruner", sweeper.pruner),
        load_if_exists=True,
    )
    study.set_user_attr("identity", dict(identity))
    seed = sweeper.sampler.get("seed")
    # Seeded alike, a continued study would draw the same trials once more.
    more = {"seed": seed + len(study.trials)} if seed is not None else {}
    study.sampler = _made("sampler", sweeper.sampler, **more)
    return study


def _load(file: Path) -> optuna.Study | None:
    if not file.exists():
        return None
    try:
        return optuna.load_study(study_name=_NAME, storage=_storage(file))
    except Exception as error:  # whatever a damaged line makes Optuna raise
        raise ExperimentError(
            f"The study in {file} cannot be read: {type(error).__name__}: {error}.",
            advice="Move the file away to begin the search anew; its finished runs are taken over.",
        ) from error


def _trial(study: optuna.Study, storage: JournalStorage, number: int) -> Trial:
    """A trial of `study`, which is in `storage`, that another process has asked for."""
    study_id = storage.get_study_id_from_name(study.study_name)
    return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, number))


# In the processes of the jobs


def pruner_of(parent: str, number: int, pruner: DictConfig, metric: str) -> Callable[[int, Mapping[str, float]], bool]:
    """What a trial asks at an epoch's end: whether to go on is hopeless.

    Args:
        parent: id of the study's run.
        number: of the trial.
        pruner: its configuration.
        metric: the objective.
    """
    method = hydra.utils.instantiate(pruner)
    file = journal(parent)
    if isinstance(method, NopPruner) or not file.exists():
        return lambda epoch, metrics: False
    storage = _storage(file)
    study = optuna.load_study(study_name=_NAME, storage=storage, pruner=method)
    trial = _trial(study, storage, number)

    def hopeless(epoch: int, metrics: Mapping[str, float]) -> bool:
        trial.report(metrics[metric], epoch)
        return trial.should_prune()

    return hopeless
