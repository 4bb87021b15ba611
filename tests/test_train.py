"""One run, from its configuration to its complete record."""

import json
import logging
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import binomtest

from experiments import ExperimentError, dataset, run
from experiments.config.compose import CONF_DIR
from experiments.data import mnist

EPOCH_METRICS = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds"}
RUN_METRICS = {
    *(f"best/{name}" for name in ("epoch", "val_loss", "val_accuracy")),
    *(f"test/{name}" for name in ("accuracy", "loss", "macro_f1", "weighted_f1", "calibration_error")),
    *(f"cost/{name}" for name in ("train_seconds", "images_per_second", "parameters", "macs")),
}
FIGURES = {"samples.png", "curves.png", "confusion_matrix.png", "predictions.png", "mistakes.png", "reliability.png"}
ARTIFACTS = {
    "config.yaml", "environment.txt", "provenance.json", *(f"figures/{name}" for name in FIGURES),
    "classification_report.txt", "classification_report.json", "validation_predictions.npz", "test_predictions.npz",
    "validation_scores.npy", "test_scores.npy", "mistakes.npz", "job.log",
}  # fmt: skip
CALLBACKS = sorted(file.stem for file in (CONF_DIR / "callbacks").glob("*.yaml"))
EXPERIMENTS = sorted(file.stem for file in (CONF_DIR / "experiment").glob("*.yaml"))


def small(digits, *more):
    return ["data=mnist", f"data.path={digits}", "epochs=1", *more]


def text(client, run_id, name):
    return Path(client.download_artifacts(run_id, name)).read_text()


def artifacts(client, run_id):
    """The paths of a run's artifacts, without the diff of code that the tests run on and that is not committed."""
    found = [*client.list_artifacts(run_id), *client.list_artifacts(run_id, "figures")]
    return {file.path for file in found} - {"git.diff", "figures"}


def arrays(client, run_id, name):
    with np.load(client.download_artifacts(run_id, name)) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.slow
