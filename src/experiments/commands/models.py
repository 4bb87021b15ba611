"""The subcommands that use a trained model."""

import importlib.util
import sys
from pathlib import Path

import click

from experiments import quiet_import
from experiments.errors import ExperimentError

PORT = click.IntRange(1, 65535)


def _check_overrides(overrides: tuple[str, ...], data: str | None) -> None:
    """Refuses what follows a model and cannot be an override of the data."""
    if others := [word for word in overrides if "=" not in word]:
        raise click.UsageError(f"{' '.join(others)}: only one is taken; overrides such as data.path=FILE may follow.")
    if overrides and not data:
        raise click.UsageError(f"{' '.join(overrides)}: overrides need --data.")


@click.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--prepare",
    type=click.Choice(["none", "resize", "mnist"]),
    help="By default as the model's data was prepared.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all probabilities, instead of a table.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option("--picture", default="", metavar="FILE", help="Draw the images, the model's input and its probabilities.")
def predict(model: str, files: tuple[str, ...], prepare: str | None, as_json: bool, as_csv: bool, picture: str) -> int:
    """Predict the classes of image files.

    MODEL is a RUN, runs:/RUN, models:/NAME@ALIAS, best:SWEEP or a .keras file; IMAGE a file, a folder or a pattern.
    """
    from experiments import images, load

    if as_json and as_csv:
        raise click.UsageError("--json and --csv cannot be combined.")
    paths = images.files(files)
    classifier = load(model)
    from experiments.serving import predict
    from experiments.sweeps.display import Display

    preparation = predict.preparation(classifier, prepare)
    found, refused = predict.predict_files(classifier, paths, preparation)
    if as_json:
        predict.write_json(found, sys.stdout)
    elif as_csv:
        predict.write_csv(found, sys.stdout)
    elif found:
        predict.print_table(found, Display().console)
    if picture and found:
        predict.draw(found, preparation, Path(picture))
    for sentence in refused:
        print(f"experiments: {sentence}", file=sys.stderr)
    return 1 if refused else 0


@click.command()
@click.argument("model")
@click.option("--port", type=PORT, default=7860, show_default=True, metavar="PORT", help="Port to listen on.")
def draw(model: str, port: int) -> None:
    """Open a page to draw a digit on, and see the prediction.

    MODEL is what predict takes.
    """
    from experiments import load

    if importlib.util.find_spec("gradio") is None:
        raise ExperimentError("draw needs Gradio.", advice="Install it with: pip install -e '.[demo]'")
    classifier = load(model)
    from experiments.serving import demo

    demo.serve(classifier, port)


@click.command()
@click.argument("source", metavar="RUN_OR_SWEEP")
@click.option("--name", required=True, metavar="NAME", help="Name of the registered model.")
@click.option("--force", is_flag=True, help="Make it champion regardless of the comparison.")
def register(source: str, name: str, force: bool) -> None:
    """Register a model in MLflow, as champion if it is better.

    For a sweep, the median seed of its best variant is registered.
    """
    from experiments.serving import register

    print(register.register_model(source, name, force=force))


@click.command()
@click.argument("model")
@click.argument("overrides", nargs=-1, metavar="[OVERRIDE]...")
@click.option("--format", "form", required=True, type=click.Choice(["keras", "saved_model", "onnx", "litert"]))
@click.option("--out", required=True, metavar="DIR", help="Folder for the file and export.json.")
@click.option("--quantize", type=click.Choice(["int8"]), help="For LiteRT: smaller and faster, slightly less accurate.")
@click.option("--data", metavar="CHOICE", help="Data to check on; OVERRIDEs such as data.path=FILE may follow.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(
    model: str, overrides: tuple[str, ...], form: str, out: str, quantize: str | None, data: str | None, overwrite: bool
) -> int:
    """Write a model for another runtime, and check it there.

    MODEL is what predict takes.
    """
    from experiments import load

    _check_overrides(overrides, data)
    classifier = load(model)
    from experiments import reproduce
    from experiments.serving import export

    run, folder = classifier.run, Path(out)
    of_run = reproduce.configuration_of(run) if run and "fingerprint" in run.tags and not data else None
    images = export.check_images(classifier, of_run, [data, *overrides] if data else [])
    try:
        checked = export.export_model(classifier, form, folder, images, quantize=bool(quantize), overwrite=overwrite)
    except export.ExportFailed as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    print(f"{folder / checked.file}: {checked.bytes:,} bytes")
    print(f"Compared with Keras on {checked.images}: {checked.equal_labels:,} of {checked.number:,} labels are equal,")
    print(f"probabilities differ by up to {checked.largest_difference:.2g}.")
    if checked.accuracy is not None and checked.accuracy_before is not None:
        print(f"Accuracy {checked.accuracy:.2%}, and {checked.accuracy_before:.2%} before.")
    return 0


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="SWEEP_OR_RUN...")
@click.option("--size", type=click.IntRange(2), default=5, show_default=True, metavar="N", help="Most members.")
def ensemble(names: tuple[str, ...], size: int) -> None:
    """Combine trained runs into one model, without training.

    Members are chosen on the validation images of sweeps or runs; the result is a run whose model predict, export and
    register take.
    """
    with quiet_import():
        from experiments import ensemble

    ensemble.ensemble(names, size)


@click.command()
@click.argument("model", metavar="MODEL_OR_SWEEP")
@click.argument("overrides", nargs=-1, metavar="[OVERRIDE]...")
@click.option("--data", metavar="CHOICE", help="Its test images; OVERRIDEs such as data.path=FILE may follow.")
def robustness(model: str, overrides: tuple[str, ...], data: str | None) -> None:
    """Measure the accuracy on corrupted test images.

    The 15 corruptions are those of MNIST-C. MODEL is what predict takes; of a SWEEP all finished runs are measured.
    The results are added to the records of the runs.
    """
    _check_overrides(overrides, data)
    if importlib.util.find_spec("skimage") is None:
        raise ExperimentError(
            "robustness needs scikit-image.", advice="Install it with: pip install -e '.[robustness]'"
        )
    with quiet_import():
        from experiments import robustness

    robustness.robustness(model, [data, *overrides] if data else [])
