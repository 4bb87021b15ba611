"""Builds and checks everything that a configuration names for a data set."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from omegaconf import OmegaConf

from experiments import models
from experiments.config.targets import instantiate
from experiments.dataset import Dataset, are_probabilities
from experiments.errors import ExperimentError, reason_of
from experiments.library_internals import metric_mode
from experiments.stored_images import Images
from experiments.training.batches import augmented
from experiments.training.class_weights import ClassWeightedLoss, class_weights
from experiments.training.evaluation import values_of
from experiments.training.freezing import FreezeCallback, ShiftedSchedule, frozen_layers, set_head_learning_rate

_log = logging.getLogger(__name__)

_PIXELS = (0, 255)
_LOOKED_AT = 64  # images
_SCALINGS = (keras.layers.Normalization, keras.layers.Rescaling, keras.layers.UnitNormalization)


@dataclass(frozen=True)
class Components:
    """Everything that is built from a configuration."""

    scaling: keras.Layer  # the model's first layer
    model: keras.Model
    loss: keras.losses.Loss
    metrics: list[keras.Metric]  # besides loss and accuracy
    optimizer: keras.optimizers.Optimizer
    schedule: float | keras.optimizers.schedules.LearningRateSchedule
    callbacks: list[keras.callbacks.Callback]
    augmentation: list[keras.Layer]
    freezing: FreezeCallback | None
    modes: Mapping[str, str | None]  # metric -> `max` or `min`, what is better; None if that is not known
    mode: str  # of the objective


def build(cfg: Any, data: Dataset) -> Components:
    """Builds and checks everything that `cfg` names for `data`.

    Raises:
        ExperimentError: a part that cannot be built, named by its key.
    """
    input_shape, num_classes = data.image_shape, data.num_classes
    steps_per_epoch = -(-len(data.train_images) // cfg.batch_size)
    scaling = build_part(cfg, "scale", keras.Layer, train_images=data.train_images)
    model = instantiate(cfg, "model", input_shape=input_shape, num_classes=num_classes)
    _check_model(model, cfg.model._target_, input_shape, num_classes)
    _check_scaled_once(cfg.model._target_, model, scaling)
    metrics = [_metric(cfg, name, data) for name in sorted(cfg.get("metrics") or {})]
    modes: dict[str, str | None] = {"loss": "min", "accuracy": "max"}
    for metric in metrics:
        modes |= dict.fromkeys(values_of(metric), cfg.metrics[metric.name].get("mode") or metric_mode(metric))
    schedule = instantiate(
        cfg,
        "schedule",
        learning_rate=cfg.optimizer.learning_rate,
        total_steps=cfg.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
    )
    if cfg.unfreeze_at_epoch and callable(schedule):
        schedule = ShiftedSchedule(schedule)
    model = models.with_scaling(model, scaling, input_shape)
    optimizer = build_part(cfg, "optimizer", keras.Optimizer, learning_rate=schedule)
    if cfg.head_learning_rate is not None:
        set_head_learning_rate(optimizer, model, cfg.head_learning_rate / cfg.optimizer.learning_rate)
    return Components(
        scaling=scaling,
        model=model,
        loss=_loss(cfg, data),
        optimizer=optimizer,
        schedule=schedule,
        callbacks=[_callback(cfg, f"callbacks.{name}", modes) for name in sorted(cfg.get("callbacks") or {})],
        augmentation=_augmentation(cfg, data),
        freezing=_freezing(cfg, model, steps_per_epoch, schedule),
        metrics=metrics,
        modes=modes,
        mode=_mode_of(modes, "objective", cfg.objective),
    )


def _freezing(cfg: Any, model: keras.Model, steps_per_epoch: int, schedule: Any) -> FreezeCallback | None:
    epoch = cfg.unfreeze_at_epoch
    if epoch is not None and not cfg.freeze:
        raise ExperimentError(f"unfreeze_at_epoch={epoch}: no layer is frozen.", advice="Name some with freeze.")
    if epoch is not None and epoch > cfg.epochs:
        raise ExperimentError(f"unfreeze_at_epoch={epoch}: the run ends after epoch {cfg.epochs}.")
    if not cfg.freeze:
        return None
    freeze = cfg.freeze if isinstance(cfg.freeze, str) else list(cfg.freeze)
    return FreezeCallback(frozen_layers(model, freeze), epoch, steps_per_epoch, schedule)


def _check_model(model: Any, builder: str, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Checks that a user's function returned a plain Keras model that outputs probabilities."""
    if isinstance(model, keras.Model) and not type(model).__module__.startswith("keras."):
        # The scaling layer makes a new model of its layers, and the saved model must load without the user's code.
        raise ExperimentError(
            f"model: {builder} returned a {type(model).__name__}, a subclass of keras.Model, whose own methods "
            "(train_step, compute_loss, ...) the run would not call.",
            advice="Return a keras.Sequential or keras.Model(inputs, outputs); layers of your own are fine.",
        )
    shape = getattr(model, "output_shape", None) if isinstance(model, keras.Model) else None
    if shape != (None, num_classes):
        raise ExperimentError(
            f"model: {builder} returned {model!r} with the output {shape}.",
            advice=f"A Sequential or functional keras.Model that ends in {num_classes} probabilities is needed.",
        )
    for layer in model.layers:
        if isinstance(layer, keras.layers.MixUp | keras.layers.CutMix):
            raise ExperimentError(
                f"model: layer {layer.name} ({type(layer).__name__}) would mix images without their labels.",
                advice="Choose it as augment, which mixes both.",
            )
    image = np.zeros((1, *input_shape), "float32")
    state = [(variable, variable.numpy()) for variable in model.non_trainable_variables]
    try:
        with tf.GradientTape() as tape:
            tensor = model(image, training=False)
        model(image, training=True)  # some layers do something else then
    except Exception as error:  # every layer has its own
        raise ExperimentError(
            f"model: {builder} cannot be applied to an image of shape {input_shape}: {reason_of(error)}"
        ) from error
    for variable, value in state:
        variable.assign(value)
    outputs = np.asarray(tensor)
    if not are_probabilities(outputs):
        raise ExperimentError(
            f"model: {builder} does not output probabilities: on a black image its outputs are from "
            f"{outputs.min():.3g} to {outputs.max():.3g} and sum to {outputs.sum():.3g}.",
            advice="End the model in a softmax.",
        )
    gradients = tape.gradient(tensor, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        if gradient is None:
            name = variable.path.rpartition("/")[0]
            raise ExperimentError(
                f"model: layer {name} would not learn, because a layer behind it passes no gradient back.",
                advice=f"Leave that layer out, or set trainable: false for {name}.",
            )


def _first_scalings(model: keras.Model) -> Iterator[keras.Layer]:
    """The layers of a model that scale the pixels, before the first layer with weights."""
    for layer in model.layers:
        if isinstance(layer, _SCALINGS):
            yield layer
            continue
        if isinstance(layer, keras.Model):
            yield from _first_scalings(layer)
        if layer.weights:
            return


def _check_scaled_once(builder: str, model: keras.Model, scaling: keras.Layer) -> None:
    own = next(_first_scalings(model), None)
    if own and not isinstance(scaling, keras.layers.Identity):
        otherwise = "choose another model" if builder == "experiments.models.backbone" else "leave the layer out"
        raise ExperimentError(
            f"model: its layer {own.name} ({type(own).__name__}) scales the pixels, which scale has scaled already.",
            advice=f"Set scale=none, or {otherwise}.",
        )


def _augmentation(cfg: Any, data: Dataset) -> list[keras.Layer]:
    """The augmentation layers, each tried on two training images."""
    images = tf.constant(data.train_images[:2])
    labels = tf.one_hot(data.train_labels[:2], data.num_classes)
    layers = []
    for name in cfg.get("augment") or {}:
        layer = build_part(cfg, f"augment.{name}", keras.Layer)
        what = f"augment.{name}: {cfg.augment[name]._target_}"
        if isinstance(layer, _SCALINGS):
            raise ExperimentError(
                f"{what} would scale the training images only, not those to validate and test.",
                advice="Choose it as the scale, or put it into the model with scale=none.",
            )
        if data.train_weights is not None and isinstance(layer, keras.layers.MixUp | keras.layers.CutMix):
            raise ExperimentError(
                f"{what} would mix images of different weights.",
                advice="Leave it out, or the weights of the images.",
            )
        if tuple(getattr(layer, "value_range", _PIXELS)) != _PIXELS:
            raise ExperimentError(
                f"{what} has value_range {list(layer.value_range)}, but it is applied to raw pixels, 0 to 255.",
                advice="Leave value_range out, or set it to [0, 255].",
            )
        shapes = images.shape, labels.shape
        try:
            images, labels = augmented(layer, images, labels)
        except Exception as error:  # every layer has its own
            raise ExperimentError(
                f"{what} cannot be applied to images of shape {data.image_shape}: {reason_of(error)}"
            ) from error
        if (images.shape, labels.shape) != shapes:
            raise ExperimentError(
                f"{what} makes images of shape {tuple(images.shape[1:])} and labels of shape {tuple(labels.shape[1:])} "
                f"of those of shape {data.image_shape} and ({data.num_classes},).",
                advice="An augmentation must keep both; keras.layers.Resizing behind it restores the size.",
            )
        if layer.weights:
            raise ExperimentError(f"{what} has weights, and nothing trains those of an augmentation.")
        layers.append(layer)
    return layers


def _loss(cfg: Any, data: Dataset) -> keras.losses.Loss:
    loss = build_part(cfg, "loss", keras.losses.Loss)
    value = _on_one_image(f"loss: {cfg.loss._target_}", loss, data.num_classes)
    if value.shape != ():
        raise ExperimentError(
            f"loss: {cfg.loss._target_} gives values of shape {value.shape}, one number is needed.",
            advice="Leave out reduction, or set it to sum_over_batch_size.",
        )
    _check_probabilities("loss", loss)
    weights = class_weights(cfg.class_weight, data.train_labels, data.class_names)
    if weights is None:
        return loss
    two = np.full((2, data.num_classes), 1 / data.num_classes, "float32")
    if (shape := np.shape(loss.call(two, two))) != (2,):
        raise ExperimentError(
            f"class_weight: {cfg.loss._target_} gives values of shape {shape} for 2 images, one each is needed.",
            advice="Let its method call return the loss of every image.",
        )
    return ClassWeightedLoss(loss, weights)


def _metric(cfg: Any, name: str, data: Dataset) -> keras.Metric:
    key = f"metrics.{name}"
    node = {part: value for part, value in cfg.metrics[name].items() if part != "mode"}
    metric = build_part(
        OmegaConf.create({"metrics": {name: node}}), key, keras.Metric, name=name, class_names=data.class_names
    )
    if metric.name != name:
        raise ExperimentError(
            f"{key}: {cfg.metrics[name]._target_} has made a metric named {metric.name}.",
            advice="Let it take the argument name and pass it on.",
        )
    _on_one_image(f"{key}: {cfg.metrics[name]._target_}", metric, data.num_classes)
    for part, value in values_of(metric).items():
        if np.shape(value) != ():
            raise ExperimentError(
                f"{key}: {cfg.metrics[name]._target_} gives values of shape {np.shape(value)}, one number is needed.",
                advice="Choose an average, as in average: macro.",
            )
        if part != name and not part.startswith(f"{name}/"):
            raise ExperimentError(
                f"{key}: {cfg.metrics[name]._target_} gives a value named {part}.", advice=f"Name it {name}/{part}."
            )
    _check_probabilities(key, metric)
    metric.reset_state()
    return metric


def _check_probabilities(key: str, part: keras.losses.Loss | keras.Metric) -> None:
    if getattr(part, "from_logits", False):
        raise ExperimentError(
            f"{key}.from_logits=true: every model ends in a softmax, so {key} gets probabilities.",
            advice="Leave from_logits out.",
        )


def warn_if_badly_scaled(components: Components, images: Images) -> None:
    """Warns of inputs that the first layers make tiny or leave huge, with which a model learns badly."""
    largest = 0.0
    for image in images[:_LOOKED_AT][:, None]:  # one by one, because as floats they take four times the memory
        scaled = components.scaling(image.astype("float32"))
        for layer in _first_scalings(components.model):
            scaled = scaled if layer is components.scaling else layer(scaled)
        largest = max(largest, float(np.abs(scaled).max()))
    if not 0.01 <= largest <= 160:  # the oldest models of keras.applications take pixels minus their mean
        _log.warning(
            "The scaled inputs are %s: their largest absolute value is %.2g. Try scale=unit.",
            "tiny" if largest < 1 else "huge",
            largest,
        )


def _mode_of(modes: Mapping[str, str | None], key: str, monitored: str) -> str:
    name = monitored.removeprefix("val_")
    if name not in modes:
        measured = [f"val_{name}" for name in modes]
        raise ExperimentError(f"{key}={monitored}: no epoch measures it.", given=monitored, allowed=measured)
    mode = modes[name]
    if mode is None:
        raise ExperimentError(
            f"{key}={monitored}: it is not known whether a higher or a lower {name} is better.",
            advice=f"Add the line mode: max or mode: min to the YAML of {name}.",
        )
    return mode


def _callback(cfg: Any, key: str, modes: Mapping[str, str | None]) -> keras.callbacks.Callback:
    """Builds a callback and tells it whether a higher or lower value of its metric is better."""
    monitor = OmegaConf.select(cfg, f"{key}.monitor")
    if monitor is None:
        return build_part(cfg, key, keras.callbacks.Callback)
    mode = _mode_of(modes, f"{key}.monitor", monitor)
    given = OmegaConf.select(cfg, f"{key}.mode")
    if given not in (None, "auto", mode):
        raise ExperimentError(
            f"{key}.mode={given} with {key}.monitor={monitor} would take the worst epoch for the best.",
            advice=f"Leave {key}.mode out.",
        )
    return build_part(cfg, key, keras.callbacks.Callback, mode=mode)


def _on_one_image(what: str, function: Callable[..., Any], num_classes: int) -> np.ndarray:
    """Calls a loss or metric with a one-hot label and equal probabilities, the form it will be called with."""
    label = np.eye(1, num_classes, dtype="float32")
    try:
        return np.asarray(function(label, np.full_like(label, 1 / num_classes)))
    except Exception as error:  # whatever the user's own class raises
        raise ExperimentError(
            f"{what} cannot take one-hot labels and probabilities of shape (images, {num_classes}): {reason_of(error)}"
        ) from error


def build_part(cfg: Any, key: str, kind: type, **run_values: Any) -> Any:
    """Builds what `cfg[key]` describes and checks its type.

    Raises:
        ExperimentError: it cannot be built, or is not a `kind`.
    """
    part = instantiate(cfg, key, **run_values)
    if not isinstance(part, kind):
        target = OmegaConf.select(cfg, f"{key}._target_")
        raise ExperimentError(
            f"{key}._target_={target}: a {kind.__module__.split('.')[0]} {kind.__name__} is needed here."
        )
    return part
