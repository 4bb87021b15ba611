"""`Dataset`: training, validation and test images with their labels and hashes."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from experiments.duplicates import describe_duplicates, image_numbers, without_duplicates
from experiments.errors import ExperimentError
from experiments.splits import fold_of, hold_out, limited
from experiments.stored_images import Images, StoredImages, pieces, select

#: What to do with images that occur more than once: say so, keep one of each, or refuse the data set.
Duplicates = Literal["warn", "drop", "refuse"]
_log = logging.getLogger("experiments")

#: `Dataset.test_sha256` of the 10,000 test images of MNIST in the published order.
MNIST_TEST_SHA256 = "65f8dd92a0a1565c0ca8892c2dc6afc40577b69a8ce2d15d10ac7efb414281af"
#: Positions of those whose label most raters reject (Northcutt et al. 2021, https://arxiv.org/abs/2103.14749).
MNIST_REJECTED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
_CHANNELS = (1, 3, 4)  # gray, color, color with opacity
_TEST_SEED = 0  # fixed: if it followed split_seed, test images of one run would be training images of another


@dataclass(frozen=True, eq=False)  # comparing arrays gives no single truth value; compare the hashes
class Dataset:
    """The images and labels of one run, and the hashes that identify them.

    Images are uint8 of shape (n, height, width, channels), in memory or in a file; labels are int64 of shape (n,), from
    0 to classes - 1.
    """

    name: str  # of the option, or of the user's file or folder
    class_names: tuple[str, ...]
    train_images: Images
    train_labels: np.ndarray
    validation_images: Images
    validation_labels: np.ndarray
    test_images: Images
    test_labels: np.ndarray
    test_index: np.ndarray  # int64 (n,), position of each test image in the whole test set, before `limit`
    sha256: str  # of all arrays as loaded, before splits and limit
    validation_sha256: str  # of the validation images and labels used
    test_sha256: str  # of the test images and labels used
    num_images: int  # as loaded, before splits and limit
    train_weights: np.ndarray | None = None  # float32 (n,), what each training image counts in the loss; None: the same

    @classmethod
    def from_arrays(
        cls,
        train_images: Images,
        train_labels: np.ndarray,
        test_images: Images | None = None,
        test_labels: np.ndarray | None = None,
        *,
        validation_images: Images | None = None,
        validation_labels: np.ndarray | None = None,
        train_weights: np.ndarray | None = None,
        name: str,
        class_names: Sequence[str] | None = None,
        image_names: Sequence[str] | None = None,
        test_fraction: float = 0.2,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int | None = None,
        limit: int | None = None,
        duplicates: Duplicates = "warn",
    ) -> "Dataset":
        """Builds a data set from arrays: checks them, splits off the validation images and computes the hashes.

        A function of yours that returns its result can be an option of `data`.

        Args:
            train_images: pixels from 0 to 255, or floats from 0 to 1, of shape (n, height, width) or
                (n, height, width, channels), or channels first; 1 or 3 channels, or 4 if they are opaque.
            train_labels: integers from 0 to classes - 1, or from 1 to classes, of shape (n,) or (n, 1); or one-hot,
                of shape (n, classes).
            test_images: test images of the same height, width and channels; None splits off `test_fraction`.
            test_labels: their labels; None if `test_images` is None.
            validation_images: validation images; None splits off `validation_fraction`.
            validation_labels: their labels; None if `validation_images` is None.
            train_weights: how much each training image counts in the loss, of shape (n,); None means all the same.
            name: shown in the record of the run.
            class_names: names of the classes in the order of the labels; None means the numbers of the labels.
            image_names: of all training, test and validation images, in this order, for messages; None numbers them.
            test_fraction: fraction of the images used for testing without `test_images`; always the same images.
            validation_fraction: fraction of the remaining images used for validation.
            split_seed: seed that selects the validation images.
            folds: number of folds of a cross-validation, in place of `validation_fraction`; stratified.
            fold: number of the fold to validate on, from 0; the others are trained on.
            limit: at most this many images in each of the three sets, stratified; None means all.
            duplicates: what to do with equal images: `warn`; `drop` all but one, the one in a given test set first, and
                all that are in several classes; or `refuse` them.

        Raises:
            ExperimentError: an array has a wrong shape, type or range, or a class has too few images to split.

        Example:
            >>> Dataset.from_arrays(images, labels, name="flowers", class_names=["daisy", "rose"])
        """
        given = {
            "train": (train_images, train_labels),
            "test": (test_images, test_labels),
            "validation": (validation_images, validation_labels),
        }
        loaded = _loaded(given)
        if class_names is None:
            loaded, class_names = _numbered(loaded)
        names = _class_names(class_names, loaded)
        if len(names) < 2:
            raise ExperimentError(f"The data set {name} has only the class {names[0]}; at least 2 are needed.")
        if limit is not None and limit < len(names):
            raise ExperimentError(
                f"data.limit={limit} is fewer than the {len(names)} classes.",
                advice=f"Give data.limit={len(names)} or more, or null for all images.",
            )
        parts = list(loaded.values())
        numbers, labels = image_numbers([part.images for part in parts]), [part.labels for part in parts]
        kept = (
            without_duplicates(numbers, labels) if duplicates == "drop" else [np.arange(len(part)) for part in labels]
        )
        starts = np.cumsum([0, *map(len, labels)])
        sets = {
            key: _Selection(part, start, positions)
            for (key, part), start, positions in zip(loaded.items(), starts, kept, strict=False)
        }
        for key, selection in sets.items():
            if not len(selection.positions):
                raise ExperimentError(f"The data set {name}: every {key} image is a duplicate.")
        if "test" not in sets:
            sets["train"], sets["test"] = sets["train"].split(
                hold_out(sets["train"].labels, names, "data.test_fraction", test_fraction, _TEST_SEED, keep=2)
            )
        if folds is not None or fold is not None:
            sets["train"], sets["validation"] = sets["train"].split(_fold(sets, names, folds, fold, split_seed))
        elif "validation" not in sets:
            sets["train"], sets["validation"] = sets["train"].split(
                hold_out(sets["train"].labels, names, "data.validation_fraction", validation_fraction, split_seed, 1)
            )
        train, validation, test = (sets[key] for key in ("train", "validation", "test"))
        if duplicates == "drop":
            _log.info("The data set %s: %d duplicates dropped.", name, starts[-1] - sum(map(len, kept)))
        # The first condition spares a data set without duplicates the names of all its images.
        elif len(np.unique(np.concatenate(numbers))) < starts[-1] and (
            problem := describe_duplicates(
                *(selection.among_all for selection in (train, validation, test)),
                numbers=np.concatenate(numbers),
                labels=np.concatenate(labels),
                names=image_names
                or [f"{key} image {n}" for key, part in loaded.items() for n in range(len(part.labels))],
            )
        ):
            advice = "data.duplicates=drop leaves them out."
            if duplicates == "refuse":
                raise ExperimentError(f"The data set {name}: {problem}.", advice=advice)
            _log.warning("The data set %s: %s. %s", name, problem, advice)
        train, validation = (selection.at(limited(selection.labels, limit)) for selection in (train, validation))
        test_index = limited(test.labels, limit)
        test = test.at(test_index)
        test_images, validation_images = test.images, validation.images
        weights = None if train_weights is None else _weights(train_weights, parts[0])
        return cls(
            name=name,
            class_names=names,
            train_images=train.images,
            train_labels=train.labels,
            validation_images=validation_images,
            validation_labels=validation.labels,
            test_images=test_images,
            test_labels=test.labels,
            test_index=test_index,
            sha256=arrays_sha256(*(array for part in parts for array in part), *([] if weights is None else [weights])),
            validation_sha256=arrays_sha256(validation_images, validation.labels),
            test_sha256=arrays_sha256(test_images, test.labels),
            num_images=int(starts[-1]),
            train_weights=None if weights is None else weights[train.positions],
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

    images: Images
    labels: np.ndarray


@dataclass(frozen=True)
class _Selection:
    """Some of the loaded images of a part."""

    part: LabelledImages
    start: int  # position of the first image of the part among all loaded images
    positions: np.ndarray  # in the part

    @property
    def images(self) -> Images:
        # All of them need no copy.
        return self.part.images if self.is_whole else select(self.part.images, self.positions)

    @property
    def is_whole(self) -> bool:
        """Whether these are all images of the part, in their order."""
        return np.array_equal(self.positions, np.arange(len(self.part.images)))

    @property
    def labels(self) -> np.ndarray:
        return self.part.labels[self.positions]

    @property
    def among_all(self) -> np.ndarray:
        return self.start + self.positions

    def at(self, positions: np.ndarray) -> "_Selection":
        return replace(self, positions=self.positions[positions])

    def split(self, positions: tuple[np.ndarray, np.ndarray]) -> tuple["_Selection", "_Selection"]:
        return self.at(positions[0]), self.at(positions[1])


def _fold(
    sets: Mapping[str, _Selection], names: Sequence[str], folds: int | None, fold: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the images to train on and of those of a fold."""
    if folds is None:
        raise ExperimentError(
            f"data.fold={fold} is given without data.folds.",
            advice="Give the number of folds, as in data.folds=5, or leave data.fold out.",
        )
    if fold is None:
        raise ExperimentError(
            f"data.folds={folds} needs data.fold, the fold to validate on, from 0 to {folds - 1}.",
            advice=f"Train on all of them in turn with: -m data.folds={folds} 'data.fold=range({folds})'",
        )
    if "validation" in sets:
        raise ExperimentError(
            f"data.folds={folds}: the data set has validation images of its own.",
            advice="Leave data.folds and data.fold out, or put those images among the training images.",
        )
    return fold_of(sets["train"].labels, names, folds, fold, seed)


