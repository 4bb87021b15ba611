"""One run, from a configuration to its record: builds, trains, evaluates and records it."""

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from experiments import artifacts
from experiments.artifacts import Outcome
from experiments.config.compose import CHECKOUT
from experiments.config.configuration import Configuration, Plan
from experiments.config.identity import code_sha256, read_own_code
from experiments.config.names import names
from experiments.config.schema import epoch_metrics
from experiments.config.targets import typed
from experiments.dataset import Dataset
from experiments.errors import ExperimentError
from experiments.starting_point import with_start
from experiments.tracking.locks import close_stale_runs, lock
from experiments.tracking.output import console_log
from experiments.tracking.provenance import environment, uncommitted
from experiments.tracking.run import TAGS, Run, open_run
from experiments.tracking.runs import StoredRun, earlier_runs
from experiments.tracking.store import check_store, run_folder, set_store_timeout, shown_uri
from experiments.training import checkpoints
from experiments.training.batches import training_batches
from experiments.training.build import Components, build, build_part, warn_if_badly_scaled
from experiments.training.callbacks import Diverged, EpochFunction
from experiments.training.checkpoints import Checkpoint
from experiments.training.class_weights import log_class_weights
from experiments.training.evaluation import evaluate, measure
from experiments.training.fit import Recipe, TrainingResult, fit
from experiments.training.runtime import forget_models, start_runtime, suggest_faster_settings

_log = logging.getLogger("experiments")
_OWN_CODE = read_own_code()  # as it was when it was imported


@dataclass(frozen=True)
class RunResult:
    """What a run measured and where its record is."""

    run_id: str
    name: str
    status: str  # FINISHED, or FAILED when the training diverged
    objective: float | None  # of the best epoch; None when the training diverged
    metrics: Mapping[str, float]  # best/…, test/… and cost/…
    history: Mapping[str, Sequence[float]]  # metric -> one value per epoch
    artifacts: str  # folder, or URI when the store is on another machine


@dataclass(frozen=True)
class _Resume:
    """What a run resumes from earlier runs of its configuration."""

    attempt: StoredRun | None  # the run to continue
    checkpoint: Checkpoint | None  # to resume from
    superseded: list[str]  # ids of runs that it takes the place of
    outdated: list[str]  # ids of runs whose files nobody needs once it is finished


@dataclass(frozen=True)
class _Training:
    """One training: what it is built of, where it is recorded, and who hears of its epochs."""

    cfg: Any
    data: Dataset
    components: Components
    record: Run
    checkpoint: Checkpoint | None  # to resume from
    reproduces: str | None  # id of the run whose numbers it is to have
    on_epoch: Callable[[int, Mapping[str, float]], object]
    should_stop: EpochFunction


def run(
    configuration: Configuration,
    *,
    on_epoch: Callable[[int, Mapping[str, float]], object] = lambda epoch, metrics: None,
    should_stop: EpochFunction = lambda epoch, metrics: False,
    reproduces: str | None = None,
) -> RunResult:
    """Trains, evaluates and records what `configuration` describes.

    A job of a sweep that is finished already is not trained again: its result is returned. A run that was killed
    resumes from its last checkpoint.

    Args:
        configuration: the run.
        on_epoch: called at the end of every epoch with its number and metrics.
        should_stop: called after it with the same; returns true to end the training there.
        reproduces: id of the run whose numbers this one is to have again, from the first epoch on.

    Raises:
        StoreLost: the store does not answer; a sweep's job has waited for it.
        ExperimentError: what was asked cannot work, or another process trains it; nothing has been recorded.
    """
    cfg = configuration.cfg
    with console_log(of_a_job=bool(cfg.tracking.job)):
        _start_runtime(cfg)
        configuration = typed(configuration)
        _check_custom_tags(cfg)
        _reach_store(cfg)
        configuration, start = with_start(configuration)
        data: Dataset = build_part(cfg, "data", Dataset)
        tags = _identify(configuration, data) | ({"reproduces": reproduces} if reproduces else {})
        components = build(cfg, data)
        if start:
            start.load_into(components.model)
        tags["metric_modes"] = json.dumps({name: mode for name, mode in components.modes.items() if mode})
        if not cfg.tracking.job:  # a sweep has done it
            close_stale_runs()
        with lock(tags["fingerprint"]):
            earlier = earlier_runs(configuration)
            if not reproduces and (equal := _equal_run(cfg, tags, earlier)):
                return _as_recorded(cfg, equal)
            resume = _resume_from(cfg, tags, earlier, anew=reproduces is not None)
            with _opened(configuration, tags, resume) as record:
                if _has_changed(cfg, tags, record):
                    return _failed(record, {})
                training = _Training(
                    cfg, data, components, record, resume.checkpoint, reproduces, on_epoch, should_stop
                )
                with _saying_how_to_resume(training), record.system_metrics(wanted=cfg.tracking.system_metrics):
                    return _train(training)