def test_a_run_leaves_a_complete_record(store, digits, tmp_path):
    overrides = small(digits, "epochs=5", "model=conv3", "callbacks=early_stopping", "+tracking.tags.idea=deeper")
    result = run([*overrides, "tracking.note=Is deeper *better*?", "callbacks.early_stopping.patience=9"])
    record = store.get_run(result.run_id)

    assert record.info.status == "FINISHED" and result.status == "FINISHED"
    assert record.info.run_name == result.name
    assert result.name == "conv3 data=mnist callbacks=[early_stopping] patience=9 seed=0"
    assert record.data.tags["variant"] == "conv3 data=mnist callbacks=[early_stopping] patience=9"
    experiment = store.get_experiment(record.info.experiment_id)
    assert experiment.name == "mnist"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"

    assert record.data.params == {
        "data": "mnist",
        "scale": "unit",
        "augment": "none",
        "model": "conv3",
        "loss": "categorical_crossentropy",
        "optimizer": "adam",
        "schedule": "constant",
        "callbacks": "[early_stopping]",
        "metrics": "[]",
        "epochs": "5",
        "batch_size": "32",
        "precision": "float32",
        "seed": "0",
        "threads": "2",
        "deterministic": "true",
        "class_weight": "none",
        "keep": "best",
        "init_from": "null",
        "freeze": "[]",
        "unfreeze_at_epoch": "null",
        "head_learning_rate": "null",
        "objective": "val_accuracy",
        "data._target_": "experiments.data.mnist",
        "data.validation_fraction": "0.1",
        "data.split_seed": "0",
        "data.folds": "null",
        "data.fold": "null",
        "data.duplicates": "warn",
        "data.limit": "null",
        "scale._target_": "keras.layers.Rescaling",
        "scale.scale": "0.00392156862745098",
        "model._target_": "experiments.models.convnet",
        "model.filters": "[32, 64, 128]",
        "model.kernel_size": "3",
        "model.pool_sizes": "[2, 2, 1]",
        "model.batch_norm": "false",
        "model.conv_dropout": "0.0",
        "model.dense_units": "[128]",
        "model.dropout": "0.0",
        "model.activation": "relu",
        "model.padding": "valid",
        "loss._target_": "keras.losses.CategoricalCrossentropy",
        "loss.label_smoothing": "0.0",
        "optimizer._target_": "keras.optimizers.Adam",
        "optimizer.learning_rate": "0.001",
        "optimizer.beta_1": "0.9",
        "optimizer.beta_2": "0.999",
        "schedule._target_": "experiments.schedules.constant",
        "callbacks.early_stopping._target_": "keras.callbacks.EarlyStopping",
        "callbacks.early_stopping.monitor": "val_accuracy",
        "callbacks.early_stopping.patience": "9",
        "callbacks.early_stopping.min_delta": "0.0",
    }

    assert set(record.data.metrics) == EPOCH_METRICS | RUN_METRICS
    for name in EPOCH_METRICS:
        points = store.get_metric_history(result.run_id, name)
        assert [point.step for point in points] == [1, 2, 3, 4, 5]
        assert [point.value for point in points] == list(result.history[name])
    for name in RUN_METRICS:
        (point,) = store.get_metric_history(result.run_id, name)
        assert point.value == result.metrics[name]
    best = record.data.metrics["best/epoch"]
    assert best == 1 + np.argmax(result.history["val_accuracy"])
    assert record.data.metrics["cost/parameters"] == 241546

    assert record.data.tags["mlflow.source.name"] == "experiments train"
    own = {tag: value for tag, value in record.data.tags.items() if not tag.startswith("mlflow.")}
    assert set(own) - {"git.commit", "git.dirty"} == {
        "metric_modes", "variant.id",
        "variant", "fingerprint", "command", "data.sha256", "data.validation_sha256", "data.test_sha256", "code.sha256",
        "host", "pid", "idea", "weights.sha256", "predictions.sha256",
    }  # fmt: skip
    assert own["idea"] == "deeper"
    assert own["command"].startswith("experiments train data=mnist data.path=")
    note = record.data.tags["mlflow.note.content"]
    assert note.startswith(f"Is deeper *better*?\n\n**Test accuracy {result.metrics['test/accuracy']:.2%}** (95 % ")
    assert "\n\n241,546 parameters, 3,237,248 MACs, " in note
    assert record.data.metrics["cost/macs"] == 3237248
    assert note.endswith("; digits: 360 / 40 / 100 images to train, validate and test".replace("digits", "mnist"))

    assert artifacts(store, result.run_id) == ARTIFACTS
    provenance = json.loads(text(store, result.run_id, "provenance.json"))
    assert set(provenance) >= {"host", "pid", "platform", "python", "tensorflow", "keras", "mlflow"}
    config = OmegaConf.load(store.download_artifacts(result.run_id, "config.yaml"))
    assert config.model.filters == [32, 64, 128]
    log = text(store, result.run_id, "job.log")
    assert [line.split()[4] for line in log.splitlines() if " Epoch " in line] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    wrong = arrays(store, result.run_id, "mistakes.npz")
    test = arrays(store, result.run_id, "test_predictions.npz")
    assert set(wrong["index"]) == set(np.flatnonzero(test["probabilities"].argmax(axis=1) != test["labels"]))
    assert list(wrong["label"].astype(int)) == list(test["labels"][wrong["index"]])
    assert list(wrong["predicted"].astype(int)) == list(test["probabilities"][wrong["index"]].argmax(axis=1))
    report = json.loads(text(store, result.run_id, "classification_report.json"))
    assert report["macro avg"]["f1-score"] == pytest.approx(record.data.metrics["test/macro_f1"])

    (model,) = store.search_logged_models([record.info.experiment_id])
    assert model.name == "model" and model.source_run_id == result.run_id
    (output,) = record.outputs.model_outputs
    assert output.step == best
    assert predicted_elsewhere(model.model_uri, digits, tmp_path) == pytest.approx(test["probabilities"], abs=1e-6)
    right = (test["probabilities"].argmax(axis=1) == test["labels"]).mean()
    assert record.data.metrics["test/accuracy"] == right


