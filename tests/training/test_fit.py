"""Real trainings of small nets: batches, best epochs, learning rates, equal bits, and what is refused."""

import itertools
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

from experiments import models, schedules
from experiments.config.targets import instantiate
from experiments.errors import ExperimentError
from experiments.training import checkpoints
from experiments.training import fit as fitting
from experiments.training.batches import training_batches
from experiments.training.callbacks import Diverged
from experiments.training.class_weights import ClassWeightedLoss
from experiments.training.runtime import start_runtime

SHAPE = (8, 8, 1)
CLASSES = 3
KNOBS = {
    "filters": [4],
    "kernel_size": 3,
    "pool_sizes": [2],
    "batch_norm": False,
    "conv_dropout": 0.0,
    "dense_units": [],
    "dropout": 0.0,
    "activation": "relu",
    "padding": "valid",
}


def start(seed=0, precision="float32"):
    start_runtime(seed=seed, threads=2, deterministic=True, precision=precision)


@pytest.fixture(scope="module", autouse=True)
def runtime():
    """The threads and determinism of every test that computes: one process can have only one of each."""
    start()


@pytest.fixture(autouse=True)
def seeded(runtime):
    """Equal chance for a test, whichever tests ran before it."""
    start()


def labelled(counts, seed):
    """Noise with a bright row for each class; so many images of each."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(CLASSES), counts))
    images = random.integers(0, 200, (len(labels), *SHAPE), dtype=np.uint8)
    images[np.arange(len(labels)), 2 * labels + 1] = 255
    return images, labels


TRAIN = labelled([20, 17, 13], seed=1)  # 50 images are 4 batches of 16, 16, 16 and 2
VALIDATION = labelled([9, 15, 6], seed=2)
MIDDLE, COMMON, RARE = range(CLASSES)
SHARES = np.array([9, 15, 6]) / 30


def small_net(**changed):
    net = models.convnet(input_shape=SHAPE, num_classes=CLASSES, **{**KNOBS, **changed})
    return models.with_scaling(net, keras.layers.Rescaling(1 / 255), SHAPE)


def fit(model, *, epochs=2, schedule=0.01, optimizer=None, augmentation=(), callbacks=(), seed=0, **changed):
    """Trains `model` on TRAIN; what reached on_epoch comes second."""
    calls = []
    asked = {
        "loss": keras.losses.CategoricalCrossentropy(),
        "metrics": [],
        "metric": "val_accuracy",
        "mode": "max",
        "keep": "best",
        "on_epoch": lambda epoch, metrics: calls.append((epoch, dict(metrics))),
        "folder": Path(tempfile.mkdtemp()),
        **changed,
    }
    after_epoch = asked["checkpoint"].epoch if asked.get("checkpoint") else 0
    batches = training_batches(
        *TRAIN, CLASSES, batch_size=16, epochs=epochs, seed=seed, augmentation=augmentation, after_epoch=after_epoch
    )
    result = fitting.fit(
        model,
        batches,
        VALIDATION,
        fitting.Recipe(
            epochs=epochs,
            batch_size=16,
            optimizer=optimizer or keras.optimizers.Adam(schedule),
            schedule=schedule,
            callbacks=callbacks,
            **{key: asked.pop(key) for key in ("loss", "metrics", "metric", "mode", "keep")},
        ),
        num_images=50,
        progress_bar=False,
        **asked,
    )
    return result, calls


def validated(model):
    """Loss and accuracy on the validation set as Keras sees them."""
    images, labels = VALIDATION
    loss, accuracy = model.evaluate(images, keras.utils.to_categorical(labels, CLASSES), batch_size=1000, verbose=0)
    return {"val_loss": loss, "val_accuracy": accuracy}


# Batches


def numbered(count, **options):
    """The numbers of the images in every batch; image n holds the pixel n and the label n modulo 3."""
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    asked = {"batch_size": 16, "epochs": 1, "seed": 0, **options}
    batches = []
    for pixels, labels in training_batches(images, np.arange(count) % CLASSES, CLASSES, **asked):
        numbers = np.asarray(pixels).ravel()
        assert np.array_equal(np.asarray(labels), np.eye(CLASSES, dtype=np.float32)[numbers % CLASSES])
        batches.append(numbers.tolist())
    return batches


def test_every_image_comes_once_an_epoch_and_the_last_partial_batch_counts():
    batches = numbered(50, epochs=3)
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 3
    for epoch in range(3):
        assert sorted(itertools.chain(*batches[4 * epoch : 4 * epoch + 4])) == list(range(50))


def test_full_batches_only_when_they_fit():
    assert [len(batch) for batch in numbered(32, epochs=2)] == [16] * 4
    assert [len(batch) for batch in numbered(5)] == [5]
    assert numbered(1, epochs=2) == [[0], [0]]


def test_pixels_come_as_they_are():
    images, labels = next(iter(training_batches(*TRAIN, CLASSES, batch_size=50, epochs=1, seed=0)))
    assert images.dtype == "uint8"
    assert sorted(image.tobytes() for image in np.asarray(images)) == sorted(image.tobytes() for image in TRAIN[0])
    assert np.asarray(labels).sum(axis=0).tolist() == np.bincount(TRAIN[1]).tolist()


def test_the_order_follows_from_seed_and_epoch():
    orders = [
        tuple(itertools.chain(*numbered(50, seed=seed, epochs=4)[4 * epoch :][:4]))
        for seed in range(3)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 12
    assert tuple(range(50)) not in orders
    assert numbered(50, seed=2, epochs=4) == numbered(50, seed=2, epochs=4)
    assert numbered(50, seed=2**32 - 1) != numbered(50, seed=0)  # the highest seed that a run takes


def test_an_epoch_does_not_depend_on_those_before_it_or_on_the_length_of_the_run():
    images, labels = TRAIN
    kept = {"batch_size": 16, "seed": 5}
    whole = [np.asarray(batch) for batch, _ in training_batches(images, labels, CLASSES, epochs=3, **kept)]
    third = training_batches(images, labels, CLASSES, epochs=6, **kept).skip(8).take(4)
    assert [np.asarray(batch).tobytes() for batch, _ in third] == [batch.tobytes() for batch in whole[8:]]


def augmented(compose, option, images, labels, **options):
    cfg = compose(f"augment={option}").cfg
    layers = [instantiate(cfg, f"augment.{name}") for name in cfg.augment]
    asked = {"batch_size": 16, "epochs": 1, "seed": 0, **options}
    batches = list(training_batches(images, labels, CLASSES, augmentation=layers, **asked))
    assert [len(batch) for batch, _ in batches] == [16, 16, 16, 2]
    return np.concatenate([batch for batch, _ in batches]), np.concatenate([batch for _, batch in batches])


def plain(images, labels):
    batches = list(training_batches(images, labels, CLASSES, batch_size=16, epochs=1, seed=0))
    return np.concatenate([batch for batch, _ in batches]), np.concatenate([batch for _, batch in batches])


def test_shift_rotate_moves_images_and_leaves_their_labels(compose):
    images = np.zeros((50, 28, 28, 1), np.uint8)
    images[:, 12:16, 12:16] = 200
    labels = TRAIN[1]
    moved, moved_labels = augmented(compose, "shift_rotate", images, labels)
    _, same_labels = plain(images, labels)
    assert np.array_equal(moved_labels, same_labels)
    assert moved.dtype == np.float32
    assert moved.min() >= 0
    assert moved.max() <= 200.001
    assert len({image.tobytes() for image in moved}) == 50
    # Moved by up to 2.8 pixels each way, then turned about the image's centre: the square is whole and near.
    np.testing.assert_allclose(moved.sum(axis=(1, 2, 3)), 16 * 200, rtol=0.1)
    rows, columns = (moved.sum(axis=axes) @ np.arange(28) / moved.sum(axis=(1, 2, 3)) for axes in ((2, 3), (1, 3)))
    for centre in (rows, columns):
        assert 1 < np.abs(centre - 13.5).max() < 3.4
        assert abs((centre - 13.5).mean()) < 1
    assert np.array_equal(images[:, 12:16, 12:16], np.full((50, 4, 4, 1), 200))  # the caller's are untouched


def test_mixup_mixes_labels_as_it_mixes_images(compose):
    images, labels = TRAIN[0].copy(), TRAIN[1]
    # One grey a class, so that a pixel tells the mixture.
    greys = np.array([0.0, 100.0, 250.0])
    images[:] = greys[labels].reshape(-1, 1, 1, 1)
    mixed, mixed_labels = augmented(compose, "mixup", images, labels)
    np.testing.assert_allclose(mixed_labels.sum(axis=1), 1, atol=1e-6)
    assert mixed_labels.min() >= 0
    assert ((mixed_labels > 0.01).sum(axis=1) == 2).any()
    np.testing.assert_allclose(mixed[:, 0, 0, 0], mixed_labels @ greys, atol=1e-3)
    assert not np.array_equal(mixed_labels, plain(images, labels)[1])


def test_augmentation_touches_training_images_only(compose):
    before = [array.copy() for array in (*TRAIN, *VALIDATION)]
    cfg = compose("augment=shift_rotate").cfg
    model = small_net()
    layers = [instantiate(cfg, f"augment.{name}") for name in cfg.augment]
    result, _ = fit(model, augmentation=layers, epochs=1)
    assert all(np.array_equal(*pair) for pair in zip(before, (*TRAIN, *VALIDATION), strict=True))
    # What fit measured on validation images is what the bare model says of the bare images.
    assert validated(model) == pytest.approx(
        {name: result.best[name] for name in ("val_loss", "val_accuracy")}, abs=1e-6
    )
    assert not any(isinstance(layer, type(layers[0]) | type(layers[1])) for layer in model.layers)


# The best epoch


class Biases(keras.callbacks.Callback):
    """Sets the classifier's biases at the begin of every epoch: with a rate near 0 they are the whole model."""

    def __init__(self, *biases):
        super().__init__()
        self.biases = biases

    def on_epoch_begin(self, epoch, logs=None):
        kernel, _ = self.model.get_weights()
        self.model.set_weights([np.zeros_like(kernel), np.array(self.biases[epoch], np.float32)])


