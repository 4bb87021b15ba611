"""Images decoded into a file, for data sets that do not fit into memory."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock

from experiments.errors import ExperimentError

_log = logging.getLogger("experiments")
_PIECE = 2**24  # bytes of images that are read at once
_TOLD_EVERY = 5000  # images


class StoredImages:
    """Images in a file, uint8 of shape (n, height, width, channels), indexed like an array.

    What is asked for is read into memory. The file is mapped anew each time, because what has been read of a mapped
    file counts as memory of the process for as long as it is mapped.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, file: Path, shape: tuple[int, ...], positions: np.ndarray | None = None) -> None:
        self._file = file
        self._stored_shape = shape
        self._positions = np.arange(shape[0]) if positions is None else positions
        self.shape = (len(self._positions), *shape[1:])

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        return np.array(np.memmap(self._file, self.dtype, "r", shape=self._stored_shape)[self._positions[key]])

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def at(self, positions: np.ndarray | slice) -> "StoredImages":
        """The images at some positions, not yet read."""
        return StoredImages(self._file, self._stored_shape, self._positions[positions])


#: In memory, or in a file.
Images = np.ndarray | StoredImages


def select(images: Images, positions: np.ndarray | slice) -> Images:
    """The images at some positions; they stay where they are, in memory or in a file."""
    return images.at(positions) if isinstance(images, StoredImages) else images[positions]


def pieces(images: Images) -> Iterator[np.ndarray]:
    """All images in their order, some at a time, so that those in a file take little memory."""
    step = max(1, _PIECE // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        yield images[start : start + step]


def cache_folder() -> Path:
    """The folder of data that Keras, and this package, can make again."""
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras")), "datasets")


def stored(
    name: str, shape: tuple[int, ...], decode: Callable[[int], Iterable[np.ndarray]], reason: str
) -> StoredImages:
    """Images in a file of the cache folder, which is written if it is not there, by one process at a time.

    Args:
        name: of the file; the same for the same images only.
        shape: number of images, height, width, channels.
        decode: gives the images from a position on, one after another.
        reason: why they are not held in memory, for messages.

    Raises:
        ExperimentError: the file cannot be written, or `decode` raises it.
    """
    file = cache_folder() / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            size = int(np.prod(shape))
            if not file.exists() or file.stat().st_size != size:
                _write(file, size, shape[0], decode, reason)
    except OSError as error:
        raise _no_room(file.parent, str(error), reason) from error
    _log.info("%s, so the images are read from %s (%s)", reason, file, _megabytes(size))
    return StoredImages(file, shape)


def _write(file: Path, size: int, number: int, decode: Callable[[int], Iterable[np.ndarray]], reason: str) -> None:
    if file.exists():
        _log.warning("%s is damaged and is written again", file)
    part = file.with_suffix(".part")
    with part.open("ab") as stream:
        done = stream.tell() // (size // number)  # whole images that a killed process has left
        stream.truncate(done * (size // number))
        missing, free = size - stream.tell(), shutil.disk_usage(file.parent).free
        if free < missing:
            raise _no_room(file.parent, f"{_megabytes(missing)} are needed, {_megabytes(free)} are free", reason)
        _log.info("Decoding %s images once, into %s (%s)", f"{number - done:,}", file, _megabytes(size))
        try:
            for position, image in enumerate(decode(done), done + 1):
                stream.write(image.tobytes())
                if position % _TOLD_EVERY == 0:
                    _log.info("%s of %s images decoded", f"{position:,}", f"{number:,}")
        except ExperimentError:
            part.unlink()
            raise
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)  # other processes see no file or a complete one


def _no_room(folder: Path, problem: str, reason: str) -> ExperimentError:
    return ExperimentError(
        f"{reason}, and they cannot be stored in {folder}: {problem}.",
        advice="Make room there, set KERAS_HOME to another folder, or set data.memory_mb to hold them in memory.",
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
