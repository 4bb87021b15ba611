"""What the tests share: compose(), a throw-away MLflow store, and small files of real digits."""

import contextlib
import gc
import os
import shutil
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from commands import Server
from experiments import quiet_import
from experiments.config.compose import compose as composed

with quiet_import():
    import keras
    import mlflow

    from experiments.tracking.store import set_store_timeout
    from experiments.training.runtime import start_runtime

# Started in the background of a script, this process would hand its deafness to Ctrl-C on to the commands it tests.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests never touch the user's cache, store or settings.
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("MLFLOW_RUN_ID", None)
os.environ.pop("EXPERIMENTS_HOME", None)
os.environ.pop("EXPERIMENTS_ALLOW_TARGETS", None)


def pytest_collection_modifyitems(items):
    """The files with most slow tests first: two processes share the files, and none is to wait for the other's last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def compose():
    """Composes and checks a configuration from overrides."""
    return lambda *overrides, **options: composed(list(overrides), **options)


@pytest.fixture(scope="session")
def new_store(tmp_path_factory):
    """An MLflow store without runs; making its tables takes seconds, so it is made once."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(new_store, tmp_path, monkeypatch):
    """A client of a store of the test's own, which every run of the test goes to."""
    file = tmp_path / "store" / "mlflow.db"
    file.parent.mkdir()
    shutil.copy(new_store, file)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path / "home"))  # for what a failed run leaves behind
    set_store_timeout(0)  # whatever sweep an earlier test has opened
    return mlflow.MlflowClient(f"sqlite:///{file}")


@pytest.fixture(scope="module")
def shared_store(new_store, tmp_path_factory):
    """A client of a store that all tests of a module share, and the home of its runs."""
    home = tmp_path_factory.mktemp("shared")
    shutil.copy(new_store, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        patch.setenv("EXPERIMENTS_HOME", str(home))
        yield mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")


@pytest.fixture
def recorded_store(tmp_path, monkeypatch):
    """A client of the test's own copy of a store that version 0.1 has recorded, as its README describes."""
    shutil.unpack_archive(
        Path(__file__).parent / "fixtures" / "recorded_by_0_1" / "mlruns.tar.xz", tmp_path, filter="data"
    )
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    absolute = (
        "UPDATE experiments SET artifact_location = replace(artifact_location, 'file:///recorded', ?)",
        "UPDATE runs SET artifact_uri = replace(artifact_uri, 'file:///recorded', ?)",
        "UPDATE logged_models SET artifact_location = replace(artifact_location, 'file:///recorded', ?)",
    )
    with contextlib.closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database, database:
        for change in absolute:
            database.execute(change, [tmp_path.as_uri()])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path))
    set_store_timeout(0)
    return mlflow.MlflowClient(uri)


@pytest.fixture
def server(new_store, tmp_path, monkeypatch):
    """A server whose store every run of the test goes to."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(new_store.read_bytes())
    server = Server(folder)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("EXPERIMENTS_HOME", str(tmp_path / "home"))
    yield server
    server.kill()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A Keras cache of the tests' own."""
    folder = tmp_path_factory.mktemp("keras")
    before = os.environ.get("KERAS_HOME")
    os.environ["KERAS_HOME"] = str(folder)
    yield folder
    os.environ.pop("KERAS_HOME") if before is None else os.environ.update(KERAS_HOME=before)


@pytest.fixture(scope="session")
def digits(cache, tmp_path_factory) -> Path:
    """A file like MNIST's: 400 training and 100 test images, real digits."""
    from experiments.data import mnist_5k

    data = mnist_5k(validation_fraction=0.1111, split_seed=0, limit=400)
    file = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(
        file,
        x_train=data.train_images[..., 0],
        y_train=data.train_labels,
        x_test=data.test_images[:100, ..., 0],
        y_test=data.test_labels[:100],
    )
    return file


@pytest.fixture(scope="session", autouse=True)
def runtime():
    """TensorFlow as the default run has it, whichever test uses it first."""
    start_runtime(seed=0, threads=2, deterministic=True, precision="float32")


@pytest.fixture(scope="module", autouse=True)
def frozen_objects():
    """What was imported and collected so far stays: no clear_session() is to walk through it, 0.5 s a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_keras():
    """Layer names and dtype policy as in a new process."""
    keras.backend.clear_session()
    yield
    keras.config.set_dtype_policy("float32")
