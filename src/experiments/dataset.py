"""A data set: training, validation and test images with their labels and digests."""

import hashlib
from collections.abc import Sequence
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

    @classmethod
    def from_arrays(
        cls,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        test_images: np.ndarray | None = None,
        test_labels: np.ndarray | None = None,
        *,
        name: str,
        class_names: Sequence[str] | None = None,
        test_fraction: float = 0.2,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
    ) -> "Dataset":
        """Builds a data set from arrays: checks them, splits the validation images off and computes the digests.

        A function of your own that returns it is a choice of `data`.

        Args:
            train_images: integers from 0 to 255 of shape (n, height, width), (n, height, width, 1) or
                (n, height, width, 3).
            train_labels: integers from 0 to classes - 1, of shape (n,) or (n, 1).
            test_images: likewise, of the same height, width and channels; None splits `test_fraction` off.
            test_labels: likewise; None if `test_images` is None.
            name: shown in the record of the run.
            class_names: in the order of the labels; None takes the numbers 0 to the highest label.
            test_fraction: share of the images to test on, without `test_images`; always the same images.
            validation_fraction: share of the images left for training to validate on.
            split_seed: another seed draws other validation images.
            limit: at most so many images in each of the three sets, stratified; None takes all.

        Raises:
            ExperimentError: an array has a wrong shape, type or range, or a class has too few images to split.

        Example:
            >>> Dataset.from_arrays(images, labels, name="flowers", class_names=["daisy", "rose"])
        """
        train = labelled(train_images, train_labels, "train_images", "train_labels")
        if (test_images is None) != (test_labels is None):
            raise ExperimentError("test_images and test_labels belong together.", advice="Give both or none.")
        test = None
        if test_images is not None and test_labels is not None:
            test = labelled(test_images, test_labels, "test_images", "test_labels")
            if train.images.shape[1:] != test.images.shape[1:]:
                raise ExperimentError(
                    f"The training images have the shape {train.images.shape[1:]}, the test images "
                    f"{test.images.shape[1:]}; they must be equal."
                )
        loaded = [train] if test is None else [train, test]
        highest = max(int(part.labels.max()) for part in loaded)
        names = _class_names(class_names, highest, len(train.labels))
        if len(names) < 2:
            raise ExperimentError(f"The data set {name} has only the class {names[0]}; at least 2 are needed.")
        if limit is not None and limit < len(names):
            raise ExperimentError(
                f"data.limit={limit} is fewer than the {len(names)} classes.",
                advice=f"Give data.limit={len(names)} or more, or null for all images.",
            )
        sha256 = arrays_sha256(*(array for part in loaded for array in part))
        if test is None:
            train, test = _split(train, names, "data.test_fraction", test_fraction, _TEST_SEED, keep=2)
        train, validation = _split(train, names, "data.validation_fraction", validation_fraction, split_seed, keep=1)
        train, validation = (part.at(_limited(part.labels, limit)) for part in (train, validation))
        test_index = _limited(test.labels, limit)
        test = test.at(test_index)
        return cls(
            name=name,
            class_names=names,
            train_images=train.images,
            train_labels=train.labels,
            validation_images=validation.images,
            validation_labels=validation.labels,
            test_images=test.images,
            test_labels=test.labels,
            test_index=test_index,
            sha256=sha256,
            validation_sha256=arrays_sha256(*validation),
            test_sha256=arrays_sha256(*test),
            num_images=sum(len(part.labels) for part in loaded),
        )

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


def labelled(images: np.ndarray, labels: np.ndarray, images_name: str, labels_name: str) -> Labelled:
    """Checks a user's arrays and brings them into the form of `Labelled`; the names are for messages.

    Raises:
        ExperimentError: the shape, type or range of an array is wrong.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.size == 0 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))):
        raise ExperimentError(
            f"{images_name} has the shape {images.shape}.",
            advice="Images are (n, height, width) or (n, height, width, 1) when grey, (n, height, width, 3) in colour.",
        )
    if images.dtype.kind not in "iu" or images.min() < 0 or images.max() > 255:
        raise ExperimentError(
            f"{images_name} holds {_values(images)}; pixels must be integers from 0 to 255.",
            advice="Save the unscaled images as uint8: the model itself scales them.",
        )
    if labels.shape not in ((len(images),), (len(images), 1)):
        raise ExperimentError(
            f"{labels_name} has the shape {labels.shape}, but there are {len(images)} images.",
            advice="Give one integer per image.",
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ExperimentError(
            f"{labels_name} holds {_values(labels)}; labels must be integers from 0 on.",
            advice="Number the classes 0, 1, 2, ... without gaps.",
        )
    channels = images if images.ndim == 4 else images[..., np.newaxis]
    return Labelled(channels.astype(np.uint8, copy=False), labels.reshape(-1).astype(np.int64))


def _values(array: np.ndarray) -> str:
    return f"{array.dtype} from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else str(array.dtype)


def _class_names(class_names: Sequence[str] | None, highest: int, total: int) -> tuple[str, ...]:
    """The given names, or one number per class, held against the highest label."""
    if class_names is None and highest >= total:
        raise ExperimentError(
            f"The label {highest} makes {highest + 1} classes, but there are {total} training images.",
            advice="Number the classes 0, 1, 2, ... without gaps.",
        )
    names = tuple(map(str, range(highest + 1) if class_names is None else class_names))
    if highest >= len(names):
        raise ExperimentError(
            f"The label {highest} has no name: class_names has {len(names)} entries.",
            advice=f"Give {highest + 1} names, in the order of the labels.",
        )
    return names


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


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether every row of a classifier's outputs is 0 or more and adds up to 1, as far as half precision can."""
    return bool((outputs >= 0).all() and (abs(outputs.sum(axis=-1) - 1) <= 0.01).all())  # NaN is neither