def identify(configuration: Configuration) -> dict[str, str]:
    """The tags that identify a run of `configuration`: hashes of its values, data and code.

    Raises:
        ExperimentError: the data are not there.
    """
    _start_runtime(configuration.cfg)
    return _identify(configuration, build_part(configuration.cfg, "data", Dataset))


def plan(configuration: Configuration) -> Plan:
    """Builds everything that `configuration` describes, without training or recording.

    Raises:
        ExperimentError: it cannot work.
    """
    cfg = configuration.cfg
    forget_models(cfg.precision)
    _check_custom_tags(cfg)
    configuration, start = with_start(configuration)
    data: Dataset = build_part(cfg, "data", Dataset)
    tags = _identify(configuration, data)
    components = build(cfg, data)
    if start:
        start.load_into(components.model)
    return Plan(
        variant=tags["variant.id"],
        fingerprint=tags["fingerprint"],
        data_sha256=tags["data.sha256"],
        code_sha256=tags["code.sha256"],
        num_parameters=components.model.count_params(),
        parameters=typed(configuration).parameters,
        mode=components.mode,
        init_from=start.pinned if start else None,
    )


def _train(training: _Training) -> RunResult:
    """Fills the record of an open run."""
    cfg, data, record = training.cfg, training.data, training.record
    _log_start(training)
    artifacts.link_data(record, data, cfg.data._target_)
    batches = _training_batches(training)
    if training.checkpoint is None:  # a resumed run has them
        artifacts.draw_samples(record, data, batches, training.components.scaling)
    try:
        result = _fit(training, batches)
    except Diverged as diverged:
        record.fail(str(diverged), {"diverged": "true", "diverged_epoch": diverged.epoch})
        return _failed(record, diverged.history)
    outcome = _evaluate(training, result)
    metrics = artifacts.metrics(outcome)
    artifacts.write_tables(record, outcome)
    artifacts.draw(record, outcome)
    if cfg.tracking.model:
        artifacts.log_model(record, outcome)
    record.log_metrics(metrics)  # at step 0 the UI draws single values as bars beside each other
    record.set_tags(artifacts.digests(outcome))
    artifacts.summarize(record, outcome, metrics, cfg.tracking.note)
    objective = result.best[cfg.objective]
    return RunResult(record.id, record.name, "FINISHED", objective, metrics, result.history, record.artifacts)


def _fit(training: _Training, batches: tf.data.Dataset) -> TrainingResult:
    cfg, data, components, record = training.cfg, training.data, training.components, training.record
    terminal, resumed = sys.stdout.isatty(), training.checkpoint.epoch if training.checkpoint else 0

    def end_epoch(epoch: int, metrics: Mapping[str, float]) -> bool:
        record.log_metrics(metrics, step=epoch)
        values = "  ".join(f"{name} {metrics[name]:.4f}" for name in epoch_metrics(cfg) if name in metrics)
        # On a terminal the progress bar says the same; job.log has the line in any case.
        level = logging.DEBUG if terminal or epoch <= resumed else logging.INFO
        _log.log(level, "Epoch %d/%d  %s  %.1f s", epoch, cfg.epochs, values, metrics["epoch_seconds"])
        training.on_epoch(epoch, metrics)
        stopped = training.should_stop(epoch, metrics) and epoch < cfg.epochs
        if stopped and training.reproduces:
            _log.info("Stopped after epoch %d, the last one of the original run", epoch)
        elif stopped:
            _log.info("Pruned after epoch %d", epoch)
            record.set_tags({"pruned": "true"})
        return stopped

    recipe = Recipe(
        epochs=cfg.epochs,
        batch_size=cfg.batch_size,
        optimizer=components.optimizer,
        schedule=components.schedule,
        loss=components.loss,
        metrics=components.metrics,
        callbacks=components.callbacks,
        metric=cfg.objective,
        mode=components.mode,
        keep=cfg.keep,
        freezing=components.freezing,
    )
    return fit(
        components.model,
        batches,
        (data.validation_images, data.validation_labels),
        recipe,
        num_images=len(data.train_images),
        on_epoch=end_epoch,
        progress_bar=terminal,
        folder=record.folder,
        checkpoint=training.checkpoint,
    )


