"""TensorFlow's threads, determinism, precision and random seeds."""

import logging
import os
from pathlib import Path

import keras
import psutil
import tensorflow as tf

from experiments.errors import ExperimentError

_log = logging.getLogger(__name__)
_PROCESSOR = Path("/proc/cpuinfo")
_runtime: tuple[int, bool] | None = None


def start_runtime(*, seed: int, threads: int, deterministic: bool, precision: str) -> None:
    """Sets threads, determinism, precision and every random generator, and forgets earlier models.

    Raises:
        ExperimentError: TensorFlow runs in this process with other threads or another determinism already.
    """
    global _runtime
    wanted = (threads, deterministic)
    if _runtime is None:
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # or one process takes all memory of a GPU
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:  # already running: fine if it runs as asked
            if tf.config.threading.get_intra_op_parallelism_threads() != threads:
                raise _cannot_change(f"threads={threads}", "other threads") from None
        if deterministic:
            tf.config.experimental.enable_op_determinism()
        _runtime = wanted
    elif _runtime != wanted:
        asked, runs = (f"threads={t} deterministic={str(d).lower()}" for t, d in (wanted, _runtime))
        raise _cannot_change(asked, runs)
    tf.get_logger().setLevel("ERROR")  # a notebook's later runs are no mistake for making functions anew
    forget_models(precision)
    keras.utils.set_random_seed(seed)


def forget_models(precision: str) -> None:
    """Clears Keras's state, so that the next model is built as in a new process, with `precision`.

    Keras reads other settings from a file in the user's home and from the environment; they would change results
    without being part of the configuration.
    """
    keras.backend.clear_session()
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_max_epochs(None)
    keras.config.set_max_steps_per_epoch(None)
    keras.config.set_dtype_policy(precision)


def suggest_faster_settings(threads: int, precision: str) -> None:
    """Says which other threads and precision would be faster on this machine."""
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    if threads < 8 <= (cores or 1):
        _log.info("This machine has %d cores: threads=8 would be faster, but gives another result.", cores)
    if precision == "float32" and _multiplies_bfloat16() and not tf.config.list_physical_devices("GPU"):
        _log.info(
            "This processor multiplies bfloat16: precision=mixed_bfloat16 trained 1.7 times as fast in a benchmark "
            "and gives another result."
        )


def _multiplies_bfloat16() -> bool:
    try:
        return bool({"avx512_bf16", "amx_bf16"} & set(_PROCESSOR.read_text(encoding="utf-8").split()))
    except OSError:  # only Linux tells
        return False


def _cannot_change(asked: str, runs: str) -> ExperimentError:
    return ExperimentError(
        f"{asked}: TensorFlow runs in this process with {runs} and cannot change it.",
        advice="Start a new process (in a notebook: restart the kernel).",
    )
