"""Equal images in a data set, found by their pixels: in several of its sets, in several classes, or just twice."""

from collections.abc import Sequence

import numpy as np

from experiments.stored_images import Images, pieces

_MOST_NAMED = 3


def image_numbers(parts: Sequence[Images]) -> list[np.ndarray]:
    """Numbers images so that equal ones have the same number.

    Args:
        parts: images of shape (images, height, width, channels).

    Returns:
        For each part an int64 array of shape (images,): the position, among all, of the first image that is equal.
    """
    hashes = np.array([hash(image.tobytes()) for part in parts for piece in pieces(part) for image in piece])
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    return np.split(first[group], np.cumsum([len(part) for part in parts])[:-1])


def without_duplicates(numbers: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Keeps one of each image, and none that is in several classes.

    Args:
        numbers: of the images of each part, from `image_numbers`; the training images are the first part.
        labels: their classes.

    Returns:
        The positions to keep in each part; of a training image that is also in another part, only the other is kept.
    """
    contradictory = _in_several_classes(np.concatenate(numbers), np.concatenate(labels))
    kept: list[np.ndarray] = [np.empty(0, np.int64)] * len(numbers)
    gone = contradictory
    for part in [*range(1, len(numbers)), 0]:
        first = np.sort(np.unique(numbers[part], return_index=True)[1])
        kept[part] = first[~np.isin(numbers[part][first], gone)]
        gone = np.concatenate([gone, numbers[part]])
    return kept


def describe_duplicates(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    *,
    numbers: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
) -> str:
    """Says which images of the three sets are equal, and how many; an empty text if none are.

    Args:
        train: positions of the training images among all images.
        validation: likewise.
        test: likewise.
        numbers: of all images, from `image_numbers`.
        labels: of all images.
        names: of all images.
    """
    problems = []
    learnt = np.concatenate([train, validation])
    for what, part, others, where in (
        ("test", test, learnt, "the training or validation images"),
        ("validation", validation, train, "the training images"),
    ):
        leaked = part[np.isin(numbers[part], numbers[others])]
        if len(leaked):
            equal = {numbers[position]: position for position in others}
            pairs = [f"{names[position]} = {names[equal[numbers[position]]]}" for position in leaked]
            problems.append(f"{len(leaked)} of {len(part)} {what} images are also among {where} ({_some(pairs)})")
    used = np.concatenate([learnt, test])
    contradictory = _in_several_classes(numbers[used], labels[used])
    if len(contradictory):
        positions = used[np.isin(numbers[used], contradictory)]
        positions = positions[np.argsort(numbers[positions], kind="stable")]
        listed = _some([names[position] for position in positions])
        problems.append(f"{len(contradictory)} images are in several classes ({listed})")
    if again := len(train) - len(np.unique(numbers[train])):
        problems.append(f"{again} training images are copies of others")
    return "; ".join(problems)


def _in_several_classes(numbers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The numbers of images that have more than one label."""
    distinct = np.unique(np.stack([numbers, labels]), axis=1)[0]
    found, counts = np.unique(distinct, return_counts=True)
    return found[counts > 1]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")