def _loaded(given: Mapping[str, tuple[Images | None, np.ndarray | None]]) -> dict[str, LabelledImages]:
    """The parts that are given, checked and in one form."""
    loaded: dict[str, LabelledImages] = {}
    for key, (images, labels) in given.items():
        if (images is None) != (labels is None):
            raise ExperimentError(f"{key}_images and {key}_labels belong together.", advice="Give both or none.")
        if images is not None and labels is not None:
            loaded[key] = check_arrays(images, labels, f"{key}_images", f"{key}_labels")
            shapes = [part.images.shape[1:] for part in loaded.values()]
            if shapes[-1] != shapes[0]:
                raise ExperimentError(
                    f"The training images have the shape {shapes[0]}, the {key} images {shapes[-1]}; "
                    "they must be equal."
                )
    return loaded


def check_arrays(images: Images, labels: np.ndarray, images_name: str, labels_name: str) -> LabelledImages:
    """Checks arrays and converts them to `LabelledImages`; the names are used in error messages.

    Raises:
        ExperimentError: the shape, type or range of an array is wrong.
    """
    pixels = images if isinstance(images, StoredImages) else _pixels(np.asarray(images), images_name)
    return LabelledImages(pixels, _classes(np.asarray(labels), labels_name, len(pixels)))