def fit_biases(*biases, **options):
    net = models.sequential(input_shape=SHAPE, num_classes=CLASSES, layers=[keras.layers.Flatten()], classifier=True)
    model = models.with_scaling(net, keras.layers.Rescaling(1 / 255), SHAPE)
    optimizer = keras.optimizers.SGD(1e-30)
    result, calls = fit(
        model, epochs=len(biases), schedule=1e-30, optimizer=optimizer, callbacks=[Biases(*biases)], **options
    )
    return model, result, calls


def favour(label, by=1.0):
    return [by if other == label else 0.0 for other in range(CLASSES)]


def bias_loss(bias):
    """Cross-entropy of the validation set when every image gets the same logits."""
    bias = np.array(bias)
    return float(np.log(np.exp(bias).sum()) - SHARES @ bias)


def test_the_first_of_equally_accurate_epochs_is_the_best():
    # Epoch 3 is as accurate as epoch 2, has the smaller loss, and is not the one.
    biases = [favour(MIDDLE), favour(COMMON, by=2.0), favour(COMMON, by=0.5), favour(RARE)]
    model, result, calls = fit_biases(*biases)
    assert result.history["val_accuracy"] == pytest.approx(
        [SHARES[MIDDLE], SHARES[COMMON], SHARES[COMMON], SHARES[RARE]]
    )
    assert result.history["val_loss"] == pytest.approx([bias_loss(bias) for bias in biases])
    assert result.best_epoch == 2
    assert model.get_weights()[1] == pytest.approx(favour(COMMON, by=2.0), abs=1e-20)
    assert result.best["val_accuracy"] == result.history["val_accuracy"][1]
    assert validated(model) == pytest.approx(
        {name: result.best[name] for name in ("val_loss", "val_accuracy")}, abs=1e-6
    )
    assert [epoch for epoch, _ in calls] == [1, 2, 3, 4]
    assert [metrics["val_accuracy"] for _, metrics in calls] == result.history["val_accuracy"]