def test_accuracy_without_rejected_labels_where_they_are_known(store, digits, tmp_path, monkeypatch):
    quick = ["epochs=1", "tracking.model=false", "model.filters=[2,4]"]
    monkeypatch.setattr(dataset, "MNIST_REJECTED", (3, 14, 98))
    tests = mnist(path=str(digits), validation_fraction=0.1, split_seed=0, limit=None)
    assert tests.rejected_labels == ()  # these are not all 10,000 images of MNIST's test set
    assert "test/accuracy_clean" not in run(small(digits, *quick)).metrics
    monkeypatch.setattr(dataset, "MNIST_TEST_SHA256", tests.test_sha256)
    result = run(["data=npz", f"data.path={digits}", *quick])  # known by its arrays, not by its name
    said = arrays(store, result.run_id, "test_predictions.npz")
    right = said["probabilities"].argmax(axis=1) == said["labels"]
    left = [index for index in range(100) if index not in (3, 14, 98)]
    assert result.metrics["test/accuracy_clean"] == right[left].sum() / 97
    assert result.metrics["test/accuracy"] == right.sum() / 100
    assert "test/accuracy_clean" not in run(small(digits, *quick, "data.limit=99")).metrics
    relabelled = dict(np.load(digits))
    relabelled["y_test"][0] = (relabelled["y_test"][0] + 1) % 10
    np.savez(tmp_path / "relabelled.npz", **relabelled)
    assert "test/accuracy_clean" not in run(small(tmp_path / "relabelled.npz", *quick)).metrics


def test_a_run_of_a_model_that_cannot_be_counted_says_so(store, digits, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "rows.yaml").write_text(
        """# Every row by itself, then all of them.
_target_: experiments.models.sequential
layers:
  - {_target_: keras.layers.TimeDistributed, layer: {_target_: keras.layers.Flatten}}
  - {_target_: keras.layers.TimeDistributed, layer: {_target_: keras.layers.Dense, units: 3}}
  - {_target_: keras.layers.Flatten}
classifier: true
"""
    )
    result = run(small(digits, "model=rows", "data.limit=20", "tracking.model=false"), config_dir=str(tmp_path))
    assert result.metrics["cost/parameters"] == (28 + 1) * 3 + (28 * 3 + 1) * 10
    assert "cost/macs" not in result.metrics
    said = "cost/macs is not recorded: the operations of a layer of the model cannot be counted."
    assert said in capsys.readouterr().out
    note = store.get_run(result.run_id).data.tags["mlflow.note.content"]
    assert "937 parameters, " in note and "MACs" not in note


