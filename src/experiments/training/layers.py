"""The layers of a model: their names and weights."""

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256

import keras
import numpy as np


def named_layers(model: keras.Model) -> dict[str, keras.Layer]:
    """The layers of a model and of the models inside it, by name.

    Layers that Keras has numbered, as in conv2d_17, are numbered from the first one of their class in this model: a
    notebook that has built several models numbers the layers of each differently.
    """
    numbered: Counter[str] = Counter()
    found: dict[str, keras.Layer] = {}
    for layer in _flattened(model):
        name = layer.name
        kind = re.sub(r"_\d+$", "", name)
        if kind.replace("_", "") == type(layer).__name__.lower():
            name = f"{kind}_{numbered[kind]}" if numbered[kind] else kind
            numbered[kind] += 1
        found.setdefault(name, layer)
    return found


def _flattened(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _flattened(layer)
        else:
            yield layer


def weights_sha256(model: keras.Model) -> str:
    """SHA-256 of all weights of a model."""
    return sha256(b"".join(np.ascontiguousarray(weight).tobytes() for weight in model.get_weights())).hexdigest()