def test_the_epoch_of_least_loss_is_the_best_when_the_loss_is_asked():
    biases = [favour(RARE), favour(COMMON, by=2.0), favour(COMMON, by=0.5), favour(COMMON, by=0.5), favour(RARE)]
    assert min(map(bias_loss, biases)) == bias_loss(biases[2])
    model, result, _ = fit_biases(*biases, metric="val_loss", mode="min")
    assert result.best_epoch == 3
    assert model.get_weights()[1] == pytest.approx(favour(COMMON, by=0.5), abs=1e-20)
    assert validated(model)["val_loss"] == pytest.approx(bias_loss(biases[2]), abs=1e-6)


def test_the_loss_is_that_of_the_data_and_what_is_minimized_is_the_total_loss():
    bias, smoothing = favour(COMMON), 0.3
    loss_function = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    _, result, _ = fit_biases(bias, loss=loss_function)

    def loss(labels, smoothing):
        shares = (1 - smoothing) * np.bincount(labels) / len(labels) + smoothing / CLASSES
        return np.log(np.exp(bias).sum()) - shares @ np.array(bias)

    for prefix, (_, labels) in {"": TRAIN, "val_": VALIDATION}.items():
        assert result.history[f"{prefix}loss"] == pytest.approx([loss(labels, 0)])
        assert result.history[f"{prefix}total_loss"] == pytest.approx([loss(labels, smoothing)])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_weights_are_in_the_total_loss_only(smoothing):
    bias, weights = np.array(favour(COMMON)), np.array([0.5, 1.0, 4.0])
    loss = ClassWeightedLoss(keras.losses.CategoricalCrossentropy(label_smoothing=smoothing), weights)
    _, result, _ = fit_biases(bias, loss=loss)  # the last of the four batches has two images
    logs = np.log(np.exp(bias).sum()) - bias
    for prefix, (_, labels) in {"": TRAIN, "val_": VALIDATION}.items():
        counts = np.bincount(labels) / len(labels)
        smoothed = (1 - smoothing) * logs + smoothing * logs.mean()
        assert result.history[f"{prefix}loss"] == pytest.approx([counts @ logs], abs=1e-6)
        assert result.history[f"{prefix}total_loss"] == pytest.approx([counts * weights @ smoothed], abs=1e-6)


