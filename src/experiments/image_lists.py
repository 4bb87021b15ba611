"""Lists image files with their classes and sets: from class folders, or from a CSV file."""

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import images
from experiments.errors import ExperimentError
from experiments.npz_files import MEANING

_NEEDED = ("path", "label")
_OPTIONAL = ("split", "weight")
_SETS = ("train", "validation", "test")
_MOST_NAMED = 3  # files in a message


class ImageFile(NamedTuple):
    """An image file, the name of its class, the set that it is in, and how much it counts in the loss."""

    file: Path
    label: str
    part: str  # `train`, `validation` or `test`; `train` for all images without sets of their own
    weight: float = 1.0


def in_folders(root: Path, test_root: Path | None) -> list[ImageFile]:
    """Lists the images in class folders, or in those of train, validation and test folders.

    Args:
        root: holds the class folders, or folders that hold them.
        test_root: holds the class folders of the test images; None if they are in `root` or are yet to be split off.

    Raises:
        ExperimentError: a folder is missing or empty, or the sets have different classes.
    """
    folders = _split_folders(root)
    if test_root is not None:
        if "test" in folders:
            raise ExperimentError(
                f"data.path={root} has the folder {folders['test'].name}, and data.test_path={test_root} is given too.",
                advice="Leave data.test_path out, or give the training folder as data.path.",
            )
        folders["test"] = _folder("data.test_path", test_root)
    class_names = {key: _class_folders(folder) for key, folder in folders.items()}
    for key, names in class_names.items():
        if names != class_names["train"]:
            raise ExperimentError(
                f"{folders[key]} has the classes {', '.join(names)}, "
                f"but {folders['train']} has {', '.join(class_names['train'])}.",
                advice="Give both the same sub-folders.",
            )
    return [
        ImageFile(file, name, part)
        for part, folder in folders.items()
        for name in class_names["train"]
        for file in _images_of_class(folder / name)
    ]


def _folder(key: str, root: Path) -> Path:
    if not root.is_dir():
        raise ExperimentError(
            f"{key}: there is no folder {root}.", advice="Give a folder with one sub-folder per class."
        )
    return root


def _split_folders(path: Path) -> dict[str, Path]:
    """The folder of the training images and, if it is divided like that, those of the validation and test images."""
    root = _folder("data.path", path)
    inside = [entry for entry in images.visible(root) if entry.is_dir()]
    splits = {MEANING.get(entry.name.lower(), ""): entry for entry in inside}
    if "train" in splits and splits.keys() <= {"train", "validation", "test"} and len(splits) == len(inside):
        return {key: splits[key] for key in ("train", "test", "validation") if key in splits}
    return {"train": root}


def _class_folders(root: Path) -> list[str]:
    """The names of the class folders, sorted."""
    found = images.visible(root)
    names = [entry.name for entry in found if entry.is_dir()]
    if not names and any(entry.suffix.lower() in images.SUFFIXES for entry in found):
        raise ExperimentError(
            f"{root} has images but no sub-folders, so their classes are not known.",
            advice="Create one sub-folder per class, named after it, or classify the images with: experiments predict",
        )
    if not names:
        raise ExperimentError(f"{root} has no sub-folders.", advice="Create one sub-folder per class, named after it.")
    return names


def _images_of_class(class_folder: Path) -> list[Path]:
    files = list(images.files_below(class_folder))
    if not files:
        raise ExperimentError(
            f"The class folder {class_folder} has no images.", advice="Add images to it or delete it."
        )
    return files


