"""The sweep of sweep.py by Ray Tune: a process a trial, two at once, one MLflow run a trial by Ray's own callback."""

import argparse
import os

from ray import init, tune
from ray.air.integrations.mlflow import MLflowLoggerCallback


def job(choices: dict) -> dict[str, float]:
    """A trial."""
    import bare_keras_5k  # here: the process that hands out the trials needs no TensorFlow

    return bare_keras_5k.train(bare_keras_5k.build(choices["seed"]), bare_keras_5k.load(choices["data"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--jobs", type=int, required=True)
    arguments = parser.parse_args()
    # Local: never a cluster that somebody else runs on this machine.
    init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    results = tune.Tuner(
        tune.with_resources(job, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(arguments.jobs))), "data": arguments.data},
        # With reuse_actors, trials would share processes.
        tune_config=tune.TuneConfig(metric="val_accuracy", mode="max", max_concurrent_trials=2, reuse_actors=False),
        run_config=tune.RunConfig(
            storage_path=os.getcwd(),
            callbacks=[MLflowLoggerCallback(os.environ["MLFLOW_TRACKING_URI"], experiment_name="Ray Tune")],
            verbose=0,
        ),
    ).fit()
    print(results.get_best_result().config)