def test_a_weight_of_two_trains_as_every_image_twice():
    def trained(loss, labels_twice):
        start()
        net = models.sequential(
            input_shape=SHAPE, num_classes=CLASSES, layers=[keras.layers.Flatten()], classifier=True
        )
        model = models.with_scaling(net, keras.layers.Rescaling(1 / 255), SHAPE)
        images, labels = TRAIN
        rows = np.concatenate([np.arange(50), *([np.flatnonzero(labels == RARE)] if labels_twice else [])])
        model.compile(keras.optimizers.SGD(0.1 if labels_twice else 0.1 * 50 / 63), loss=loss)
        one_hot = keras.utils.to_categorical(labels[rows], CLASSES)
        model.fit(images[rows], one_hot, batch_size=1000, epochs=3, verbose=0)
        return model.get_weights()

    plain = keras.losses.CategoricalCrossentropy()
    twice, weighted = trained(plain, True), trained(ClassWeightedLoss(plain, np.array([1.0, 1.0, 2.0])), False)
    for one, other in zip(twice, weighted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


PENALIZED = {
    "weights": [keras.layers.Flatten, lambda: keras.layers.Dense(4, kernel_regularizer="l2")],
    "activities": [keras.layers.Flatten, lambda: keras.layers.ActivityRegularization(l2=0.01)],
    "another loss": [keras.layers.Flatten],
}


@pytest.mark.parametrize("kind", PENALIZED)
def test_penalties_and_other_losses_are_in_the_total_loss_only(kind):
    layers = [make() for make in PENALIZED[kind]]
    net = models.sequential(input_shape=SHAPE, num_classes=CLASSES, layers=layers, classifier=True)
    model = models.with_scaling(net, keras.layers.Rescaling(1 / 255), SHAPE)
    loss = keras.losses.CategoricalFocalCrossentropy() if kind == "another loss" else None
    result, _ = fit(model, epochs=2, metric="val_loss", mode="min", **({"loss": loss} if loss else {}))
    images, labels = VALIDATION
    said = model.predict(images, verbose=0)[np.arange(len(labels)), labels]
    assert result.best["val_loss"] == pytest.approx(-np.log(said).mean(), rel=1e-6)
    assert result.best["val_total_loss"] != pytest.approx(result.best["val_loss"], rel=0.001)
    assert {"loss", "total_loss"} <= set(result.history)


def test_the_last_weights_are_kept_if_wanted_also_of_a_resumed_training(tmp_path):
    model, watched = small_net(dropout=0.3), []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: watched.append(model.get_weights()))
    result, _ = fit(model, epochs=4, callbacks=[watch], keep="last", folder=tmp_path)
    assert result.best_epoch == 4 and result.best["val_loss"] == result.history["val_loss"][-1]
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), watched[-1], strict=True))
    ended, watch = small_net(dropout=0.3), keras.callbacks.Callback()
    resumed = checkpoints.newest(tmp_path)
    again, _ = fit(ended, epochs=4, callbacks=[watch], keep="last", folder=tmp_path, checkpoint=resumed)
    assert again.best_epoch == 4
    assert all(np.array_equal(*pair) for pair in zip(ended.get_weights(), watched[-1], strict=True))


@pytest.mark.parametrize(("metric", "mode"), [("val_accuracy", "max"), ("val_loss", "min")])
def test_the_model_holds_the_best_epochs_weights(metric, mode):
    model = small_net(batch_norm=True, dropout=0.3)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(model.get_weights()))

    def spoil(epoch, logs):  # the last two epochs: all images seem to be of the rarest class
        if epoch >= 3:
            model.get_layer("classifier").bias.assign(favour(RARE, by=1e4))

    spoiler = keras.callbacks.LambdaCallback(on_epoch_begin=spoil)
    result, _ = fit(model, epochs=5, callbacks=[spoiler, watch], metric=metric, mode=mode)
    choose = np.argmax if mode == "max" else np.argmin
    assert result.best_epoch == 1 + choose(result.history[metric])
    assert result.best_epoch <= 3
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), seen[result.best_epoch - 1], strict=True))
    assert validated(model) == pytest.approx(
        {name: result.best[name] for name in ("val_loss", "val_accuracy")}, abs=1e-6
    )