def _training_batches(training: _Training) -> tf.data.Dataset:
    cfg, data = training.cfg, training.data
    return training_batches(
        data.train_images,
        data.train_labels,
        data.num_classes,
        batch_size=cfg.batch_size,
        epochs=cfg.epochs,
        seed=cfg.seed,
        weights=data.train_weights,
        augmentation=training.components.augmentation,
        after_epoch=training.checkpoint.epoch if training.checkpoint else 0,
    )


def _evaluate(training: _Training, result: TrainingResult) -> Outcome:
    data, model, metrics = training.data, training.components.model, training.components.metrics
    validation = evaluate(model, data.validation_images, data.validation_labels)
    test = evaluate(model, data.test_images, data.test_labels)
    measured = measure(test, metrics)
    return Outcome(model, data, result, validation, test, measured, training.cfg.objective, training.cfg.keep)


def _failed(record: Run, history: Mapping[str, Sequence[float]]) -> RunResult:
    return RunResult(record.id, record.name, "FAILED", None, {}, history, record.artifacts)


def _start_runtime(cfg: Any) -> None:
    start_runtime(seed=cfg.seed, threads=cfg.threads, deterministic=cfg.deterministic, precision=cfg.precision)


def _reach_store(cfg: Any) -> None:
    if CHECKOUT is None:
        _log.info("Recording in %s", shown_uri())
    set_store_timeout(cfg.tracking.store_timeout if cfg.tracking.job else 0)
    check_store()


def _check_custom_tags(cfg: Any) -> None:
    for name in cfg.tracking.tags:
        if name in TAGS or name.startswith("mlflow."):
            raise ExperimentError(f"tracking.tags.{name}: the run sets this tag itself.", advice="Choose another name.")


def _identify(configuration: Configuration, data: Dataset) -> dict[str, str]:
    """The tags that identify a run: hashes of its values, data and code."""
    code = code_sha256(_OWN_CODE, configuration.cfg)
    return {
        "variant.id": configuration.variant,
        "fingerprint": configuration.fingerprint(data.sha256, code),
        "data.sha256": data.sha256,
        "data.validation_sha256": data.validation_sha256,
        "data.test_sha256": data.test_sha256,
        "code.sha256": code,
    }


def _equal_run(cfg: Any, tags: Mapping[str, str], earlier: Sequence[StoredRun]) -> StoredRun | None:
    """A result that a job of a sweep need not train again; for a single run it is only mentioned."""
    equal = [run for run in earlier if run.tags.get("fingerprint") == tags["fingerprint"]]
    done = next((run for run in equal if run.finished or run.diverged), None)
    if done and not cfg.tracking.job:
        _log.info("A finished run with the same result exists: %s (%s)", done.name, done.run_id)
    return done if cfg.tracking.job and not cfg.force else None


def _as_recorded(cfg: Any, run: StoredRun) -> RunResult:
    metrics = {name: value for name, value in run.metrics.items() if "/" in name}
    objective = metrics.get(f"best/{cfg.objective}")
    return RunResult(run.run_id, run.name, run.status, objective, metrics, {}, run.artifact_uri)