def _pixels(images: np.ndarray, name: str) -> np.ndarray:
    """Images as uint8 of shape (n, height, width, channels)."""
    shape = images.shape
    if images.ndim == 3:
        images = images[..., np.newaxis]
    elif images.ndim == 4 and shape[-1] not in _CHANNELS and shape[1] in (1, 3):
        images = np.moveaxis(images, 1, -1)
    if images.size == 0 or images.ndim != 4 or images.shape[-1] not in _CHANNELS:
        raise ExperimentError(
            f"{name} has the shape {shape}.",
            advice="Use (n, height, width) or (n, height, width, 1) for grayscale, (n, height, width, 3) for color; "
            "channels may come first.",
        )
    kind, lowest, highest = images.dtype.kind, images.min(), images.max()
    if kind == "f" and lowest >= 0 and highest <= 1:
        images = np.rint(images * 255)
    elif kind not in "iuf" or not (lowest >= 0 and highest <= 255) or (kind == "f" and (images % 1).any()):
        raise ExperimentError(
            f"{name} holds {_values(images)}; pixels must be integers from 0 to 255, or floats from 0 to 1.",
            advice="Save the unscaled images as uint8: the model itself scales them.",
        )
    images = images.astype(np.uint8, copy=False)
    if images.shape[-1] == _CHANNELS[-1]:
        if images[..., -1].min() < 255:
            raise ExperimentError(
                f"{name} has transparent pixels.", advice="Composite the images onto a color, and save 3 channels."
            )
        images = images[..., :-1]
    return np.ascontiguousarray(images)