def test_what_an_epoch_tells():
    result, calls = fit(small_net(), epochs=3)
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds"}
    assert [epoch for epoch, _ in calls] == [1, 2, 3]
    for epoch, metrics in calls:
        assert set(metrics) == names
        assert all(type(value) is float for value in metrics.values())
        assert metrics == {name: values[epoch - 1] for name, values in result.history.items()}
    assert set(result.history) == names
    assert 0 < sum(result.history["epoch_seconds"]) <= result.seconds
    assert result.images_per_second == pytest.approx(150 / result.seconds)


class Numbers(keras.callbacks.Callback):
    """Leaves numbers in the logs of an epoch, and what is none."""

    def on_epoch_end(self, epoch, logs=None):
        logs |= {"kappa": np.float32(0.25), "learning_rate": 9, "half": math.inf, "word": "x", "a//b": 1.0}
        if epoch % 2:
            logs["second"] = epoch


def test_numbers_that_a_callback_leaves_are_recorded_and_what_is_left_out_is_said_once(tmp_path, caplog):
    result, calls = fit(small_net(), epochs=4, callbacks=[Numbers()], folder=tmp_path)
    assert result.history["kappa"] == [0.25] * 4
    assert [metrics.get("second") for _, metrics in calls] == [None, 1.0, None, 3.0]
    assert all(metrics["learning_rate"] == pytest.approx(0.01) for _, metrics in calls)
    assert not {"half", "word", "a//b"} & set(result.history)
    assert ("second" in result.best) == (result.best_epoch % 2 == 0)
    said = sorted(record.message for record in caplog.records)
    assert said == [
        "a//b in the logs of epoch 1 is no name of a metric, so it is not recorded",
        "half in the logs of epoch 1 is not finite, so it is not recorded",
        "word in the logs of epoch 1 is no number, so it is not recorded",
    ]
    assert checkpoints.newest(tmp_path).state["history"]["kappa"] == [0.25] * 4


def test_early_stopping_ends_the_run_and_only_that():
    stop = keras.callbacks.EarlyStopping(monitor="val_accuracy", mode="max", patience=2)
    calls = []
    net = models.sequential(input_shape=SHAPE, num_classes=CLASSES, layers=[keras.layers.Flatten()], classifier=True)
    model = models.with_scaling(net, keras.layers.Rescaling(1 / 255), SHAPE)
    biases = Biases(*[favour(RARE), favour(COMMON), *[favour(RARE)] * 6])
    result, calls = fit(
        model, epochs=8, schedule=1e-30, optimizer=keras.optimizers.SGD(1e-30), callbacks=[stop, biases]
    )
    assert [epoch for epoch, _ in calls] == [1, 2, 3, 4]
    assert result.best_epoch == 2
    assert model.get_weights()[1] == pytest.approx(favour(COMMON), abs=1e-20)
    assert result.images_per_second == pytest.approx(200 / result.seconds)


def test_what_on_epoch_raises_ends_the_run():
    class Enough(Exception):
        pass

    def on_epoch(epoch, metrics):
        if epoch == 2:
            raise Enough

    with pytest.raises(Enough):
        fit(small_net(), epochs=3, on_epoch=on_epoch)


# Learning rates


def test_a_constant_rate_is_recorded():
    result, _ = fit(small_net(), epochs=2, schedule=0.003)
    assert result.history["learning_rate"] == pytest.approx([0.003, 0.003], rel=1e-6)


def test_the_rate_of_a_schedule_is_that_of_the_epochs_last_step():
    schedule = schedules.exponential(learning_rate=0.01, steps_per_epoch=4, factor=0.5)
    result, _ = fit(small_net(), epochs=3, schedule=schedule)
    # Steps are counted from 0: the last ones are 3, 7 and 11.
    expected = [0.01 * 0.5 ** (step / 4) for step in (3, 7, 11)]
    assert result.history["learning_rate"] == pytest.approx(expected, rel=1e-5)


def test_the_rate_of_a_schedule_is_that_of_the_last_step_of_accumulated_gradients():
    schedule = schedules.exponential(learning_rate=0.01, steps_per_epoch=4, factor=0.5)
    optimizer = keras.optimizers.SGD(schedule, gradient_accumulation_steps=3)
    model, steps = small_net(), []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(model.get_weights()[0]))
    result, _ = fit(model, epochs=3, schedule=schedule, optimizer=optimizer, callbacks=[watch])
    moved = [not np.array_equal(*pair) for pair in itertools.pairwise(steps)]
    assert [number + 1 for number, moves in enumerate(moved) if moves] == [2, 5, 8, 11]  # batches, counted from 0
    expected = [0.01 * 0.5 ** (batch / 4) for batch in (2, 5, 11)]
    assert result.history["learning_rate"] == pytest.approx(expected, rel=1e-5)


