"""The GPUs that jobs may use, found without TensorFlow, which would reserve their memory."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from itertools import takewhile

_LONGEST = 30  # seconds; a GPU that is asleep takes some to answer


def usable_gpus() -> list[str]:
    """The GPUs of this machine as CUDA names them, of which `CUDA_VISIBLE_DEVICES` may select some."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        words = [program, "--query-gpu=index", "--format=csv,noheader"]
        listed = subprocess.run(words, capture_output=True, text=True, timeout=_LONGEST, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # the driver is not there, or does not answer
        return []
    found = listed.stdout.split()
    selected = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not found or selected is None:
        return found
    # CUDA ignores everything from the first name on that is no GPU.
    return list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, selected.split(","))))


def least_used(gpus: Iterable[str], in_use: Iterable[str | None]) -> str | None:
    """The GPU that the fewest jobs use, the first one of several; None if there is no GPU."""
    used = list(in_use)
    return min(gpus, key=used.count, default=None)


def use(gpu: str) -> None:
    """Makes this process see one GPU, or none for -1; TensorFlow must not have started."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi
