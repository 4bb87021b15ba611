"""Splits images into sets, stratified by class; every function returns positions."""

from collections.abc import Sequence

import numpy as np

from experiments.errors import ExperimentError

_ORDER_SEED = 0  # of `limited`; fixed, so that a higher limit adds images and exchanges none


def hold_out(
    labels: np.ndarray, class_names: Sequence[str], key: str, fraction: float, seed: int, keep: int
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a stratified fraction: at least one image of each class, leaving at least `keep` of each.

    Args:
        labels: of all images, int64 of shape (n,).
        class_names: in the order of the labels.
        key: of the fraction, for messages.
        fraction: of the images.
        seed: selects the images.
        keep: smallest number of images of a class that are left.

    Returns:
        The positions of the images that are kept, and of those that are held out.

    Raises:
        ExperimentError: a class has too few images.
    """
    from sklearn.model_selection import train_test_split  # imported here because it takes a second

    total, num_classes = len(labels), len(class_names)
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
    return kept, held_out


def fold_of(
    labels: np.ndarray, class_names: Sequence[str], folds: int, fold: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divides images into stratified folds for cross-validation; each image is in one of them.

    Args:
        labels: of all images, int64 of shape (n,).
        class_names: in the order of the labels.
        folds: how many there are.
        fold: number of the one to validate on, from 0.
        seed: shuffles the images before they are divided.

    Returns:
        The positions of the images of all other folds, and of those of this fold.

    Raises:
        ExperimentError: there is no such fold, or a class has fewer images than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold  # imported here because it takes a second

    if fold >= folds:
        raise ExperimentError(f"data.fold={fold}: with data.folds={folds} the folds are 0 to {folds - 1}.")
    counts = np.bincount(labels, minlength=len(class_names))
    smallest = int(counts.argmin())
    if folds > counts[smallest]:
        raise ExperimentError(
            f"data.folds={folds}: the class {class_names[smallest]!r} has {counts[smallest]} images that are not for "
            "testing, fewer than there are folds.",
            advice=f"Use at most {counts[smallest]} folds.",
        )
    divided = StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels)
    return list(divided)[fold]


def limited(labels: np.ndarray, limit: int | None) -> np.ndarray:
    """Positions of at most `limit` images, stratified; a higher limit selects the same ones and more."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.random.RandomState(_ORDER_SEED).permutation(np.flatnonzero(labels == label))
        place[members] = np.arange(len(members)) / len(members)
    return np.sort(np.argsort(place, kind="stable")[:limit])