def test_the_rate_of_reduce_on_plateau_is_the_one_that_the_epoch_used():
    # Only the first epoch is an improvement; the second ends with half the rate, which the third uses.
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", mode="min", factor=0.5, patience=1, min_delta=1e9)
    result, _ = fit(small_net(), epochs=4, schedule=0.01, callbacks=[plateau])
    assert result.history["learning_rate"] == pytest.approx([0.01, 0.01, 0.005, 0.0025], rel=1e-6)


# Divergence


@pytest.mark.parametrize(("rates", "epoch"), [([1e20], 1), ([1e-3, 1e-3, 1e20], 3)])
def test_divergence_ends_the_run_and_no_nan_gets_out(rates, epoch):
    calls = []
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4 * n for n in range(1, len(rates))], rates)
    with pytest.raises(Diverged) as diverged:
        fit(
            small_net(dense_units=[8]),
            epochs=5,
            schedule=schedule if len(rates) > 1 else rates[0],
            optimizer=keras.optimizers.SGD(schedule if len(rates) > 1 else rates[0]),
            on_epoch=lambda epoch, metrics: calls.append((epoch, metrics)),
        )
    assert diverged.value.epoch == epoch
    assert str(diverged.value) == (
        f"the loss is not finite (NaN or infinity) after epoch {epoch}; try a smaller optimizer.learning_rate"
    )
    assert [number for number, _ in calls] == list(range(1, epoch))
    assert all(math.isfinite(value) for _, metrics in calls for value in metrics.values())


# Equal bits


def everything(compose, seed):
    """A run with every source of chance: weights, order, dropout, augmentation."""
    start(seed=seed)
    cfg = compose("augment=shift_rotate").cfg
    layers = [instantiate(cfg, f"augment.{name}") for name in cfg.augment]
    layers.append(keras.layers.MixUp(alpha=0.2))
    model = small_net(batch_norm=True, conv_dropout=0.1, dropout=0.3, dense_units=[8])
    schedule = schedules.one_cycle(
        learning_rate=0.01, total_steps=8, warmup_fraction=0.25, initial_divisor=25.0, final_divisor=100.0
    )
    result, _ = fit(model, schedule=schedule, augmentation=layers, seed=seed, epochs=2)
    history = {name: values for name, values in result.history.items() if name != "epoch_seconds"}
    return history, [weights.tobytes() for weights in model.get_weights()], model.predict(VALIDATION[0], verbose=0)


@pytest.mark.slow
def test_equal_seeds_give_equal_bits_and_others_do_not(compose):
    first, second, other = (everything(compose, seed) for seed in (7, 7, 8))
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert np.array_equal(first[2], second[2])
    assert first[0]["loss"] != other[0]["loss"]
    assert not set(first[1]) & set(other[1])
    assert not np.array_equal(first[2], other[2])


# Averaged weights


@pytest.mark.slow
def test_swap_ema_weights_keeps_the_averaged_weights(compose):
    cfg = compose("callbacks=[swap_ema_weights]", "optimizer=sgd", "optimizer.ema_momentum=0.8").cfg
    callback = instantiate(cfg, "callbacks.swap_ema_weights")
    model = small_net()
    steps = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(model.get_weights()))
    optimizer = instantiate(cfg, "optimizer", learning_rate=0.2)
    result, _ = fit(
        model, epochs=4, schedule=0.2, optimizer=optimizer, callbacks=[watch, callback], metric="val_loss", mode="min"
    )
    assert len(steps) == 16
    average = steps[0]
    for weights in steps[1 : 4 * result.best_epoch]:
        average = [0.8 * old + 0.2 * new for old, new in zip(average, weights, strict=True)]
    for kept, averaged, raw in zip(model.get_weights(), average, steps[4 * result.best_epoch - 1], strict=True):
        np.testing.assert_allclose(kept, averaged, atol=1e-5)
        assert np.abs(kept - raw).max() > 1e-3
    # Every epoch was validated with them, too.
    assert validated(model) == pytest.approx(
        {name: result.best[name] for name in ("val_loss", "val_accuracy")}, abs=1e-6
    )


