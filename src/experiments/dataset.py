"""A data set: training, validation and test images with their labels and digests."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.errors import ExperimentError

#: Of the 10,000 test images of MNIST and their labels, as a `Dataset` holds them, in the published order.
MNIST_TEST_SHA256 = "65f8dd92a0a1565c0ca8892c2dc6afc40577b69a8ce2d15d10ac7efb414281af"
#: Positions of those whose published label most raters reject (Northcutt et al. 2021, https://arxiv.org/abs/2103.14749).
MNIST_REJECTED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
_TEST_SEED = 0  # a test set that moved with split_seed would end up in some run's training images


@dataclass(frozen=True, eq=False)  # arrays have no one truth value to compare; the digests say what is equal
class Dataset:
    """Images and labels of one run, ready to train on, and the digests that identify them.

    Images are uint8 of shape (n, height, width, channels); labels are int64 of shape (n,), from 0 to classes - 1.
    """

    name: str  # for a folder or file of the user its own
    class_names: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    test_index: np.ndarray  # int64 (n,), position of each test image in the whole test set, which `limit` shortens
    sha256: str  # of all arrays as loaded, before splits and limit
    validation_sha256: str  # of the validation images and labels used
    test_sha256: str  # of the test images and labels used
    num_images: int  # as loaded, before splits and limit

    @property
    def num_classes(self) -> int:
        """Number of classes, also of those without test images."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def rejected_labels(self) -> tuple[int, ...]:
        """Positions of test images known to be labelled wrongly; only the whole test set of MNIST has a list."""
        return MNIST_REJECTED if self.test_sha256 == MNIST_TEST_SHA256 else ()


class Labelled(NamedTuple):
    """Images, uint8 (n, height, width, channels), and their labels, int64 (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def at(self, positions: np.ndarray) -> "Labelled":
        """The images and labels at some positions."""
        return Labelled(self.images[positions], self.labels[positions])


def dataset(
    name: str,
    class_names: tuple[str, ...],
    train: Labelled,
    test: Labelled | float,
    validation_fraction: float,
    split_seed: int,
    limit: int | None,
) -> Dataset:
    """The data set of all loaded images; a number for `test` is the fraction of `train` to split off for it."""
    if len(class_names) < 2:
        raise ExperimentError(f"data.path: {name} has only the class {class_names[0]}; at least 2 are needed.")
    if limit is not None and limit < len(class_names):
        raise ExperimentError(
            f"data.limit={limit} is fewer than the {len(class_names)} classes.",
            advice=f"Give data.limit={len(class_names)} or more, or null for all images.",
        )
    sha256 = arrays_sha256(*train, *(test if isinstance(test, Labelled) else ()))
    num_images = len(train.labels) + (len(test.labels) if isinstance(test, Labelled) else 0)
    if not isinstance(test, Labelled):
        train, test = _split(train, class_names, "data.test_fraction", test, _TEST_SEED, keep=2)
    train, validation = _split(train, class_names, "data.validation_fraction", validation_fraction, split_seed, keep=1)
    train = train.at(_limited(train.labels, limit))
    validation = validation.at(_limited(validation.labels, limit))
    test_index = _limited(test.labels, limit)
    test = test.at(test_index)
    digests = sha256, arrays_sha256(*validation), arrays_sha256(*test)
    return Dataset(name, class_names, *train, *validation, *test, test_index, *digests, num_images)


def _split(
    whole: Labelled, class_names: tuple[str, ...], key: str, fraction: float, seed: int, keep: int
) -> tuple[Labelled, Labelled]:
    """Splits a stratified `fraction` off; at least `keep` images of each class stay and at least one goes."""
    from sklearn.model_selection import train_test_split  # here, because it takes a second to import

    labels, total, num_classes = whole.labels, len(whole.labels), len(class_names)
    for class_name, count in zip(class_names, np.bincount(labels, minlength=num_classes), strict=True):
        if count <= keep:
            raise ExperimentError(
                f"{key}={fraction}: the class {class_name!r} has {count} images; at least {keep + 1} are needed.",
                advice="Add images to this class or leave it out: each part of a split needs one.",
            )
    size = int(np.clip(round(fraction * total), num_classes, total - keep * num_classes))
    kept, held_out = train_test_split(np.arange(total), test_size=size, stratify=labels, random_state=seed)
    # scikit-learn rounds rare classes to none: take what is missing from the other part in exchange for the commonest.
    for part, other, least in ((kept, held_out, keep), (held_out, kept, 1)):
        for label in range(num_classes):
            while np.count_nonzero(labels[part] == label) < least:
                commonest = np.bincount(labels[part]).argmax()
                mine, theirs = np.argmax(labels[part] == commonest), np.argmax(labels[other] == label)
                part[mine], other[theirs] = other[theirs], part[mine]
    return whole.at(kept), whole.at(held_out)


def _limited(labels: np.ndarray, limit: int | None) -> np.ndarray:
    """Positions of at most `limit` images, stratified; each class there is keeps one, a higher limit keeps the same."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.random.RandomState(_TEST_SEED).permutation(np.flatnonzero(labels == label))
        place[members] = np.arange(len(members)) / len(members)
    return np.sort(np.argsort(place, kind="stable")[:limit])


def arrays_sha256(*arrays: np.ndarray) -> str:
    """SHA-256 of the arrays' types, shapes and bytes, the same on every platform."""
    digest = hashlib.sha256()
    for array in arrays:
        little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()
