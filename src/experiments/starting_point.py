"""Starts a training from the weights of a trained model."""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from experiments.config.configuration import PIN, Configuration
from experiments.errors import ExperimentError, reason_of
from experiments.tracking.registry import find_model
from experiments.training.layers import named_layers, weights_sha256
from experiments.training.runtime import forget_models

_log = logging.getLogger("experiments")


@dataclass(frozen=True)
class StartingPoint:
    """The weights of a trained model."""

    name: str  # of the model: the id of a run, a .keras file, or a registered model
    sha256: str  # of all its weights
    image_shape: tuple[int, ...]
    weights: Mapping[str, Sequence[np.ndarray]]  # by the name of the layer
    scale: str | None = None  # that it was trained with; None if that is not known

    @property
    def pinned(self) -> str:
        """What `init_from` must be to mean these very weights."""
        return f"{self.name}{PIN}{self.sha256}"

    def load_into(self, model: keras.Model) -> None:
        """Loads the weights of all layers that agree in name and shape, and says which do not.

        Raises:
            ExperimentError: no layer agrees, or layers before the last one do not because the images have another size.
        """
        own = {name: layer for name, layer in named_layers(model).items() if layer.weights}
        shapes = {name: [tuple(weight.shape) for weight in layer.weights] for name, layer in own.items()}
        theirs = {name: [weight.shape for weight in weights] for name, weights in self.weights.items()}
        agreeing = [name for name in own if theirs.get(name) == shapes[name]]
        other_shape = [name for name in own if name in theirs and name not in agreeing]
        missing = [name for name in own if name not in theirs]
        if (misfits := [name for name in other_shape if name != list(own)[-1]]) and self._takes_others(model):
            raise ExperimentError(
                f"init_from={self.name} takes images of shape {self.image_shape}, the data have "
                f"{model.input_shape[1:]}, so these layers do not fit: {', '.join(misfits)}.",
                advice="Take data of that shape, or a model whose layers do not depend on it.",
            )
        if not agreeing:
            raise ExperimentError(
                f"init_from={self.name}: none of its layers ({', '.join(theirs)}) agrees in name and shape with one of "
                f"the model ({', '.join(own)}).",
                advice="Choose the model that it was trained as.",
            )
        for name in agreeing:
            own[name].set_weights(self.weights[name])
        others = [f"{name} (another shape)" for name in other_shape] + [f"{name} (not in it)" for name in missing]
        left = f"; not loaded: {', '.join(others)}" if others else ""
        _log.info("Starting from %s: %d of %d layers loaded%s", self.name, len(agreeing), len(own), left)

    def _takes_others(self, model: keras.Model) -> bool:
        return self.image_shape != tuple(model.input_shape[1:])


def with_start(configuration: Configuration) -> tuple[Configuration, StartingPoint | None]:
    """Reads the weights that a run is to start from, and names them in its configuration by their hash, too.

    Raises:
        ExperimentError: there is no such model, it cannot be loaded, or its weights are not the pinned ones.
    """
    cfg = configuration.cfg
    if cfg.init_from is None:
        return configuration, None
    start = _read(cfg.init_from)
    forget_models(cfg.precision)  # as if no model had been made before the one to train
    keras.utils.set_random_seed(cfg.seed)
    if start.scale not in (None, configuration.choices["scale"]):
        _log.warning("%s was trained with scale=%s. Try it here, too.", start.name, start.scale)
    return configuration.pinned(start.pinned), start


def _read(init_from: str) -> StartingPoint:
    given, _, pinned = init_from.partition(PIN)
    if given == "last" or given.startswith("best:"):
        raise ExperimentError(
            f"init_from={given} would mean another run when more have been recorded.",
            advice="Give the id of the run, which experiments ui shows.",
        )
    try:
        with tempfile.TemporaryDirectory() as folder:
            file, run = find_model(given, Path(folder))
            name = run.run_id if run else os.path.abspath(file) if given.endswith(".keras") else given
            model = _loaded(given, file)
    except ExperimentError as error:
        raise ExperimentError(f"init_from: {error}") from error
    sha256 = weights_sha256(model)
    if pinned not in ("", sha256):
        raise ExperimentError(f"init_from: {given} has other weights than those that the run started from.")
    weights = {name: layer.get_weights() for name, layer in named_layers(model).items() if layer.weights}
    return StartingPoint(name, sha256, tuple(model.input_shape[1:]), weights, run.params.get("scale") if run else None)


def _loaded(name: str, file: Path) -> keras.Model:
    try:
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # a corrupt file, or one that needs other code, raises almost anything
        raise ExperimentError(f"{name} cannot be loaded: {reason_of(error)}") from error