# Precision


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_trains_and_records_the_right_rates(precision):
    start(precision=precision)
    schedule = schedules.cosine(
        learning_rate=0.06, total_steps=24, steps_per_epoch=4, warmup_epochs=1.0, final_fraction=0.0
    )
    model = small_net()
    result, _ = fit(model, epochs=6, schedule=schedule)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
    assert model.layers[1].compute_dtype == precision.removeprefix("mixed_")
    assert int(model.optimizer.iterations) == 24  # no step was skipped
    # 4 steps up, 20 down; the last steps are 3, 7, 11, ... 23.
    expected = [0.045] + [0.03 * (1 + math.cos(math.pi * (step - 4) / 20)) for step in range(7, 24, 4)]
    assert result.history["learning_rate"] == pytest.approx(expected, rel=1e-4)
    assert result.history["loss"][-1] < 0.8 * result.history["loss"][0]
    assert validated(model) == pytest.approx(
        {name: result.best[name] for name in ("val_loss", "val_accuracy")}, abs=1e-6
    )


def test_half_precision_records_a_constant_rate_and_one_on_a_plateau():
    start(precision="mixed_float16")
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", mode="min", factor=0.5, patience=1, min_delta=1e9)
    result, _ = fit(small_net(), epochs=3, schedule=0.01, callbacks=[plateau])
    assert result.history["learning_rate"] == pytest.approx([0.01, 0.01, 0.005], rel=1e-6)


def test_an_epoch_of_skipped_steps_records_the_first_rate():
    start(precision="mixed_float16")
    schedule = schedules.exponential(learning_rate=0.01, steps_per_epoch=4, factor=0.5)
    # No gradient times this scale is finite.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(schedule), initial_scale=1e38)
    result, _ = fit(small_net(), epochs=1, schedule=schedule, optimizer=optimizer)
    assert int(optimizer.iterations) == 0
    assert result.history["learning_rate"] == pytest.approx([0.01])


# The runtime


def test_start_runtime_sets_seed_and_precision():
    start(seed=3, precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    first = keras.random.normal((4,), dtype="float32"), np.random.random(4)
    start(seed=3)
    assert keras.config.dtype_policy().name == "float32"
    second = keras.random.normal((4,)), np.random.random(4)
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
    start(seed=4)
    assert not np.array_equal(keras.random.normal((4,)), second[0])
    # Names start anew, so equal models are equal files.
    assert keras.layers.Dense(1).name == "dense"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"threads": 3, "deterministic": True}, "threads=3 deterministic=true"),
        ({"threads": 2, "deterministic": False}, "threads=2 deterministic=false"),
    ],
)
def test_other_threads_or_determinism_are_refused_once_it_runs(asked, said):
    keras.config.set_dtype_policy("mixed_bfloat16")
    with pytest.raises(ExperimentError) as refused:
        start_runtime(seed=0, precision="float32", **asked)
    assert str(refused.value) == (
        f"{said}: TensorFlow runs in this process with threads=2 deterministic=true and cannot change it. "
        "Start a new process (in a notebook: restart the kernel)."
    )
    assert keras.config.dtype_policy().name == "mixed_bfloat16"  # nothing was changed


