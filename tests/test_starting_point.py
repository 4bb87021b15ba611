"""Starting from a trained model: what is loaded, what is said, what is refused, and what identifies the run."""

from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from commands import experiments
from experiments import run
from experiments.config.configuration import PIN
from experiments.config.targets import instantiate
from experiments.errors import ExperimentError
from experiments.reproduce import reproduce
from experiments.starting_point import with_start
from experiments.tracking.registry import register, set_alias
from experiments.tracking.results import model_file
from experiments.tracking.runs import get_run
from experiments.train import plan
from experiments.training.layers import named_layers, weights_sha256

SMALL = ["data.limit=40", "epochs=1", "model.dense_units=[8]", "model.filters=[4,6]"]


def net(*layers, size=28):
    """A model of its own making, as a notebook would save it."""
    softmax = keras.layers.Softmax()
    return keras.Sequential([keras.Input((size, size, 1)), keras.layers.Rescaling(1 / 255), *layers, softmax])


@pytest.fixture(scope="module")
def first(shared_store, tmp_path_factory):
    """A run to start from, its .keras file and its weights."""
    folder = tmp_path_factory.mktemp("first")
    recorded = get_run(run(SMALL).run_id)
    file = model_file(recorded, folder)
    return SimpleNamespace(run=recorded, file=str(file), weights=keras.saving.load_model(file).get_weights())


def started(compose, init_from, *overrides):
    """The model of a configuration, with the weights that it starts from."""
    configuration, start = with_start(compose(*SMALL, f"init_from='{init_from}'", *overrides))
    model = instantiate(configuration.cfg, "model", input_shape=(28, 28, 1), num_classes=10)
    start.load_into(model)
    return model


def test_every_layer_is_loaded_into_the_same_model(first, compose, caplog):
    caplog.set_level("INFO")
    for name in (first.run.run_id, first.run.run_id[:8], f"runs:/{first.run.run_id}", first.file):
        loaded = started(compose, name).get_weights()
        assert all((own == theirs).all() for own, theirs in zip(loaded, first.weights, strict=True))
    assert caplog.messages[0] == f"Starting from {first.run.run_id}: 4 of 4 layers loaded"
    fresh = instantiate(compose(*SMALL).cfg, "model", input_shape=(28, 28, 1), num_classes=10)
    assert not (fresh.get_weights()[0] == first.weights[0]).all()


def test_layers_that_are_not_loaded_are_named(first, compose, caplog):
    caplog.set_level("INFO")
    started(compose, first.file, "model.dense_units=[8,5]", "model.conv_dropout=0.2")
    assert caplog.messages == [
        f"Starting from {first.file}: 3 of 5 layers loaded; not loaded: classifier (another shape), dense2 (not in it)"
    ]


def test_another_scale_than_that_of_the_weights_is_warned_of(first, compose, caplog):
    started(compose, first.run.run_id, "scale=standard")
    assert caplog.messages[0] == f"{first.run.run_id} was trained with scale=unit. Try it here, too."


def test_numbers_that_keras_gave_do_not_matter(compose, tmp_path):
    for _ in range(2):  # the second model of a notebook has conv2d_1, dense_2 and dense_3
        layers = keras.layers
        made = net(layers.Conv2D(3, 5), layers.Flatten(), layers.Dense(4), layers.Dense(10))
    assert made.layers[1].name == "conv2d_1"
    made.save(tmp_path / "notebook.keras")
    conv, dense = "_target_:keras.layers.Conv2D,filters:3,kernel_size:5", "_target_:keras.layers.Dense,units"
    parts = f"[{{{conv}}},{{_target_:keras.layers.Flatten}},{{{dense}:4}},{{{dense}:10}}]"
    overrides = ["model=sequential", f"model.layers={parts}", "model.classifier=false"]
    configuration, start = with_start(compose(f"init_from={tmp_path}/notebook.keras", *overrides))
    model = instantiate(configuration.cfg, "model", input_shape=(28, 28, 1), num_classes=10)
    start.load_into(model)
    assert all((own == theirs).all() for own, theirs in zip(model.get_weights(), made.get_weights(), strict=True))


def test_layers_of_a_model_inside_a_model_have_their_own_names():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="within"), keras.layers.Dense(3)])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    assert [name for name, layer in named_layers(model).items() if layer.weights] == ["within", "dense", "dense_1"]


