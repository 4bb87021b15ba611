"""Trained models for other runtimes: Keras writes them, and they are believed only when their own runtime agrees."""

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np

from experiments import quiet_import
from experiments.config.compose import compose
from experiments.config.configuration import Configuration
from experiments.config.targets import instantiate
from experiments.errors import ExperimentError
from experiments.serving.classifier import Classifier

_FILES = {"keras": "model.keras", "saved_model": "saved_model", "onnx": "model.onnx", "litert": "model.tflite"}
FORMATS = tuple(_FILES)
_QUANTIZED_FILE = "model_int8.tflite"
_PACKAGES = {"onnx": ("tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}
_REPORT = "export.json"
_IMAGES, _CALIBRATION_IMAGES = 1000, 200

_Predict = Callable[[np.ndarray], np.ndarray]  # float32 images -> probabilities


@dataclass(frozen=True)
class Limits:
    """How far an exported model may be from the one that it was made from."""

    difference: float  # of a probability
    other_labels: float  # share of the images


EXACT, FROM_MIXED_PRECISION, QUANTIZED = Limits(1e-4, 0.0), Limits(1e-2, 0.001), Limits(1.0, 0.01)


@dataclass(frozen=True)
class Images:
    """What an exported model is checked on."""

    source: str  # in words
    images: np.ndarray  # float32 (images, height, width, channels), raw pixels
    labels: np.ndarray | None  # int64 (images,); None where nobody knows them
    calibration: np.ndarray  # float32, others, from which ranges of values are taken


@dataclass(frozen=True)
class Checked:
    """An exported model beside the one it was made from, on the same images."""

    file: str
    bytes: int
    images: str  # which ones
    number: int  # of images
    largest_difference: float  # of a probability
    equal_labels: int
    accuracy: float | None  # of the exported model; None where the labels are not known
    accuracy_before: float | None

    def exceeds(self, limits: Limits) -> bool:
        """Whether it is too far off; NaN always is."""
        other = self.number - self.equal_labels
        return not (self.largest_difference <= limits.difference and other <= limits.other_labels * self.number)


class NotEqualError(Exception):
    """An exported model that says something else; its file is removed."""


def images_of(classifier: Classifier, of_run: Configuration | None, data: Sequence[str]) -> Images:
    """Up to 1,000 test images, filled up with validation images; random ones where there is no data.

    Args:
        classifier: that is exported.
        of_run: the configuration of the run that has trained it, as far as it is known.
        data: a choice of data and its overrides, which comes first; may be empty.

    Raises:
        ExperimentError: the chosen data are not there, or do not fit the model.
    """
    shape, rng = classifier.image_shape, np.random.default_rng(0)
    configuration = compose([f"data={data[0]}", *data[1:]]) if data else of_run
    try:
        found = instantiate(configuration.cfg, "data") if configuration else None
    except ExperimentError:
        if data:
            raise
        found = None  # the run was trained elsewhere
    if found is None:
        random = rng.integers(0, 256, (_IMAGES + _CALIBRATION_IMAGES, *shape)).astype(np.float32)
        return Images("random images", random[:_IMAGES], None, random[_IMAGES:])
    if found.image_shape != shape or found.num_classes != len(classifier.class_names):
        problem = f"{found.name} has images of shape {found.image_shape} in {found.num_classes} classes"
        raise ExperimentError(f"{problem}, and {classifier.name} takes {shape} to {len(classifier.class_names)}.")
    images = np.concatenate([found.test_images, found.validation_images])[:_IMAGES].astype(np.float32)
    labels = np.concatenate([found.test_labels, found.validation_labels])[:_IMAGES]
    tests = min(len(found.test_images), len(images))
    source = f"{tests:,} test images of {found.name}"
    source += f", {len(images) - tests:,} validation images" if tests < len(images) else ""
    return Images(source, images, labels, found.train_images[:_CALIBRATION_IMAGES].astype(np.float32))


def export(
    classifier: Classifier, form: str, folder: Path, images: Images, *, quantize: bool, overwrite: bool
) -> Checked:
    """Writes a model in another format, has its own runtime read it, and compares the two.

    Args:
        classifier: to be exported.
        form: one of `FORMATS`.
        folder: where the file goes, with `export.json`, which says of every file there how it was checked.
        images: to compare on.
        quantize: to 8-bit integers inside; LiteRT only.
        overwrite: a file that is there.

    Raises:
        ExperimentError: the file exists, the folder cannot be made, or a package is missing.
        NotEqualError: it cannot be written, read, or says something else; nothing is left of it.
    """
    target = folder / (_QUANTIZED_FILE if quantize else _FILES[form])
    _check(form, target, quantize=quantize, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"{folder} cannot be made: {error.strerror}.") from error
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as part:
        file = Path(part) / target.name
        try:
            with warnings.catch_warnings(), quiet_import():
                warnings.simplefilter("ignore")  # of Keras's exporters and what they call
                model = _in_float32(classifier.model)
                model.predict(images.images[:1], verbose=0)  # the exporters refuse a model that was never called
                _write(model, form, file, images.calibration if quantize else None)
                said = _reader(form, file)(images.images)
        except Exception as error:  # an exporter or a runtime that cannot do this net raises almost anything
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise NotEqualError(f"{form} cannot have this net: {reason.strip()}") from error
        limits = QUANTIZED if quantize else EXACT if model is classifier.model else FROM_MIXED_PRECISION
        checked = _compared(classifier, images, said, file)
        if checked.exceeds(limits):
            raise NotEqualError(
                f"{form} says something else than Keras: {checked.equal_labels:,} of {checked.number:,} labels are "
                f"equal, and probabilities differ by up to {checked.largest_difference:.2g} (allowed: "
                f"{limits.difference:g}). The file was removed."
            )
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)
    _report(folder, checked)
    return checked


def _check(form: str, target: Path, *, quantize: bool, overwrite: bool) -> None:
    if quantize and form != "litert":
        raise ExperimentError(f"--quantize int8 is for --format litert, and not for {form}.")
    if target.exists() and not overwrite:
        raise ExperimentError(f"{target} exists.", advice="Replace it with --overwrite.")
    missing = [package for package in _PACKAGES.get(form, ()) if find_spec(package) is None]
    if missing:
        problem = f"--format {form} needs {' and '.join(missing)}."
        raise ExperimentError(problem, advice="Install it with: pip install -e '.[export]'")


def _in_float32(model: keras.Model) -> keras.Model:
    """The same net and weights without mixed precision, which the other formats do not have or have wrongly.

    A net that is in float32 already is returned itself.
    """

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
                return value if value["config"]["name"] == "float32" else "float32"
            return {key: changed(inner) for key, inner in value.items()}
        return type(value)(changed(inner) for inner in value) if isinstance(value, list | tuple) else value

    config = model.get_config()
    if changed(config) == config:
        return model
    plain = type(model).from_config(changed(copy.deepcopy(config)))
    plain.set_weights(model.get_weights())
    return plain


def _write(model: keras.Model, form: str, file: Path, calibration: np.ndarray | None) -> None:
    if form == "keras":
        model.save(file)
        return
    options: dict[str, Any] = {}
    if calibration is not None:
        import tensorflow as tf

        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
        options["representative_dataset"] = lambda: ([image[None]] for image in calibration)
    model.export(str(file), format={"saved_model": "tf_saved_model"}.get(form, form), verbose=False, **options)


def _reader(form: str, file: Path) -> _Predict:
    """The exported model as its own runtime has it."""
    return {"keras": _keras, "saved_model": _saved_model, "onnx": _onnx, "litert": _litert}[form](str(file))


def _keras(file: str) -> _Predict:
    model = keras.saving.load_model(file, safe_mode=True)
    return lambda images: model.predict(images, verbose=0)


def _saved_model(file: str) -> _Predict:
    import tensorflow as tf

    loaded = tf.saved_model.load(file)
    return lambda images: loaded.serve(images).numpy()


def _onnx(file: str) -> _Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _litert(file: str) -> _Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file)
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def predict(images: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(given["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return predict


def _compared(classifier: Classifier, images: Images, said: np.ndarray, file: Path) -> Checked:
    before = classifier.predict(images.images)
    labels = images.labels
    return Checked(
        file=file.name,
        bytes=sum(part.stat().st_size for part in ([file] if file.is_file() else file.rglob("*")) if part.is_file()),
        images=images.source,
        number=len(said),
        largest_difference=float(np.abs(said - before).max()),
        equal_labels=int((said.argmax(axis=1) == before.argmax(axis=1)).sum()),
        accuracy=None if labels is None else float((said.argmax(axis=1) == labels).mean()),
        accuracy_before=None if labels is None else float((before.argmax(axis=1) == labels).mean()),
    )


def _report(folder: Path, checked: Checked) -> None:
    """Adds a file to `export.json`."""
    file = folder / _REPORT
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**known, checked.file: asdict(checked)}, indent=1) + "\n", encoding="utf-8")
