"""Runs as a training records them, made with MLflow's client in a moment."""

import copy
import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param
from omegaconf import OmegaConf

from experiments.config.compose import compose
from experiments.config.configuration import Plan
from experiments.sweeps.display import Display
from experiments.sweeps.jobs import Job, apply_result
from experiments.sweeps.sweep import open_sweep
from experiments.tracking.runs import get_run
from experiments.tracking.store import experiment_id, local_folder

DATA = {"data.sha256": "d" * 64, "data.validation_sha256": "v" * 64, "data.test_sha256": "t" * 64}
PARAMS = {"model": "conv2", "model.dropout": "0.0", "optimizer": "adam", "optimizer.learning_rate": "0.001",
          "seed": "0", "objective": "val_accuracy", "data": "mnist_5k", "data.limit": "null"}  # fmt: skip


def record(store, *, name="conv2 seed=0", status="FINISHED", params=None, tags=None, metrics=None, files=None, **more):
    """Records a run and returns its id.

    Args:
        store: an MLflow client.
        name: of the run.
        status: that it ends with; RUNNING for one that does not.
        params: beside PARAMS.
        tags: beside those of a run on DATA.
        metrics: of the run.
        files: artifacts, name -> bytes.
        more: `start_time` in milliseconds, or `experiment_id`.
    """
    place = more.pop("experiment_id", None) or experiment_id(store, "digits")
    own = {"variant": "a", "fingerprint": "f", "code.sha256": "c", "host": "here", **DATA, **(tags or {})}
    own = {key: value for key, value in own.items() if value is not None}
    run_id = store.create_run(place, tags=own, run_name=name, **more).info.run_id
    values = {**PARAMS, **(params or {})}
    store.log_batch(
        run_id,
        params=[Param(key, value) for key, value in values.items() if value is not None],
        metrics=[Metric(key, value, 1, 0) for key, value in (metrics or {}).items()],
    )
    _write(store.get_run(run_id).info.artifact_uri, files or {}, lambda folder: store.log_artifacts(run_id, folder))
    if status != "RUNNING":
        store.set_terminated(run_id, status)
    return run_id


def add_model(store, run_id, content=b"weights"):
    """Logs a model of a run, a file of such content, and returns its id."""
    place = store.get_run(run_id).info.experiment_id
    model = store.create_logged_model(place, name="model", source_run_id=run_id)
    send = lambda folder: store.log_model_artifacts(model.model_id, folder)  # noqa: E731
    _write(model.artifact_location, {"model.keras": content}, send)
    store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    store.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=1)])
    return model.model_id


def record_sweep(store, name, variants, accuracy, *, seeds=1, space=None):
    """Records a sweep whose jobs have all finished, as `experiments train` does, without training, and returns its run.

    Args:
        store: an MLflow client.
        name: of the sweep.
        variants: swept key -> value as text, for each variant.
        accuracy: function of the number of a variant and the seed: validation accuracy of the best epoch.
        seeds: of each variant.
        space: of a search: searched key -> what its values are drawn from, in words.
    """
    jobs = []
    for number, values in enumerate(variants):
        configuration = _composed(values)
        plan = Plan(configuration.variant, "", "d" * 64, "c", 1000, {}, "max")
        for seed in range(seeds):
            swept = values | ({"seed": str(seed)} if seeds > 1 else {})
            trial = None if space is None else number
            jobs.append(Job(len(jobs), (), swept, configuration, swept, plan, trial=trial))
    with open_sweep(jobs, jobs[0].configuration, "digits", name, Display()) as sweep:
        for job in jobs:
            number, seed = divmod(job.number, seeds)
            best = accuracy(number, seed)
            values = [(key.rpartition(".")[2], value) for key, value in variants[number].items()]
            words = " ".join(value if key == "model" else f"{key}={value}" for key, value in values)
            tags = {"mlflow.parentRunId": sweep.parent.run_id, "sweep": name, "job": str(job.number), "host": "here"}
            tags |= DATA | {"variant": words, "variant.id": job.configuration.variant, "code.sha256": "c"}
            run_id = store.create_run(
                sweep.parent.experiment_id, tags=tags, run_name=f"{words} seed={seed}"
            ).info.run_id
            curves = {"val_accuracy": [best - 0.1, best - 0.02, best], "val_loss": [1.0, 0.5, 1.2 - best]}
            costs = {"train_seconds": 10.0 + number, "parameters": 1000.0 * (1 + number % 7)}
            results = {"best/val_accuracy": best, "test/accuracy": best - 0.01}
            results |= {f"cost/{cost}": value for cost, value in costs.items()}
            store.log_batch(
                run_id,
                [Metric(key, value, 1, 1 + step) for key in curves for step, value in enumerate(curves[key])]
                + [Metric(key, value, 1, 3) for key, value in results.items()],
                [Param(*item) for item in (job.configuration.parameters | {"seed": str(seed)}).items()],
            )
            store.set_terminated(run_id)
        for run in sweep.parent.runs():
            apply_result(jobs[int(run.tags["job"])], run)
        if space is not None:
            sweep.parent.set_tags({"search.trials": len(variants)})
            sweep.set_space(space)
            sweep.set_importance({key: 1 / len(space) for key in space})
    return get_run(sweep.parent.run_id)


def _composed(values):
    """A configuration; composed from files for each choice of options alone, which takes a while."""
    base = _of_choices(tuple(f"{key}={value}" for key, value in values.items() if "." not in key))
    cfg = copy.deepcopy(base.cfg)
    for key, value in values.items():
        if "." in key:
            OmegaConf.update(cfg, key, yaml.safe_load(value))
    return replace(base, cfg=cfg)


@functools.cache
def _of_choices(words):
    return compose(list(words))


def _write(uri, files, send):
    """Writes files into a folder of artifacts, or lets the client send them to the server that has it."""
    place = local_folder(uri)
    with tempfile.TemporaryDirectory() as elsewhere:
        for name, content in files.items():
            file = Path(place or elsewhere, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        if files and place is None:
            send(elsewhere)
