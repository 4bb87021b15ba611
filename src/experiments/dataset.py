"""`Dataset`: training, validation and test images with their labels and hashes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.errors import ExperimentError

#: `Dataset.test_sha256` of the 10,000 test images of MNIST in the published order.
MNIST_TEST_SHA256 = "65f8dd92a0a1565c0ca8892c2dc6afc40577b69a8ce2d15d10ac7efb414281af"
#: Positions of those whose label most raters reject (Northcutt et al. 2021, https://arxiv.org/abs/2103.14749).
MNIST_REJECTED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
_TEST_SEED = 0  # fixed: if it followed split_seed, test images of one run would be training images of another


@dataclass(frozen=True, eq=False)  # comparing arrays gives no single truth value; compare the hashes
class Dataset:
    """The images and labels of one run, and the hashes that identify them.

    Images are uint8 of shape (n, height, width, channels); labels are int64 of shape (n,), from 0 to classes - 1.
    """

    name: str  # of the option, or of the user's file or folder
    class_names: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    test_index: np.ndarray  # int64 (n,), position of each test image in the whole test set, before `limit`
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
        """Builds a data set from arrays: checks them, splits off the validation images and computes the hashes.

        A function of yours that returns its result can be an option of `data`.

        Args:
            train_images: integers from 0 to 255 of shape (n, height, width), (n, height, width, 1) or
                (n, height, width, 3).
            train_labels: integers from 0 to classes - 1, of shape (n,) or (n, 1).
            test_images: test images of the same height, width and channels; None splits off `test_fraction`.
            test_labels: their labels; None if `test_images` is None.
            name: shown in the record of the run.
            class_names: names of the classes in the order of the labels; None means 0 to the highest label.
            test_fraction: fraction of the images used for testing without `test_images`; always the same images.
            validation_fraction: fraction of the remaining images used for validation.
            split_seed: seed that selects the validation images.
            limit: at most this many images in each of the three sets, stratified; None means all.

        Raises:
            ExperimentError: an array has a wrong shape, type or range, or a class has too few images to split.

        Example:
            >>> Dataset.from_arrays(images, labels, name="flowers", class_names=["daisy", "rose"])
        """
        train = check_arrays(train_images, train_labels, "train_images", "train_labels")
        if (test_images is None) != (test_labels is None):
            raise ExperimentError("test_images and test_labels belong together.", advice="Give both or none.")
        test = None
        if test_images is not None and test_labels is not None:
            test = check_arrays(test_images, test_labels, "test_images", "test_labels")
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
        """Number of classes, including those without test images."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    @property
    def rejected_labels(self) -> tuple[int, ...]:
        """Positions of test images known to be mislabeled; the list exists only for the whole test set of MNIST."""
        return MNIST_REJECTED if self.test_sha256 == MNIST_TEST_SHA256 else ()


class LabelledImages(NamedTuple):
    """Images, uint8 of shape (n, height, width, channels), and their labels, int64 of shape (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def at(self, positions: np.ndarray) -> "LabelledImages":
        """Selects images and their labels by position."""
        return LabelledImages(self.images[positions], self.labels[positions])


def check_arrays(images: np.ndarray, labels: np.ndarray, images_name: str, labels_name: str) -> LabelledImages:
    """Checks arrays and converts them to `LabelledImages`; the names are used in error messages.

    Raises:
        ExperimentError: the shape, type or range of an array is wrong.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.size == 0 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))):
        raise ExperimentError(
            f"{images_name} has the shape {images.shape}.",
            advice="Use (n, height, width) or (n, height, width, 1) for grayscale, (n, height, width, 3) for color.",
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
    return LabelledImages(channels.astype(np.uint8, copy=False), labels.reshape(-1).astype(np.int64))


def _values(array: np.ndarray) -> str:
    return f"{array.dtype} from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else str(array.dtype)


def _class_names(class_names: Sequence[str] | None, highest: int, total: int) -> tuple[str, ...]:
    """The given names, or a number per class; checks that there is one for the highest label."""
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
    whole: LabelledImages, class_names: tuple[str, ...], key: str, fraction: float, seed: int, keep: int
) -> tuple[LabelledImages, LabelledImages]:
    """Splits off a stratified `fraction`: at least one image of each class, leaving at least `keep` of each."""
    from sklearn.model_selection import train_test_split  # imported here because it takes a second

    labels, total, num_classes = whole.labels, len(whole.labels), len(class_names)
    for class_name, count in zip(class_names, np.bincount(labels, minlength=num_classes), strict=True):
        if count <= keep:
            raise ExperimentError(
                f"{key}={fraction}: the class {class_name!r} has {count} images; at least {keep + 1} are needed.",
                advice="Add images to this class or leave it out: every set needs at least one.",
            )
    size = int(np.clip(round(fraction * total), num_classes, total - keep * num_classes))
    kept, held_out = train_test_split(np.arange(total), test_size=size, stratify=labels, random_state=seed)
    # scikit-learn may round a rare class to 0 images: swap in the missing ones for images of the most frequent class.
    for part, other, least in ((kept, held_out, keep), (held_out, kept, 1)):
        for label in range(num_classes):
            while np.count_nonzero(labels[part] == label) < least:
                commonest = np.bincount(labels[part]).argmax()
                mine, theirs = np.argmax(labels[part] == commonest), np.argmax(labels[other] == label)
                part[mine], other[theirs] = other[theirs], part[mine]
    return whole.at(kept), whole.at(held_out)


def _limited(labels: np.ndarray, limit: int | None) -> np.ndarray:
    """Positions of at most `limit` images, stratified; a higher limit selects the same ones and more."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.random.RandomState(_TEST_SEED).permutation(np.flatnonzero(labels == label))
        place[members] = np.arange(len(members)) / len(members)
    return np.sort(np.argsort(place, kind="stable")[:limit])


def arrays_sha256(*arrays: np.ndarray) -> str:
    """SHA-256 of the types, shapes and bytes of arrays, the same on every platform."""
    digest = hashlib.sha256()
    for array in arrays:
        little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(little_endian.tobytes())
    return digest.hexdigest()


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether the rows of a model's outputs are not negative and sum to 1, within half precision."""
    return bool((outputs >= 0).all() and (abs(outputs.sum(axis=-1) - 1) <= 0.01).all())  # false for NaN
