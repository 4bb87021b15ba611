"""Which epoch's weights to keep: the last, the best by validation accuracy or the best by validation loss.

Trains three recipes on all of MNIST: a constant learning rate, one that falls when the validation loss stays, and one
cycle. Each run is trained once, its weights after every epoch are remembered, and those that each rule would have kept
are evaluated on the test set. Prints the table of benchmarks/README.md.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import keras
import numpy as np
from scipy import stats

RECIPES = {
    "one cycle: one_cycle_fast epochs=5": ["experiment=one_cycle_fast", "epochs=5"],
    "constant: dropout_15_epochs": ["experiment=dropout_15_epochs"],
    "plateau: three_conv_callbacks": ["experiment=three_conv_callbacks", "callbacks=reduce_on_plateau"],
}
RULES = ("last", "best by accuracy", "best by loss")
WEIGHTS = []  # after each epoch of the run in training


class RememberWeights(keras.callbacks.Callback):
    """Remembers the weights after every epoch."""

    def on_train_begin(self, logs=None):
        """Forgets those of the run before."""
        WEIGHTS.clear()

    def on_epoch_end(self, epoch, logs=None):
        """Adds those of the epoch."""
        WEIGHTS.append(self.model.get_weights())


def test_accuracies(recipe: list[str], data: Path, seed: int) -> list[float]:
    """Trains one seed; returns the test accuracy with the weights of each rule, in percent."""
    import keep  # the module that the configuration names, not __main__
    from experiments import load, run

    result = run(
        [*recipe, f"data.path={data}", f"seed={seed}", "keep=last", "+callbacks.remember._target_=keep.RememberWeights"]
    )
    history = result.history
    epochs = {
        "last": len(keep.WEIGHTS) - 1,
        "best by accuracy": int(np.argmax(history["val_accuracy"])),
        "best by loss": int(np.argmin(history["val_loss"])),
    }
    with np.load(data) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    classifier = load(result.run_id)
    accuracies = []
    for rule in RULES:
        classifier.model.set_weights(keep.WEIGHTS[epochs[rule]])
        accuracies.append(100 * float(np.mean(classifier.predict(images).argmax(axis=1) == labels)))
    np.testing.assert_allclose(accuracies[0], 100 * result.metrics["test/accuracy"])  # what the run itself has kept
    print(seed, {rule: epochs[rule] + 1 for rule in RULES}, accuracies, flush=True)
    return accuracies


def main() -> None:
    """Trains every recipe with every seed in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a file such as mnist.npz")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(EXPERIMENTS_HOME=home, EXPERIMENTS_ALLOW_TARGETS="keep")
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        for name, recipe in RECIPES.items():
            results = np.array([test_accuracies(recipe, given.data.resolve(), seed) for seed in range(given.seeds)])
            cells = [f"{statistics.mean(column):.2f} ± {statistics.stdev(column):.2f}" for column in results.T]
            for column in results.T[1:]:
                gain = results.T[0] - column
                half = stats.t.ppf(0.975, len(gain) - 1) * statistics.stdev(gain) / len(gain) ** 0.5
                cells.append(f"{gain.mean():+.3f} [{gain.mean() - half:+.3f}, {gain.mean() + half:+.3f}]")
            rows.append(f"| {name} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    print("| recipe | " + " | ".join(RULES) + " | last - best by accuracy | last - best by loss |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
