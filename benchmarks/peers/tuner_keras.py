"""The sweep of sweep.py by KerasTuner: all trials in this process, one MLflow run a trial."""

import argparse
from typing import Any

import bare_keras_5k
import keras
import keras_tuner
import mlflow

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", required=True)
parser.add_argument("--jobs", type=int, required=True)
arguments = parser.parse_args()


class Job(keras_tuner.HyperModel):
    """A model whose only choice is its seed."""

    def build(self, hp: Any) -> keras.Model:
        """As KerasTuner asks for it."""
        return bare_keras_5k.build(hp.Choice("seed", list(range(arguments.jobs))))

    def fit(self, hp: Any, model: keras.Model, verbose: int, **keywords: Any) -> dict[str, float]:
        """Trains and records; `verbose` is for the tuner's own report."""
        with mlflow.start_run():
            mlflow.log_params(hp.values)
            metrics = bare_keras_5k.train(model, **keywords)
            mlflow.log_metrics(metrics)
        return metrics


mlflow.set_experiment("KerasTuner")
objective = keras_tuner.Objective("val_accuracy", "max")
tuner = keras_tuner.GridSearch(Job(), objective, max_trials=arguments.jobs, directory=".", project_name="tuner")
tuner.search(data=bare_keras_5k.load(arguments.data), verbose=0)
print(tuner.get_best_hyperparameters()[0].values)