def predicted_elsewhere(uri, digits, tmp_path):
    """What the logged model says in a process that does not know this package."""
    program = f"""
import sys, mlflow, numpy as np
images = np.load({str(digits)!r})["x_test"][..., np.newaxis]
model = mlflow.pyfunc.load_model({uri!r})
assert model.metadata.signature.inputs.inputs[0].shape == (-1, 28, 28, 1)
assert model.metadata.metadata["class_names"] == list("0123456789")
answer = model.predict(images)
assert list(answer.columns) == list("0123456789")
np.save({str(tmp_path / "elsewhere.npy")!r}, answer)
assert not any(name.split(".")[0] == "experiments" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return np.load(tmp_path / "elsewhere.npy")


@pytest.mark.slow
def test_the_same_configuration_twice_in_one_process_gives_the_same_bits(store, digits):
    results = [run(small(digits, "epochs=2", "augment=shift_rotate", "model=conv3_dropout")) for _ in range(2)]
    first, second = ({k: v for k, v in result.history.items() if k != "epoch_seconds"} for result in results)
    assert first == second
    for name in ("validation_predictions.npz", "test_predictions.npz"):
        a, b = (arrays(store, result.run_id, name)["probabilities"] for result in results)
        assert np.array_equal(a, b)
    a, b = (store.get_run(result.run_id).data.tags for result in results)
    assert a["fingerprint"] == b["fingerprint"]
    other = store.get_run(run(small(digits, "seed=1")).run_id).data.tags
    assert other["fingerprint"] != a["fingerprint"]


def test_settings_of_keras_outside_the_configuration_change_nothing(store, digits):
    words = small(digits, "model.batch_norm=true")
    first = run(words)
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(0.1)
    keras.config.set_image_data_format("channels_first")
    keras.config.set_max_epochs(0)
    keras.config.set_max_steps_per_epoch(1)
    tags = [store.get_run(result.run_id).data.tags for result in (first, run(words))]
    assert [tags[0][name] for name in ("weights.sha256", "fingerprint")] == [
        tags[1][name] for name in ("weights.sha256", "fingerprint")
    ]


def test_the_result_is_frozen(store, digits):
    result = run(small(digits, "data.limit=20", "tracking.model=false"))
    with pytest.raises(FrozenInstanceError):
        result.status = "FAILED"
    assert result.objective == result.metrics["best/val_accuracy"] == result.history["val_accuracy"][0]
    assert store.search_logged_models([store.get_run(result.run_id).info.experiment_id]) == []


def test_seed_note_tags_and_paths_are_no_part_of_a_variant(store, digits, tmp_path):
    other = tmp_path / "elsewhere.npz"
    other.write_bytes(digits.read_bytes())
    quick = ["data.limit=20", "tracking.model=false"]
    plain = run(small(digits, *quick))
    same = run(small(other, *quick, "+tracking.tags.idea=x", "tracking.note=why"))
    seeded = run(small(digits, *quick, "seed=1"))
    a, b, c = (store.get_run(result.run_id).data.tags for result in (plain, same, seeded))
    assert a["variant"] == b["variant"] == c["variant"] == "conv2 data=mnist limit=20 epochs=1"
    assert a["variant.id"] == b["variant.id"] == c["variant.id"]
    assert a["fingerprint"] == b["fingerprint"] != c["fingerprint"]
    assert plain.history["loss"] == same.history["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", [[], *([name] for name in CALLBACKS), CALLBACKS])
def test_record_and_logged_model_speak_of_the_same_epoch(store, digits, callbacks):
    result = run(small(digits, "epochs=3", f"callbacks=[{','.join(callbacks)}]", "optimizer.learning_rate=0.01"))
    saved = keras_model(store, result)
    saved.compile(loss="categorical_crossentropy", metrics=["accuracy"])
    said = arrays(store, result.run_id, "validation_predictions.npz")
    images = validation_images(digits)
    loss, accuracy = saved.evaluate(images, keras.utils.to_categorical(said["labels"], 10), verbose=0)
    assert loss == pytest.approx(result.metrics["best/val_loss"], abs=1e-6)
    assert accuracy == pytest.approx(result.metrics["best/val_accuracy"], abs=1e-6)


def keras_model(store, result):
    (model,) = store.search_logged_models([store.get_run(result.run_id).info.experiment_id])
    return mlflow.keras.load_model(model.model_uri)


def validation_images(digits):
    return mnist(path=str(digits), validation_fraction=0.1, split_seed=0, limit=None).validation_images


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains(store, digits, experiment):
    result = run([f"experiment={experiment}", f"data.path={digits}", "data.limit=100", "epochs=1"])
    assert result.status == "FINISHED" and list(result.history["val_accuracy"])
    assert store.get_run(result.run_id).data.tags["experiment"] == experiment


def test_the_experiments_are_all_found():
    assert len(EXPERIMENTS) >= 6 and len(CALLBACKS) >= 3


@pytest.mark.slow
def test_an_architecture_is_a_yaml_file(store, digits, tmp_path):
    folder = tmp_path / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "tiny_vgg.yaml").write_text(
        """# Two 3x3 convolutions, global pooling.
_target_: experiments.models.sequential
layers:
  - {_target_: keras.layers.Conv2D, filters: 4, kernel_size: 3, kernel_regularizer: {_target_: keras.regularizers.L2}}
  - {_target_: keras.layers.ReLU}
  - {_target_: keras.layers.Conv2D, filters: 10, kernel_size: 3}
  - {_target_: keras.layers.GlobalAveragePooling2D}