def _classes(labels: np.ndarray, name: str, num_images: int) -> np.ndarray:
    """Labels as int64 of shape (n,)."""
    one_hot = labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb"
    if one_hot and not ((labels == 1).sum(axis=1) + (labels == 0).sum(axis=1) == labels.shape[1]).all():
        one_hot = False
    if labels.shape not in ((num_images,), (num_images, 1)) and not (one_hot and len(labels) == num_images):
        raise ExperimentError(
            f"{name} has the shape {labels.shape}, but there are {num_images} images.",
            advice="Give one integer per image, or one-hot rows.",
        )
    if one_hot:
        if (labels.sum(axis=1) != 1).any():
            raise ExperimentError(f"{name} has rows with no or several classes; an image must have exactly one.")
        return labels.argmax(axis=1)
    is_whole = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and not (labels % 1).any())
    if not is_whole or labels.min() < 0:
        raise ExperimentError(
            f"{name} holds {_values(labels)}; labels must be integers from 0 on.",
            advice="Number the classes 0, 1, 2, ... without gaps.",
        )
    return labels.reshape(-1).astype(np.int64)


def _weights(weights: np.ndarray, train: LabelledImages) -> np.ndarray:
    """Weights of the training images as float32 of shape (n,)."""
    weights = np.asarray(weights, np.float32)
    if weights.shape != train.labels.shape or not (np.isfinite(weights).all() and weights.min() >= 0 < weights.max()):
        raise ExperimentError(
            f"train_weights has the shape {weights.shape} and holds {_values(weights)}; it must hold one number of at "
            f"least 0 for each of the {len(train.labels)} training images, and not only 0."
        )
    return weights


def _numbered(loaded: Mapping[str, LabelledImages]) -> tuple[dict[str, LabelledImages], list[str]]:
    """Parts whose labels begin with 0, and the names of the classes: the numbers that the labels had."""
    lowest = min(int(part.labels.min()) for part in loaded.values())
    highest = max(int(part.labels.max()) for part in loaded.values())
    first = 1 if lowest == 1 else 0  # as in EMNIST's letters
    total = len(loaded["train"].labels)
    if highest - first >= total:
        raise ExperimentError(
            f"The label {highest} makes {highest + 1 - first} classes, but there are {total} training images.",
            advice="Number the classes 0, 1, 2, ... without gaps.",
        )
    shifted = {key: LabelledImages(part.images, part.labels - first) for key, part in loaded.items()}
    return shifted, [str(label) for label in range(first, highest + 1)]


def _values(array: np.ndarray) -> str:
    return f"{array.dtype} from {array.min()} to {array.max()}" if array.dtype.kind in "iuf" else str(array.dtype)


def _class_names(class_names: Sequence[str], loaded: Mapping[str, LabelledImages]) -> tuple[str, ...]:
    """The given names; checks that there is one for the highest label."""
    names = tuple(map(str, class_names))
    highest = max(int(part.labels.max()) for part in loaded.values())
    if highest >= len(names):
        raise ExperimentError(
            f"The label {highest} has no name: class_names has {len(names)} entries.",
            advice=f"Give {highest + 1} names, in the order of the labels.",
        )
    return names


def arrays_sha256(*arrays: Images) -> str:
    """SHA-256 of the types, shapes and bytes of arrays, the same on every platform."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        for piece in pieces(array):
            digest.update(np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether the rows of a model's outputs are not negative and sum to 1, within half precision."""
    return bool((outputs >= 0).all() and (abs(outputs.sum(axis=-1) - 1) <= 0.01).all())  # false for NaN