def test_a_run_is_identified_by_the_weights_and_not_by_their_name(first, compose, shared_store, tmp_path):
    register("digits", first.run, {}, "")
    set_alias("digits", "champion", "1")
    names = [first.run.run_id, first.file, "models:/digits@champion", "models:/digits/1"]
    plans = [plan(compose(*SMALL, f"init_from='{name}'")) for name in names]
    sha256 = first.run.tags["weights.sha256"]
    assert [each.init_from for each in plans] == [
        f"{name}{PIN}{sha256}" for name in (first.run.run_id, first.file, first.run.run_id, first.run.run_id)
    ]
    assert len({(each.variant, each.fingerprint) for each in plans}) == 1
    other = keras.saving.load_model(first.file)
    other.set_weights([weight + 1 for weight in other.get_weights()])
    other.save(tmp_path / "other.keras")
    changed = plan(compose(*SMALL, f"init_from={tmp_path}/other.keras"))
    plain = plan(compose(*SMALL))
    assert len({each.variant for each in (plans[0], changed, plain)}) == 3
    assert changed.init_from.endswith(weights_sha256(other))
    assert plain.variant == first.run.tags["variant.id"] and plain.init_from is None

    result = get_run(run([*SMALL, f"init_from={first.file}"]).run_id)
    assert (result.tags["variant.id"], result.tags["fingerprint"]) == (plans[0].variant, plans[0].fingerprint)
    assert result.params["init_from"] == f"{first.file}{PIN}{sha256}"
    assert result.tags["weights.sha256"] != first.run.tags["weights.sha256"]
    assert reproduce(result.run_id)
    other.save(first.file)
    with pytest.raises(ExperimentError, match="has other weights than those that the run started from"):
        reproduce(result.run_id)


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        ("last", "^init_from=last would mean another run when more have been recorded. Give the id of the run,"),
        ("best:sweep", "^init_from=best:sweep would mean another run "),
        ("none.keras", r"^init_from: none\.keras: there is no such file\."),
        ("0123", r"^init_from: 0123: there is no such run in this store\."),
        ("models:/none@champion", r"^init_from: models:/none@champion: there is no such registered model\."),
        ("damaged.keras", r"^init_from: damaged\.keras cannot be loaded: "),
        (
            "larger.keras",
            r"^init_from=\S+larger\.keras takes images of shape \(32, 32, 1\), the data have \(28, 28, 1\), so these "
            r"layers do not fit: dense1\. Take data of that shape, or a model whose layers do not depend on it\.$",
        ),
        (
            "foreign.keras",
            r"^init_from=\S+foreign\.keras: none of its layers \(mine\) agrees in name and shape with one of the model "
            r"\(block1_conv, block2_conv, dense1, classifier\)\. Choose the model that it was trained as\.$",
        ),
    ],
)
def test_what_cannot_be_started_from_is_refused_before_a_run_is_opened(
    shared_store, first, tmp_path, monkeypatch, init_from, message
):
    monkeypatch.chdir(tmp_path)
    layers = keras.layers
    (tmp_path / "damaged.keras").write_text("no archive")
    net(layers.Flatten(), layers.Dense(10, name="mine")).save("foreign.keras")
    convolution = layers.Conv2D(4, 3, name="block1_conv")
    dense = layers.Dense(8, name="dense1")
    net(convolution, layers.Flatten(), dense, layers.Dense(10, name="classifier"), size=32).save("larger.keras")
    before = len(shared_store.search_runs(["1"]))
    with pytest.raises(ExperimentError, match=message):
        run([*SMALL, f"init_from={init_from}"])
    assert len(shared_store.search_runs(["1"])) == before


def test_another_image_size_does_not_matter_to_a_model_that_averages_over_it(compose, tmp_path, caplog):
    caplog.set_level("INFO")
    layers = keras.layers
    made = net(layers.Conv2D(3, 5), layers.GlobalAveragePooling2D(), layers.Dense(7, name="classifier"), size=32)
    made.save(tmp_path / "larger.keras")
    _, start = with_start(compose(f"init_from={tmp_path}/larger.keras"))
    smaller = net(layers.Conv2D(3, 5), layers.GlobalAveragePooling2D(), layers.Dense(10, name="classifier"))
    start.load_into(smaller)
    assert (smaller.get_weights()[0] == np.asarray(made.get_weights()[0])).all()
    assert caplog.messages[-1].endswith("1 of 2 layers loaded; not loaded: classifier (another shape)")


@pytest.mark.slow
def test_a_sweep_knows_its_finished_jobs_by_the_weights(first, shared_store):
    again = keras.saving.load_model(model_file(first.run, Path(first.file).parent / "again"))
    again.save(first.file)  # a test before has written others
    names = f"init_from=null,{first.run.run_id},'{first.file}'"
    done = experiments("-m", *SMALL, names, "tracking.model=false", "batch_size=20")
    assert "3 jobs: 0 finished, 1 equal to another one, 2 to run" in done.stdout and done.returncode == 0, done.stdout
    done = experiments("-m", *SMALL, f"init_from='{first.file}'", "tracking.model=false", "batch_size=20")
    assert "1 job: 1 finished, 0 to run" in done.stdout and done.returncode == 0, done.stdout