def _has_changed(cfg: Any, tags: Mapping[str, str], record: Run) -> bool:
    """Whether data or code are no longer those that a sweep has checked; its table would mix results."""
    changed = bool(cfg.tracking.job) and cfg.tracking.job.fingerprint != tags["fingerprint"]
    if changed:
        record.fail("the data or the code have changed since the sweep was started", {"reason": "changed"})
    return changed


def _resume_from(cfg: Any, tags: Mapping[str, str], earlier: Sequence[StoredRun], *, anew: bool) -> _Resume:
    """Finds the run and the checkpoint to resume from, and the runs that this one supersedes."""
    equal = [run for run in earlier if run.tags.get("fingerprint") == tags["fingerprint"]]
    broken = [run for run in equal if run.status != "FINISHED" and not run.diverged and "reproduces" not in run.tags]
    reproductions = {run.run_id for run in equal if "reproduces" in run.tags and run.status in ("FAILED", "KILLED")}
    if anew:
        return _Resume(None, None, [], sorted(reproductions))
    attempt, checkpoint = _resumable(broken if cfg.resume and not cfg.force else ())
    job = cfg.tracking.job
    same_job = [run for run in earlier if job and (run.parent, run.tags.get("job")) == (job.sweep, str(job.number))]
    over = {run.run_id for run in [*broken, *same_job] if run.status != "RUNNING" and "superseded" not in run.tags}
    itself = {attempt.run_id} if attempt else set()
    return _Resume(
        attempt=attempt,
        checkpoint=checkpoint,
        superseded=sorted(over - itself),
        outdated=sorted({run.run_id for run in broken} - itself | reproductions),
    )


def _resumable(runs: Sequence[StoredRun]) -> tuple[StoredRun, Checkpoint] | tuple[None, None]:
    """The first run that has an intact checkpoint, with the checkpoint."""
    for run in runs:
        if "superseded" not in run.tags and (checkpoint := checkpoints.newest(run_folder(run.run_id))):
            return run, checkpoint
    return None, None


def _opened(
    configuration: Configuration, tags: Mapping[str, str], resume: _Resume
) -> contextlib.AbstractContextManager[Run]:
    cfg, job = configuration.cfg, configuration.cfg.tracking.job
    named = names(configuration, job.swept if job else ())
    own: dict[str, object] = {"command": configuration.command, "variant": named.variant}
    if "reproduces" in tags:
        own["command"] = f"experiments reproduce {tags['reproduces']}"
    if configuration.experiment:
        own["experiment"] = configuration.experiment
    if job and (resume.attempt is None or resume.attempt.parent == job.sweep):  # or it has a place elsewhere
        own["job"] = job.number
    files = {"config.yaml": configuration.as_yaml, "environment.txt": environment()}
    if diff := uncommitted():
        files["git.diff"] = diff
    return open_run(
        experiment=str(cfg.tracking.experiment or configuration.choices["data"]),
        name=named.run,
        params=configuration.parameters,
        tags={**dict(cfg.tracking.tags), **own, **tags},
        files=files,
        parent=job.sweep if job else None,
        attempt=resume.attempt.run_id if resume.attempt else None,
        superseded=resume.superseded,
        outdated=resume.outdated,
        patience=cfg.tracking.store_timeout,
    )


def _log_start(training: _Training) -> None:
    _log.info("%s (%s)", training.record.name, training.record.id)
    if training.checkpoint:
        _log.info("Resuming after epoch %d", training.checkpoint.epoch)
        if not training.cfg.deterministic:
            _log.info("With deterministic=false the result is not bit-identical to that of an uninterrupted run.")
    log_class_weights(training.components.loss, training.data.class_names)
    warn_if_badly_scaled(training.components, training.data.train_images)
    suggest_faster_settings(training.cfg.threads, training.cfg.precision)


@contextlib.contextmanager
def _saying_how_to_resume(training: _Training) -> Iterator[None]:
    """Says after Ctrl-C what the same command would do."""
    try:
        yield
    except KeyboardInterrupt:
        checkpoint = checkpoints.newest(training.record.folder)
        if training.reproduces or not (training.cfg.resume and checkpoint):
            _log.info("Interrupted. The same command starts again from the first epoch.")
        else:
            _log.info("Interrupted. Run the same command again to resume after epoch %d.", checkpoint.epoch)
        raise
