"""Exports trained models with Keras, and checks each of them in the runtime it was made for."""

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
    """How much an exported model may differ from the original."""

    difference: float  # largest difference of a probability
    other_labels: float  # share of the images whose predicted label differs


EXACT, FROM_MIXED_PRECISION, QUANTIZED = Limits(1e-4, 0.0), Limits(1e-2, 0.001), Limits(1.0, 0.01)


@dataclass(frozen=True)
class Images:
    """The images that an exported model is checked on."""

    source: str  # described for the report
    images: np.ndarray  # float32 (images, height, width, channels), raw pixels
    labels: np.ndarray | None  # int64 (images,); None if unknown
    calibration: np.ndarray  # float32, other images, from which quantization takes the ranges of values


@dataclass(frozen=True)
class ExportCheck:
    """An exported model compared with the original on the same images."""

    file: str
    class_names: tuple[str, ...]  # in the order of the probabilities
    bytes: int
    images: str  # their source
    number: int  # of images
    largest_difference: float  # of a probability
    equal_labels: int
    accuracy: float | None  # of the exported model; None if the labels are unknown
    accuracy_before: float | None  # of the original

    def exceeds(self, limits: Limits) -> bool:
        """Whether it differs too much; NaN always does."""
        other = self.number - self.equal_labels
        return not (self.largest_difference <= limits.difference and other <= limits.other_labels * self.number)


class ExportFailed(Exception):
    """The export failed, or the exported model differs too much; its file was removed."""


def check_images(classifier: Classifier, of_run: Configuration | None, data: Sequence[str]) -> Images:
    """Loads up to 1,000 test images, then validation images, to check an export on; random ones if there is no data.

    Args:
        classifier: the model to export.
        of_run: the configuration of the run that trained it, if known.
        data: an option of `data` and its overrides to use instead of the run's; may be empty.

    Raises:
        ExperimentError: the chosen data cannot be loaded, or do not fit the model.
    """
    shape, rng = classifier.image_shape, np.random.default_rng(0)
    configuration = compose([f"data={data[0]}", *data[1:]]) if data else of_run
    try:
        found = instantiate(configuration.cfg, "data") if configuration else None
    except ExperimentError:
        if data:
            raise
        found = None  # the run was trained on another machine
    if found is None:
        random = rng.integers(0, 256, (_IMAGES + _CALIBRATION_IMAGES, *shape)).astype(np.float32)
        return Images("random images", random[:_IMAGES], None, random[_IMAGES:])
    if found.image_shape != shape or found.num_classes != len(classifier.class_names):
        raise ExperimentError(
            f"{found.name} has images of shape {found.image_shape} in {found.num_classes} classes, but "
            f"{classifier.name} takes {shape} and has {len(classifier.class_names)} classes."
        )
    both = [part[:_IMAGES] for part in (found.test_images, found.validation_images)]
    images = np.concatenate(both)[:_IMAGES].astype(np.float32)
    labels = np.concatenate([found.test_labels, found.validation_labels])[:_IMAGES]
    tests = min(len(found.test_images), len(images))
    source = f"{tests:,} test images of {found.name}"
    source += f", {len(images) - tests:,} validation images" if tests < len(images) else ""
    return Images(source, images, labels, found.train_images[:_CALIBRATION_IMAGES].astype(np.float32))


def export_model(
    classifier: Classifier, form: str, folder: Path, images: Images, *, quantize: bool, overwrite: bool
) -> ExportCheck:
    """Exports a model, loads it in its own runtime, and compares the predictions of the two.

    Args:
        classifier: the model to export.
        form: one of `FORMATS`.
        folder: where to write the file, and `export.json` with the result of the check.
        images: the images to check on.
        quantize: whether to quantize to 8-bit integers; LiteRT only.
        overwrite: whether to replace an existing file.

    Raises:
        ExperimentError: the file exists, the folder cannot be created, or a package is missing.
        ExportFailed: the model cannot be written or loaded, or differs too much; no file is left.
    """
    target = folder / (_QUANTIZED_FILE if quantize else _FILES[form])
    _check(form, target, quantize=quantize, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"{folder} cannot be created: {error.strerror}.") from error
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as part:
        file = Path(part) / target.name
        try:
            with warnings.catch_warnings(), quiet_import():
                warnings.simplefilter("ignore")  # from Keras's exporters and the libraries they use
                model = _in_float32(classifier.model)
                model.predict(images.images[:1], verbose=0)  # the exporters require a model that has been called
                _write(model, form, file, images.calibration if quantize else None)
                probabilities = load_exported(form, file)(images.images)
        except Exception as error:  # what an exporter or runtime does not support can raise almost anything
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportFailed(f"This model cannot be exported to {form}: {reason.strip()}") from error
        limits = QUANTIZED if quantize else EXACT if model is classifier.model else FROM_MIXED_PRECISION
        checked = _compare(classifier, images, probabilities, file)
        if checked.exceeds(limits):
            raise ExportFailed(
                f"The exported model differs in {form}: {checked.equal_labels:,} of {checked.number:,} labels are "
                f"equal, and probabilities differ by up to {checked.largest_difference:.2g} (allowed: "
                f"{limits.difference:g}). The file was removed."
            )
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)
    _write_report(folder, checked)
    return checked


def _check(form: str, target: Path, *, quantize: bool, overwrite: bool) -> None:
    if quantize and form != "litert":
        raise ExperimentError(f"--quantize int8 needs --format litert, not {form}.")
    if target.exists() and not overwrite:
        raise ExperimentError(f"{target} exists.", advice="Use --overwrite to replace it.")
    missing = [package for package in _PACKAGES.get(form, ()) if find_spec(package) is None]
    if missing:
        problem = f"--format {form} needs {' and '.join(missing)}."
        raise ExperimentError(problem, advice="Install it with: pip install -e '.[export]'")


def _in_float32(model: keras.Model) -> keras.Model:
    """The same model in float32, because other formats support mixed precision badly or not at all.

    A model that is in float32 already is returned as it is.
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


def load_exported(form: str, file: Path) -> _Predict:
    """Loads an exported model in its own runtime."""
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
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()

    def predict(images: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(inputs["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(inputs["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return predict


def _compare(classifier: Classifier, images: Images, probabilities: np.ndarray, file: Path) -> ExportCheck:
    before = classifier.predict(images.images)
    labels = images.labels
    return ExportCheck(
        file=file.name,
        class_names=classifier.class_names,
        bytes=sum(part.stat().st_size for part in ([file] if file.is_file() else file.rglob("*")) if part.is_file()),
        images=images.source,
        number=len(probabilities),
        largest_difference=float(np.abs(probabilities - before).max()),
        equal_labels=int((probabilities.argmax(axis=1) == before.argmax(axis=1)).sum()),
        accuracy=None if labels is None else float((probabilities.argmax(axis=1) == labels).mean()),
        accuracy_before=None if labels is None else float((before.argmax(axis=1) == labels).mean()),
    )


def _write_report(folder: Path, checked: ExportCheck) -> None:
    """Adds the check of a file to `export.json`."""
    file = folder / _REPORT
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**known, checked.file: asdict(checked)}, indent=1) + "\n", encoding="utf-8")
