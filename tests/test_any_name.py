"""Homes, folders, files, sweeps, experiments and models with any characters in their names work in every command."""

import json
import re
import shlex
import signal
import subprocess
import time
import urllib.request

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import make_url

from commands import Command, answers, free_port, runs
from experiments import load, run
from experiments.config.overrides import quoted
from experiments.tracking.store import sqlite_file, store_uri

SPECIAL = " %?#&+$()[]{}'\"~=@:;,!*|<>^`\\"
ALL = f"mü 実%20{SPECIAL}"
SMALL = ["data=npz", "data.limit=40", "epochs=1", "batch_size=20", "model.filters=[2,2]"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A function that makes a home of some name, with a file of images in it, and goes there."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setenv("EXPERIMENTS_HOME", str(folder))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        random = np.random.RandomState(0)
        images, labels = random.randint(0, 255, (80, 28, 28)), np.arange(80) % 2
        np.savez(
            folder / f"{name}.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:]
        )
        Image.fromarray(images[0].astype("uint8")).save(folder / f"{name}.png")
        return folder

    return make


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_the_uri_of_a_store_names_its_file(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPERIMENTS_HOME", f"/no-such-folder/{name}x")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        expected = f"/no-such-folder/{name}x/mlruns/mlflow.db"
        assert str(sqlite_file(store_uri())) == make_url(store_uri()).database == expected
        patch.setenv("MLFLOW_TRACKING_URI", store_uri())
        assert str(sqlite_file(store_uri())) == expected


@pytest.mark.slow
@pytest.mark.parametrize("characters", ["ü実\N{SNOWMAN}", "%20%2F", *re.findall(".{1,6}", SPECIAL)])
def test_a_run_in_a_home_with_any_characters(home, characters):
    name = f"a{characters}b"
    folder = home(name)
    file = folder / f"{name}.npz"
    result = run([*SMALL, f"data.path={quoted(str(file))}", f"tracking.experiment={quoted(name)}"])
    assert (result.status, store_uri()) == ("FINISHED", mlflow.get_tracking_uri())
    classifier = load(result.run_id)
    assert classifier.predict(np.zeros((1, 28, 28), np.uint8)).shape == (1, 2)
    assert {entry.name for entry in folder.parent.iterdir()} == {name}
    assert {entry.name for entry in folder.iterdir()} == {"mlruns", f"{name}.npz", f"{name}.png"}
    assert {entry.name for entry in (folder / "mlruns").iterdir()} == {"artifacts", "jobs", "mlflow.db"}


@pytest.mark.slow
def test_every_command_in_a_home_of_all_characters(home, tmp_path):
    folder = home(ALL)
    data = f"data.path={quoted(f'{ALL}.npz')}"
    option = folder / ALL / "model" / "mi né.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("# a net of mine\ndefaults: [conv2, _self_]\nfilters: [2, 2]\n", encoding="utf-8")
    own = ["--config-dir", ALL, f"model={quoted('mi né')}", *SMALL[:-1], data]

    def command(*words, status=0):
        files = {"stdout": tmp_path / "output.txt", "stderr": tmp_path / "errors.txt"}
        done = Command(*words, **files, cwd=folder)
        returned = done.wait(300)
        text, errors = (file.read_text() for file in files.values())
        assert returned == status, text + errors
        assert not any(word in text + errors for word in ("Traceback", "Warning")), text + errors
        return text

    assert "mi né                     a net of mine" in command("list", "model", "--config-dir", ALL)
    command("train", *own, f"tracking.experiment={quoted(ALL)}")
    grid = folder / ALL / "sweep" / f"{ALL}.yaml"
    grid.parent.mkdir()
    params = 'params: {"model.filters": "[2,2],[3,3]", seed: "0,1"}'
    grid.write_text(f"# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper: {{{params}}}\n")
    printed = command("train", *own, f"sweep={quoted(ALL)}", f"tracking.experiment={quoted(f'sweeps {ALL}')}")
    assert "4 jobs" in printed, printed
    assert "best" in command("compare", "--csv", f"{ALL}.csv", "--html", f"{ALL}.html")
    assert (folder / f"{ALL}.csv").exists() and (folder / f"{ALL}.html").exists()
    (prediction,) = json.loads(command("predict", "last", f"{ALL}.png", "--json", "--picture", f"{ALL} 2.png"))
    assert prediction["file"] == f"{ALL}.png"
    assert "version 1" in command("register", "last", "--name", "it's 1%?#&+ net")
    command("predict", "models:/it's 1%?#&+ net@champion", f"{ALL}.png")
    command("export", "last", "--format", "keras", "--out", ALL)
    command("predict", f"{ALL}/model.keras", f"{ALL}.png")
    command("reproduce", "last")
    command("sync")

    client = mlflow.MlflowClient(store_uri())
    recorded = [each for each in runs(client) if "command" in each.data.tags]
    assert len(recorded) >= 6
    for each in recorded:  # a shell reads the words that were meant
        said = each.data.tags["command"]
        echo = 'experiments() { printf "%s\\0" "$@"; }; ' + said
        words = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
        assert words == shlex.split(said)[1:]
    single = next(
        each
        for each in recorded
        if each.data.tags["command"].startswith("experiments train") and "job" not in each.data.tags
    )
    command(*shlex.split(single.data.tags["command"])[1:], "dry_run=true")
    assert {entry.name for entry in folder.parent.iterdir()} == {ALL, "output.txt", "errors.txt"}

    port = free_port()
    ui = Command("ui", "--port", port, stdout=tmp_path / "ui.txt", cwd=folder)
    try:
        deadline = time.monotonic() + 120
        while "The runs: " not in (tmp_path / "ui.txt").read_text():
            assert ui.poll() is None and time.monotonic() < deadline, (tmp_path / "ui.txt").read_text()
            time.sleep(0.1)
        ask = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
            b'{"max_results": 9}',
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(ask) as answer:  # noqa: S310 - of this test
            names = {experiment["name"] for experiment in json.load(answer)["experiments"]}
        assert {ALL, f"sweeps {ALL}"} <= names
    finally:
        ui.process.terminate()  # killed, it would leave its server behind
        assert ui.wait(60) == 128 + signal.SIGTERM
    assert not answers(port)