@pytest.mark.slow
def test_threads_of_a_process_that_used_tensorflow_before():
    program = """
import tensorflow as tf
from experiments.training.runtime import start_runtime
from experiments.errors import ExperimentError
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.constant(1) + 1
try:
    start_runtime(seed=0, threads=3, deterministic=True, precision="float32")
except ExperimentError as error:
    print(error)
start_runtime(seed=0, threads=1, deterministic=True, precision="float32")
print(tf.config.threading.get_intra_op_parallelism_threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == (
        "threads=3: TensorFlow runs in this process with other threads and cannot change it. "
        "Start a new process (in a notebook: restart the kernel).\n1\n"
    )


# Going on


@pytest.mark.parametrize("augment", ["augment=none", "augment=shift_rotate", "augment=mixup"])
def test_batches_follow_from_their_place_alone(augment, compose):
    start()
    cfg = compose(augment).cfg
    layers = [instantiate(cfg, f"augment.{name}") for name in cfg.augment]
    asked = {"batch_size": 16, "epochs": 3, "seed": 5, "augmentation": layers}
    whole = [tuple(map(np.asarray, batch)) for batch in training_batches(*TRAIN, CLASSES, **asked)]
    tail = training_batches(*TRAIN, CLASSES, **asked, after_epoch=2)
    assert len(whole) == 12
    for expected, found in zip(whole[8:], tail, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(expected, found, strict=True))
    epochs = [np.concatenate([images for images, _ in whole[first : first + 4]]) for first in (0, 4)]
    assert not np.array_equal(*epochs)


def test_an_epoch_is_told_when_its_checkpoint_is_there(tmp_path):
    found = []

    def on_epoch(epoch, metrics):
        found.append(sorted(file.name for file in tmp_path.iterdir()))
        return False

    fit(small_net(), epochs=3, on_epoch=on_epoch, folder=tmp_path)
    one, two, three = (f"checkpoint-00000{epoch}.npz" for epoch in (1, 2, 3))
    assert found == [[one], [one, two], [two, three]]


def test_a_full_disk_costs_the_checkpoints_and_not_the_training(tmp_path, caplog):
    result, calls = fit(small_net(), epochs=2, folder=tmp_path / "not there")
    assert [epoch for epoch, _ in calls] == [1, 2] and len(result.history["loss"]) == 2
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "No checkpoint can be written, so a killed run would start anew"
    ]


OPTIMIZERS = {
    "muon": [],
    "lion": ["optimizer.weight_decay=0.01", "optimizer.clipnorm=1.0"],
    "schedule_free_adamw": ["optimizer.warmup_steps=3"],
    "adam": ["optimizer.gradient_accumulation_steps=3", "optimizer.use_ema=true", "optimizer.amsgrad=true"],
    "sgd": ["optimizer.use_ema=true", "optimizer.ema_overwrite_frequency=5", "optimizer.global_clipnorm=0.5"],
}


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_the_state_of_an_optimizer_comes_back(option, compose, tmp_path):
    cfg = compose(f"optimizer={option}", *OPTIMIZERS[option]).cfg

    def train(**options):
        start()
        model = small_net(dense_units=[8])
        optimizer = instantiate(cfg, "optimizer", learning_rate=0.01)
        result, _ = fit(model, epochs=3, optimizer=optimizer, metric="val_loss", mode="min", **options)
        return result.history["val_loss"], [weight.tobytes() for weight in model.get_weights()]

    whole = train()
    assert len(set(whole[0])) == 3
    train(folder=tmp_path, on_epoch=lambda epoch, _: epoch == 2)
    (tmp_path / "checkpoint-000002.npz").unlink()  # it says that the training was ended there
    assert train(folder=tmp_path, checkpoint=checkpoints.newest(tmp_path)) == whole


class Counting(keras.callbacks.Callback):
    """A user's callback with state of every kind that a checkpoint can hold, and one that it cannot."""

    def __init__(self):
        super().__init__()
        self.seen = {"epochs": [], "last": None, "pair": (0, ""), 7: {0.5: True}}
        self.kinds = set()
        self.sums = np.zeros(3, "float32")
        self.scalar = np.float32(0)
        self.function = print

    def on_epoch_end(self, epoch, logs=None):
        self.seen["epochs"].append(epoch)
        self.seen |= {"last": logs["loss"], "pair": (epoch, "after")}
        self.sums += np.float32(logs["loss"])
        self.scalar = np.float32(logs["loss"])


def test_what_a_callback_of_the_user_remembers_comes_back(tmp_path, caplog):
    whole, interrupted, continued = Counting(), Counting(), Counting()
    start()
    reference, _ = fit(small_net(), epochs=4, callbacks=[whole])
    start()
    fit(small_net(), epochs=4, callbacks=[interrupted], folder=tmp_path, on_epoch=lambda epoch, _: epoch == 2)
    (tmp_path / "checkpoint-000002.npz").unlink()  # it says that the training was ended there
    checkpoint = checkpoints.newest(tmp_path)
    start()
    result, calls = fit(small_net(), epochs=4, callbacks=[continued], folder=tmp_path, checkpoint=checkpoint)
    assert [epoch for epoch, _ in calls] == [1, 2, 3, 4]
    lost = [record.message for record in caplog.records if "no plain value" in record.message]
    assert lost == ["Counting.kinds is no plain value, so a checkpoint does not hold it"] * 3  # one a training
    assert continued.seen == whole.seen
    assert continued.seen["epochs"] == [0, 1, 2, 3]
    assert np.array_equal(continued.sums, whole.sums)
    assert continued.scalar == whole.scalar and type(continued.scalar) is np.float32
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"):
        assert result.history[name] == reference.history[name]


def test_a_training_that_had_ended_early_is_not_gone_on_with(tmp_path):
    def early():
        return keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, mode="max")

    first, _ = fit(small_net(), epochs=9, callbacks=[early()], folder=tmp_path)
    stopped = len(first.history["loss"])
    assert stopped < 9
    model = small_net()
    again, calls = fit(model, epochs=9, callbacks=[early()], folder=tmp_path, checkpoint=checkpoints.newest(tmp_path))
    assert [epoch for epoch, _ in calls] == list(range(1, stopped + 1))
    assert again.history == first.history and again.best_epoch == first.best_epoch
    assert validated(model) == pytest.approx({name: again.best[name] for name in ("val_loss", "val_accuracy")})
