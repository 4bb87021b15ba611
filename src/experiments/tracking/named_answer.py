"""Loads a logged model for MLflow's server, which then answers with the names of the classes.

A copy of this file lies beside every logged model, which is to work where this package is not installed.
"""

from typing import Any

import mlflow.keras
import pandas as pd
from mlflow.models import Model


class NamedProbabilities:
    """A Keras model whose probabilities are columns with the names of the classes."""

    def __init__(self, path: str):
        self._model = mlflow.keras.load_model(path)
        self._class_names = Model.load(path).metadata["class_names"]

    def predict(self, data: Any) -> pd.DataFrame:
        """One row for each image, of uint8 pixels (images, height, width, channels), or float32."""
        return pd.DataFrame(self._model.predict(data, verbose=0), columns=self._class_names)


def _load_pyfunc(path: str) -> NamedProbabilities:
    return NamedProbabilities(path)
