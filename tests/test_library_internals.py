"""Private names of libraries: each still does what it is used for, and none is used anywhere else."""

import ast
from pathlib import Path

import keras
import mlflow
import pytest
from hydra.core.utils import JobReturn, JobStatus
from mlflow.store.db.utils import create_sqlalchemy_engine

import experiments
from experiments import library_internals
from records import add_model, record

PACKAGE = Path(experiments.__file__).parent
#: Private by their spelling only.
PUBLIC = {"_asdict", "_fields", "_replace", "_exit"}


def test_the_command_line_of_a_hydra_application_is_parsed():
    parsed = library_internals.hydra_argument_parser().parse_args(["-m", "--config-dir", "mine", "model=conv3"])
    assert (parsed.multirun, parsed.config_dir, parsed.overrides) == (True, "mine", ["model=conv3"])
    assert (parsed.config_name, parsed.config_path, parsed.experimental_rerun) == (None, None, None)
    assert not (parsed.help or parsed.hydra_help or parsed.shell_completion)


def test_the_error_of_a_failed_job_is_returned_and_not_raised(capsys):
    failed = JobReturn(status=JobStatus.FAILED)
    failed.return_value = ValueError("spoiled")
    assert library_internals.job_error(failed) is failed._return_value
    assert capsys.readouterr() == ("", "")
    completed = JobReturn(status=JobStatus.COMPLETED)
    completed.return_value = 0.5
    assert library_internals.job_error(completed) is None


def test_the_tables_of_mlflow_are_created(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    engine = create_sqlalchemy_engine(uri)
    try:
        library_internals.create_mlflow_tables(engine, "file:///some/folder")
    finally:
        engine.dispose()
    (experiment,) = mlflow.MlflowClient(uri).search_experiments()  # refused if a table were missing or an old one
    assert (experiment.experiment_id, experiment.name, experiment.lifecycle_stage) == ("0", "Default", "active")
    assert experiment.artifact_location == "file:///some/folder" and experiment.creation_time > 0


def test_runs_and_models_are_deleted_from_a_database_and_not_on_a_server(store):
    run_id = record(store, status="FAILED", metrics={"loss": 1.0})
    model_id = add_model(store, run_id)
    other = record(store)
    assert library_internals.delete_for_good(store, model_id=model_id)
    assert library_internals.delete_for_good(store, run_id=run_id)
    for ask in (lambda: store.get_run(run_id), lambda: store.get_logged_model(model_id)):
        with pytest.raises(mlflow.MlflowException, match="not found"):
            ask()
    assert store.get_run(other).info.status == "FINISHED"
    assert not library_internals.delete_for_good(mlflow.MlflowClient("http://127.0.0.1:1"), run_id=other)


def test_keras_says_what_is_better():
    metrics = keras.metrics
    known = {metrics.AUC(): "max", metrics.F1Score(): "max", metrics.CategoricalCrossentropy(): "min"}
    assert [library_internals.metric_mode(metric) for metric in known] == list(known.values())
    assert library_internals.metric_mode(metrics.Mean()) is None


@pytest.mark.parametrize("callback", [keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau])
def test_the_mode_of_a_callback_is_resolved(callback):
    made = callback(monitor="val_loss", min_delta=0.01)
    made.set_model(keras.Sequential())
    library_internals.set_monitor_op(made)
    assert made.monitor_op(1, 2)


def private_names(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if ast.unparse(node.value) not in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (part for part in str(node.module).split(".") if part.startswith("_"))
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.keyword) and (node.arg or "").startswith("_"):
            yield node.arg


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_private_names_are_used_in_one_file_only(file):
    if file.stem != "library_internals":
        found = {name for name in private_names(file) if not name.endswith("_")}  # as Hydra's keys do
        assert found - PUBLIC == set()
