"""Config-driven experiments for Keras image classifiers: `from experiments import load, run`."""

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from experiments.errors import ExperimentError

if TYPE_CHECKING:
    from experiments.serving.classifier import Classifier
    from experiments.train import RunResult

__all__ = ["ExperimentError", "load", "run"]


def run(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> "RunResult":
    """Trains and records one run, as `experiments train` does.

    Args:
        overrides: as on the command line, such as `["model=conv3", "epochs=2"]`.
        config_dir: a folder with your own options, laid out like `conf/`.

    Returns:
        What the run measured and where its record is.

    Raises:
        ExperimentError: an override cannot work; the message says what is allowed.

    Example:
        >>> from experiments import run
        >>> result = run(["model=conv3", "epochs=2"])
        >>> result.metrics["test/accuracy"]
    """
    from experiments.config.compose import compose

    with quiet_import():
        from experiments import train

    return train.run(compose(overrides, config_dir))


def load(model: str) -> "Classifier":
    """A trained model, ready to predict.

    Args:
        model: the id of a run, alone or after `runs:/`; a registered model, as `models:/name@alias` or
            `models:/name/1`; a `.keras` file; or `best:` and the name of a sweep.

    Raises:
        ExperimentError: there is no such model, or it cannot be loaded.

    Example:
        >>> from experiments import load
        >>> probabilities = load("models:/digits@champion").predict(images)  # raw pixels, 0 to 255
    """
    with quiet_import():
        from experiments.serving import classifier

    return classifier.load(model)


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Hides what TensorFlow's libraries print while they are imported, unless the import fails.

    They write to the file descriptor before they read any setting of their own.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.stderr.flush()
    with tempfile.TemporaryFile() as banners, contextlib.ExitStack() as restore:
        stderr = os.dup(2)
        restore.callback(os.close, stderr)
        restore.callback(os.dup2, stderr, 2)
        os.dup2(banners.fileno(), 2)
        if gc.isenabled():  # imports leave no rubbish, and looking for it takes a fifth of the time
            restore.callback(gc.enable)
            gc.disable()
        try:
            yield
        except BaseException:
            banners.seek(0)
            os.write(stderr, banners.read())
            raise
