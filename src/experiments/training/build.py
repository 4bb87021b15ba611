"""Everything that a configuration names, built and checked for a data set."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from omegaconf import OmegaConf

from experiments import models
from experiments.config.targets import instantiate
from experiments.dataset import Dataset, are_probabilities
from experiments.errors import ExperimentError


@dataclass(frozen=True)
class Components:
    """What a configuration builds, all of it before anything is recorded."""

    scaling: keras.Layer  # the model's first layer
    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    schedule: float | keras.optimizers.schedules.LearningRateSchedule
    callbacks: list[keras.callbacks.Callback]
    augmentation: list[keras.Layer]


def build(cfg: Any, data: Dataset) -> Components:
    """Everything that `cfg` names for `data`, built and checked.

    Raises:
        ExperimentError: a part that cannot be built, named by its key.
    """
    input_shape, num_classes = data.image_shape, data.num_classes
    steps_per_epoch = -(-len(data.train_images) // cfg.batch_size)
    scaling = build_part(cfg, "scale", keras.Layer, train_images=data.train_images)
    model = instantiate(cfg, "model", input_shape=input_shape, num_classes=num_classes)
    _check_model(model, cfg.model._target_, input_shape, num_classes)
    schedule = instantiate(
        cfg,
        "schedule",
        learning_rate=cfg.optimizer.learning_rate,
        total_steps=cfg.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
    )
    return Components(
        scaling=scaling,
        model=models.with_scaling(model, scaling, input_shape),
        optimizer=build_part(cfg, "optimizer", keras.Optimizer, learning_rate=schedule),
        schedule=schedule,
        callbacks=[
            build_part(cfg, f"callbacks.{name}", keras.callbacks.Callback)
            for name in sorted(cfg.get("callbacks") or {})
        ],
        augmentation=[build_part(cfg, f"augment.{name}", keras.Layer) for name in cfg.get("augment") or {}],
    )


def _check_model(model: Any, builder: str, input_shape: tuple[int, ...], num_classes: int) -> None:
    """Refuses what a user's builder returns if it is not a plain Keras model that outputs probabilities."""
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
    outputs = np.asarray(model(np.zeros((1, *input_shape), "float32")))
    if not are_probabilities(outputs):
        raise ExperimentError(
            f"model: {builder} does not output probabilities: on a black image its outputs are from "
            f"{outputs.min():.3g} to {outputs.max():.3g} and sum to {outputs.sum():.3g}.",
            advice="End the model in a softmax.",
        )


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
