"""Checkpoints: written atomically, the last two kept, corrupt ones renamed."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)

_KEPT = 2
_STATE = "state"


@dataclass(frozen=True, eq=False)  # arrays have no one truth value to compare
class Checkpoint:
    """Everything that a training needs to resume after an epoch."""

    epoch: int  # counted from 1
    state: Mapping[str, Any]  # plain values, as JSON has them
    arrays: Mapping[str, Sequence[np.ndarray]]


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: if the process is killed, the earlier ones are intact.

    Raises:
        OSError: the disk is full or the folder gone.
    """
    file = folder / f"checkpoint-{checkpoint.epoch:06}.npz"
    unfinished = file.with_suffix(".part")
    text = json.dumps(checkpoint.state).encode()
    # NumPy would pickle bfloat16, which is not one of its own types.
    named: dict[str, Any] = {
        f"{name}.{number}": array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array
        for name, arrays in checkpoint.arrays.items()
        for number, array in enumerate(arrays)
    }
    named[_STATE] = np.frombuffer(text, np.uint8)
    try:
        with unfinished.open("wb") as stream:
            np.savez(stream, **named)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    for older in _files(folder)[_KEPT:]:
        older.unlink()


def newest(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint in `folder`; corrupt ones are renamed with a warning."""
    for file in _files(folder):
        try:
            return _read(file)
        except (MemoryError, OSError):  # says nothing of the file
            raise
        except Exception as error:  # a damaged file can make NumPy, zipfile, zlib and json raise almost anything
            aside = file.with_suffix(".corrupt")
            file.replace(aside)
            _log.warning("%s is corrupt and was renamed to %s (%s: %s)", file, aside.name, type(error).__name__, error)
    return None


def encoded(values: Mapping[str, Any], arrays: list[np.ndarray]) -> dict[str, Any]:
    """Converts nested plain values and arrays to JSON; arrays are added to `arrays`."""
    return {name: _encoded(value, arrays) for name, value in values.items()}


def decoded(values: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """Reverses `encoded`."""
    return {name: _decoded(value, arrays) for name, value in values.items()}


def is_plain(value: Any) -> bool:
    """Whether a checkpoint can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, str | int | float)


def _encoded(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1, "scalar": isinstance(value, np.generic)}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encoded(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encoded(item, arrays) for item in pair] for pair in value.items()]}
    return value


def _decoded(value: Any, arrays: Sequence[np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = arrays[value["array"]]
        return array[()] if value["scalar"] else array
    if "dict" in value:
        return {_decoded(key, arrays): _decoded(item, arrays) for key, item in value["dict"]}
    ((kind, items),) = value.items()
    found = [_decoded(item, arrays) for item in items]
    return tuple(found) if kind == "tuple" else found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.npz"), reverse=True)


def _read(file: Path) -> Checkpoint:
    # Opened here, because NumPy leaves a damaged file open.
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        arrays: dict[str, list[np.ndarray]] = {}
        for name in archive.files:  # in the order in which they were written
            if name != _STATE:
                arrays.setdefault(name.rpartition(".")[0], []).append(archive[name])
        state = json.loads(archive[_STATE].tobytes())
    return Checkpoint(int(file.stem.rpartition("-")[2]), state, arrays)