classifier: false
"""
    )
    result = run(small(digits, "model=tiny_vgg", "data.limit=50"), config_dir=str(folder))
    assert result.metrics["cost/parameters"] == (9 + 1) * 4 + (4 * 9 + 1) * 10
    record = store.get_run(result.run_id)
    assert record.data.params["model"] == "tiny_vgg"
    assert record.data.tags["command"].startswith(f"experiments train --config-dir {folder} ")


BUILDER = """
import keras

def linear(input_shape, num_classes, l2):
    image = keras.Input(input_shape)
    pixels = keras.layers.Flatten()(image)
    logits = keras.layers.Dense(num_classes, kernel_regularizer=keras.regularizers.L2(l2))(pixels)
    residual = keras.layers.Dense(num_classes)(pixels)  # a branch, which no list of layers has
    return keras.Model(image, keras.layers.Softmax()(logits + residual))
"""


@pytest.mark.slow
def test_a_builder_of_ones_own_in_python(store, digits, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "linear_nets.py").write_text(BUILDER)
    (tmp_path / "model" / "linear.yaml").write_text("# Softmax regression.\n_target_: linear_nets.linear\nl2: 0.001\n")
    overrides = small(digits, "model=linear", "data.limit=50")
    with pytest.raises(ExperimentError, match=r"export EXPERIMENTS_ALLOW_TARGETS=linear_nets\.linear$"):
        run(overrides, config_dir=str(tmp_path))
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "linear_nets")
    with pytest.raises(ExperimentError, match="Put the folder that holds it on PYTHONPATH"):
        run(overrides, config_dir=str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    result = run(overrides, config_dir=str(tmp_path))
    assert result.metrics["cost/parameters"] == 2 * 7850
    said = arrays(store, result.run_id, "validation_predictions.npz")["probabilities"]
    images = mnist(path=str(digits), validation_fraction=0.1, split_seed=0, limit=50).validation_images
    assert keras_model(store, result).predict(images, verbose=0) == pytest.approx(said, abs=1e-6)
    with pytest.raises(ExperimentError, match=r"model.l3: linear_nets.linear has no such argument\. Allowed: l2\."):
        (tmp_path / "model" / "linear.yaml").write_text("_target_: linear_nets.linear\nl3: 0.001\n")
        run(overrides, config_dir=str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["unit", "standard", "l2_columns"])
def test_colour_images(store, tmp_path, scale):
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (random.integers(0, 100, (60, 32, 32, 3)) + 50 * np.eye(3, dtype=int)[labels][:, None, None]).astype(
        "uint8"
    )
    np.savez(tmp_path / "rgb.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    result = run(["data=npz", f"data.path={tmp_path / 'rgb.npz'}", f"scale={scale}", "epochs=2", "augment=mixup"])
    saved = keras_model(store, result)
    assert saved.input_shape == (None, 32, 32, 3)
    said = arrays(store, result.run_id, "test_predictions.npz")["probabilities"]
    assert saved.predict(images, verbose=0) == pytest.approx(said, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(store, digits, precision):
    few = ["model.filters=[4,8]", "model.dense_units=[16]"]
    result = run(small(digits, f"precision={precision}", "epochs=2", "schedule=cosine", *few))
    assert result.status == "FINISHED"
    probabilities = arrays(store, result.run_id, "test_predictions.npz")["probabilities"]
    assert probabilities.dtype == np.float32 and probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    rates = result.history["learning_rate"]  # one epoch up to the peak, one down
    assert rates[0] == pytest.approx(0.001, rel=0.1) and rates[1] < 0.0001


def test_a_diverged_training_is_failed_and_has_no_result(store, digits):
    result = run(small(digits, "epochs=3", "optimizer=sgd", "optimizer.learning_rate=1e38"))
    record = store.get_run(result.run_id)
    assert result.status == record.info.status == "FAILED" and result.objective is None
    assert record.data.tags["diverged"] == "true" and record.data.tags["diverged_epoch"] == "1"
    assert record.data.tags["failure"].startswith("the loss is not finite (NaN or infinity) after epoch 1")
    assert all(math.isfinite(value) for value in record.data.metrics.values())
    assert store.search_logged_models([record.info.experiment_id]) == []


def test_a_crash_is_failed_and_keeps_its_traceback(store, digits, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    program = (
        "import keras\n\nclass Broken(keras.layers.Layer):\n    def call(self, inputs):\n        return inputs\n\n"
    )
    program += "    def get_config(self):\n        raise RuntimeError('cannot be saved')\n\n"
    program += "def net(input_shape, num_classes):\n    return keras.Sequential([keras.Input(input_shape), Broken(), "
    program += "keras.layers.Flatten(), keras.layers.Dense(num_classes, 'softmax')])\n"
    (tmp_path / "broken_nets.py").write_text(program)
    (tmp_path / "model" / "broken.yaml").write_text("_target_: broken_nets.net\n")
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", "broken_nets")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="cannot be saved"):
        run(small(digits, "model=broken", "data.limit=20"), config_dir=str(tmp_path))
    (record,) = store.search_runs([store.get_experiment_by_name("mnist").experiment_id])
    assert record.info.status == "FAILED" and record.info.end_time is not None
    assert record.data.tags["reason"] == "error"
    assert record.data.tags["failure"] == "RuntimeError: cannot be saved"
    expected = ARTIFACTS - {"figures/reliability.png"} | {"traceback.txt"}
    assert artifacts(store, record.info.run_id) == expected
    assert "in get_config" in text(store, record.info.run_id, "traceback.txt")
    assert "FAILED: RuntimeError: cannot be saved" in text(store, record.info.run_id, "job.log")


def test_a_scaling_that_makes_pixels_tiny_is_warned_of(store, digits, caplog):
    with caplog.at_level(logging.WARNING, "experiments"):
        run(small(digits, "scale=unit_twice", "data.limit=20", "tracking.model=false"))
    (warning,) = warnings_of(caplog)
    assert warning == ("The scaled inputs are tiny: their largest absolute value is 0.0039. Try scale=unit.")
    caplog.clear()
    run(small(digits, "scale=standard", "data.limit=20", "tracking.model=false"))
    assert warnings_of(caplog) == []


def warnings_of(caplog):
    ours = [record for record in caplog.records if record.name.startswith("experiments")]
    return [record.getMessage() for record in ours if record.levelno == logging.WARNING]


def test_a_sweep_is_refused_in_python():
    with pytest.raises(ExperimentError, match=r"^seed=range\(3\): this is a sweep of several runs\. Start it with: "):
        run(["seed=range(3)"])


def test_other_threads_in_the_same_process_are_refused(store, digits):
    run(small(digits, "data.limit=20", "tracking.model=false"))
    with pytest.raises(ExperimentError, match=r"^threads=4 deterministic=true: TensorFlow runs in this process with"):
        run(small(digits, "threads=4"))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("keras.layers.Dense(num_classes)", r"its outputs are from 0 to 0 and sum to 0\. End the model in a softmax\."),
        (
            "keras.layers.Dense(num_classes, bias_initializer=lambda shape, dtype=None: [1.5, -0.5] + [0.0] * 8)",
            r"does not output probabilities: on a black image its outputs are from -0\.5 to 1\.5 and sum to 1\.",
        ),
        (
            "keras.layers.Dense(num_classes, bias_initializer=keras.initializers.Constant(float('nan')))",
            r"does not output probabilities: on a black image its outputs are from nan to nan and sum to nan\.",
        ),
        ("keras.layers.Softmax()", r"with the output \(None, 784\). A Sequential or functional keras.Model that ends"),
    ],
)
def test_a_builder_of_ones_own_must_give_probabilities(store, digits, tmp_path, monkeypatch, last, message):
    (tmp_path / "model").mkdir()
    net = f"keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), {last}])"
    name = f"nets_{abs(hash(last))}"
    (tmp_path / f"{name}.py").write_text(f"import keras\n\ndef net(input_shape, num_classes):\n    return {net}\n")
    (tmp_path / "model" / "mine.yaml").write_text(f"_target_: {name}.net\n")
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExperimentError, match=message):
        run(small(digits, "model=mine", "data.limit=20"), config_dir=str(tmp_path))
    assert store.get_experiment_by_name("mnist") is None


SUBCLASS = """import keras