def in_table(file: Path) -> list[ImageFile]:
    """Lists the images of a CSV file, which has the columns `path`, `label` and possibly `split` and `weight`.

    Args:
        file: comma-separated, in UTF-8, with the names of the columns in its first line; the paths in it are relative
            to its folder.

    Raises:
        ExperimentError: there is no such file, it is no such table, an image file is missing or lies outside the folder
            of the table, or a class or the whole table has no training images.
    """
    folder = file.parent.resolve()
    found, outside, missing = [], [], []
    for where, values in _lines(file):
        path = folder / values["path"]
        if not os.path.isfile(path):  # unlike Path.is_file, also false for a text that no file could be named
            missing.append(f"{values['path']} ({where})")
        elif not path.resolve().is_relative_to(folder):
            outside.append(f"{values['path']} ({where})")
        found.append(ImageFile(path, values["label"], _part(file, where, values), _weight(file, where, values)))
    if outside:
        raise ExperimentError(
            f"data.path: {file} names {_named(outside)} outside its folder, {folder}.",
            advice="Move the images into that folder, or the CSV file into a folder that holds them all.",
        )
    if missing:
        raise ExperimentError(
            f"data.path: {file} names {_named(missing)} that cannot be found.",
            advice=f"Paths are relative to the folder of the CSV file, {folder}.",
        )
    trained = {each.label for each in found if each.part == "train"}
    lacking = sorted({each.label for each in found} - trained)
    if lacking or not trained:
        what = f"no training images of the class {lacking[0]!r}" if trained else "no training images"
        raise ExperimentError(
            f"data.path: {file} has {what}.", advice="Write train into the column split for images to train on."
        )
    return found


def _lines(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The number of each line as text, and its values by column."""
    if not file.is_file():
        raise ExperimentError(
            f"data.path: there is no file {images.shown(file)}.",
            advice=f"Give a CSV file with the columns {' and '.join(_NEEDED)}.",
        )
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:  # Excel begins a file with a byte order mark
            lines = csv.reader(stream, skipinitialspace=True, strict=True)
            columns = [name.strip() for name in next(lines, [])]
            _check_columns(file, columns)
            for line in lines:
                where = f"line {lines.line_num}"
                if line:
                    yield where, _values(file, where, columns, line)
    except UnicodeDecodeError as error:
        raise ExperimentError(
            f"data.path: {images.shown(file)} is not encoded in UTF-8 ({error.reason}).",
            advice="Save it again as CSV UTF-8.",
        ) from error
    except csv.Error as error:
        raise ExperimentError(f"data.path: {file} is no CSV file: {error} in line {lines.line_num}.") from error


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    known = (*_NEEDED, *_OPTIONAL)
    if lacking := [name for name in known if columns.count(name) != 1 and name in (*_NEEDED, *columns)]:
        raise ExperimentError(
            f"data.path: {file} needs one column {' and one column '.join(lacking)}; "
            f"its first line holds {', '.join(columns) or 'nothing'}.",
            advice="Separate the columns by commas and name them path, label and, for sets of your own, split.",
        )


def _values(file: Path, where: str, columns: Sequence[str], line: Sequence[str]) -> dict[str, str]:
    if len(line) != len(columns):
        raise ExperimentError(
            f"data.path: {file}, {where}, has {len(line)} values for {len(columns)} columns.",
            advice="Put a value that holds a comma into double quotes.",
        )
    values = {name: value.strip() for name, value in zip(columns, line, strict=True)}
    if empty := [name for name in (*_NEEDED, *_OPTIONAL) if values.get(name) == ""]:
        raise ExperimentError(f"data.path: {file}, {where}, has no {empty[0]}.")
    return values


def _part(file: Path, where: str, values: Mapping[str, str]) -> str:
    part = MEANING.get(values.get("split", "train").lower(), "")
    if part not in _SETS:
        raise ExperimentError(
            f"data.path: {file}, {where}: split={values['split']} is no set.", given=values["split"], allowed=_SETS
        )
    return part


def _weight(file: Path, where: str, values: Mapping[str, str]) -> float:
    text = values.get("weight", "1")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ExperimentError(f"data.path: {file}, {where}: weight={text} is not a number of at least 0.")
    return weight


def _named(files: Sequence[str]) -> str:
    first, more = ", ".join(files[:_MOST_NAMED]), len(files) - _MOST_NAMED
    return f"{len(files)} file{'s' * (len(files) > 1)} ({first}{f' and {more} more' if more > 0 else ''})"
