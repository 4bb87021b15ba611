"""Passwords stay out of the record, and nothing foreign gets in or out of its folder."""

import shlex

import keras
import mlflow
import pytest

from commands import Command, experiments, runs
from experiments import ExperimentError, run
from experiments.config.compose import CHECKOUT
from experiments.reproduce import reproduce
from experiments.tracking.store import run_folder

PASSWORD = "hunter2-of-the-store"  # noqa: S105 - of nothing
TOKEN = "a1b2c3d4e5f6-token"  # noqa: S105 - of nothing
QUICK = ["data.limit=100", "epochs=1"]


@pytest.mark.slow
def test_no_secret_is_recorded(server, tmp_path):
    uri = server.uri.replace("http://", f"http://someone:{PASSWORD}@")
    secrets = {"MLFLOW_TRACKING_URI": uri, "SOME_API_TOKEN": TOKEN}
    words = [*QUICK, "tracking.note=${oc.env:SOME_API_TOKEN}", "+tracking.tags.idea='with ${oc.env:SOME_API_TOKEN}'"]
    words += [f"+tracking.tags.store={uri}"]
    done = experiments(*words, **secrets)
    assert done.returncode == 0, done.stdout
    # And of a run that fails with the password in its error, in a job of a sweep.
    words = ["-m", *QUICK, "seed=0", "model=broken", "--config-dir", str(broken_model(tmp_path))]
    allowed = {"EXPERIMENTS_ALLOW_TARGETS": "broken_net", "PYTHONPATH": str(tmp_path)}
    failed = experiments(*words, **secrets, **allowed)
    assert failed.returncode == 1, failed.stdout
    # And of a model that is refused before a run is opened.
    refused = experiments(*words[1:-2], "model.when=always", *words[-2:], **secrets, **allowed)
    assert refused.returncode == 2 and "broken_net.net cannot be applied" in refused.stdout
    assert len(runs(mlflow.MlflowClient(server.uri))) == 3
    written = [file for folder in (server.folder, tmp_path / "home") for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "traceback.txt" for file in written) and any(file.suffix == ".keras" for file in written)
    for secret in (PASSWORD, TOKEN):
        assert [str(file) for file in written if secret.encode() in file.read_bytes()] == []
        assert all(secret not in command.stdout for command in (done, failed, refused))


def broken_model(folder):
    """A net that raises with the store's URI and a token in its message in a step of training, or always."""
    (folder / "broken_net.py").write_text(
        "import os, keras, tensorflow\n\n"
        "class Broken(keras.layers.Dense):\n"
        "    when = 'step'\n\n"
        "    def call(self, x, training=None):\n"
        "        if training and (self.when == 'always' or not tensorflow.executing_eagerly()):\n"
        "            raise RuntimeError(os.environ['MLFLOW_TRACKING_URI'] + ' ' + os.environ['SOME_API_TOKEN'])\n"
        "        return super().call(x)\n\n"
        "def net(*, input_shape, num_classes, when):\n"
        "    Broken.when = when\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(),"
        " Broken(num_classes, 'softmax')])\n"
    )
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "broken.yaml").write_text("_target_: broken_net.net\nwhen: step\n")
    return folder / "conf"


@pytest.mark.slow
def test_the_recorded_command_runs_from_the_root_of_the_project(store, digits, tmp_path):
    place = tmp_path / "it's a folder"
    (place / "mine" / "model").mkdir(parents=True)
    (place / "mine" / "model" / "tiny.yaml").write_text("# Tiny.\ndefaults: [conv2, _self_]\nfilters: [2, 4]\n")
    (place / "few digits.npz").write_bytes(digits.read_bytes())
    words = ["--config-dir", "mine", "model=tiny", "data=mnist", "data.path='few digits.npz'", "epochs=1"]
    words += ["tracking.note='a \"quoted\" note, with $signs'", "tracking.model=false"]
    output = tmp_path / "output.txt"
    assert Command("train", *words, stdout=output, cwd=place).wait() == 0, output.read_text()
    (original,) = runs(store)
    command = shlex.split(original.data.tags["command"])
    again = Command(*command[1:], stdout=output, cwd=CHECKOUT or tmp_path)
    assert again.wait() == 0, output.read_text()
    second, _ = runs(store)
    for tag in ("weights.sha256", "fingerprint", "command"):
        assert second.data.tags[tag] == original.data.tags[tag]


@pytest.mark.parametrize("run_id", ["../../outside", "..", "a/b", ""])
def test_ids_of_a_store_cannot_leave_the_folder_of_runs(run_id):
    with pytest.raises(ExperimentError, match="is not the id of a run"):
        run_folder(run_id)


@pytest.mark.parametrize("name", ["..", "../../outside", "."])
def test_names_of_experiments_cannot_leave_the_folder_of_artifacts(name, store, tmp_path):
    result = run([*QUICK, f"tracking.experiment='{name}'", "tracking.model=false"])
    place = store.get_experiment(store.get_run(result.run_id).info.experiment_id)
    assert place.name == name
    inside = (tmp_path / "store" / "artifacts").resolve()
    assert [folder.parent for folder in inside.iterdir()] == [inside]
    assert (tmp_path / "store" / "artifacts" / next(inside.iterdir()).name / result.run_id).is_dir()


def test_a_model_that_holds_code_is_not_loaded(store, tmp_path, capsys):
    original = run([*QUICK])
    (output,) = store.get_run(original.run_id).outputs.model_outputs
    file = next((tmp_path / "store" / "artifacts").glob(f"*/models/{output.model_id}/artifacts/data/model.keras"))
    ran = tmp_path / "ran"
    name = str(ran)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(lambda x: (__import__("os").mkdir(name), x)[1])])
    ran.rmdir()
    model.save(file)
    store.set_tag(original.run_id, "weights.sha256", "another")
    assert not reproduce(original.run_id)
    said = capsys.readouterr().out
    assert f"The model of {original.run_id} cannot be compared: " in said
    assert not ran.exists()