class Mine(keras.BASE):
    def train_step(self, data):
        raise RuntimeError("called")


def net(input_shape, num_classes):
    image, layers = keras.Input(input_shape), [keras.layers.Flatten(), keras.layers.Dense(num_classes, "softmax")]
    return Mine(image, layers[1](layers[0](image))) if "BASE" == "Model" else Mine([image, *layers])
"""


@pytest.mark.parametrize("base", ["Model", "Sequential"])
def test_a_model_with_a_training_step_of_its_own_is_refused(store, digits, tmp_path, monkeypatch, base):
    (tmp_path / "model").mkdir()
    (tmp_path / f"subclass_{base}.py").write_text(SUBCLASS.replace("BASE", base))
    (tmp_path / "model" / "mine.yaml").write_text(f"_target_: subclass_{base}.net\n")
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", f"subclass_{base}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ExperimentError, match=r"returned a Mine, a subclass of keras\.Model, whose own methods \(train_"
    ):
        run(small(digits, "model=mine", "data.limit=20"), config_dir=str(tmp_path))
    assert store.get_experiment_by_name("mnist") is None


def test_few_images_and_one_answer_for_all_are_no_good_result(store, digits, capsys):
    layers = "[{_target_: keras.layers.Flatten}, {_target_: keras.layers.Rescaling, scale: 1e-9}]"
    words = ["scale=none", "model=sequential", f"model.layers={layers}", "data.limit=20", "tracking.model=false"]
    result = run(small(digits, *words))
    test = arrays(store, result.run_id, "test_predictions.npz")
    (predicted,) = set(test["probabilities"].argmax(axis=1))
    line = f"The model predicts {predicted} for every test image."
    right = int((test["labels"] == predicted).sum())
    low, high = 100 * np.array(binomtest(right, 20).proportion_ci(method="wilson"))
    largest = 5 * np.bincount(test["labels"]).max()  # per cent, of 20 images
    doubts = f"(95 % confidence interval {low:.2f} to {high:.2f} %, largest class {largest:.2f} %, chance 10.00 %)"
    note = store.get_run(result.run_id).data.tags["mlflow.note.content"]
    assert f"**Test accuracy {right / 20:.2%}** {doubts}, macro F1 " in note and f"\n\n{line}\n\n" in note
    printed = capsys.readouterr().out
    assert f"Test accuracy {5 * right:.2f} % {doubts}, best epoch 1 of 1" in printed and f"\n{line}\n" in printed
    assert "test/calibration_error" not in result.metrics
    assert artifacts(store, result.run_id) == ARTIFACTS - {"figures/reliability.png"}


def test_averaged_weights_must_be_the_ones_that_are_kept(compose):
    with pytest.raises(
        ExperimentError, match=r"^callbacks\.swap_ema_weights\.swap_on_epoch must be true: the run would"
    ):
        compose("callbacks=swap_ema_weights", "callbacks.swap_ema_weights.swap_on_epoch=false")


def test_a_job_whose_data_or_code_has_changed_since_it_was_checked_fails(store, digits):
    result = run(
        [*small(digits), "tracking.job={sweep:null,number:0,fingerprint:'0123456789abcdef',trial:null,swept:[]}"]
    )
    assert (result.status, result.objective, result.history) == ("FAILED", None, {})
    found = store.get_run(result.run_id)
    assert (found.info.status, found.data.tags["reason"]) == ("FAILED", "changed")
    assert found.data.tags["failure"] == "the data or the code have changed since the sweep was started"
    assert not found.data.metrics


def test_with_keep_last_everything_is_of_the_last_epoch_and_the_description_says_so(store):
    result = run(["data.limit=200", "epochs=3", "keep=last", "optimizer.learning_rate=0.03", "tracking.model=false"])
    assert result.metrics["best/epoch"] == 3
    assert result.objective == result.history["val_accuracy"][-1] == result.metrics["best/val_accuracy"]
    first = store.get_run(result.run_id).data.tags["mlflow.note.content"].splitlines()[0]
    assert first.startswith(f"**Test accuracy {result.metrics['test/accuracy']:.2%}** (")
    assert first.endswith(", last epoch 3 of 3")
