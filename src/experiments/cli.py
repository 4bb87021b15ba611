"""The command `experiments`: one function per subcommand, which imports what it needs when it is called."""

import contextlib
import gc
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import click

from experiments import quiet_import
from experiments.errors import ExperimentError

_PORT = click.IntRange(1, 65535)


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they are defined."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, no_args_is_help=False, context_settings={"max_content_width": 120})
def commands() -> None:
    """Config-driven experiments for Keras image classifiers."""


def main() -> None:
    """Runs the command line and exits with 0 (done), 1 (a run failed), 2 (refused), 130 or 143 (stopped)."""
    received_signals: list[int] = []

    def stop(number: int, _: object) -> None:
        received_signals.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, stop)
    status = _report_errors(received_signals)
    # Without the walk through all that MLflow and TensorFlow have imported, which takes a second.
    gc.disable()
    gc.freeze()
    sys.exit(status)


def _report_errors(received_signals: list[int]) -> int:
    """Runs the subcommand and returns the exit status; a user's mistake becomes one message without a traceback."""
    try:
        # Not click's own main(), which prints an empty line after Ctrl-C and exits by itself.
        with commands.make_context("experiments", sys.argv[1:]) as context:
            return commands.invoke(context) or 0
    except click.exceptions.Exit as end:  # after --help
        return end.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "experiments"
        print(f"{command}: {error.format_message()} Try: {command} --help", file=sys.stderr)
        return 2
    except ExperimentError as error:
        from experiments.tracking.secrets import without_secrets

        print(f"experiments: {without_secrets(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads it, as head does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException:
        # Inside OmegaConf an interruption may come out as another error.
        if received_signals[:1] != [signal.SIGINT]:
            raise
        print("experiments: interrupted", file=sys.stderr)
        return 130


# Hydra parses the arguments, --help among them.
@commands.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train(arguments: tuple[str, ...]) -> int:
    """Train one run, or a sweep with -m or sweep=NAME."""
    from experiments import hydra_app

    return hydra_app.run(arguments)


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option("--config-dir", metavar="DIR", help="A folder with options of your own.")
@click.option("--equal-within", type=float, metavar="X", help="Differences of the objective that do not matter.")
@click.option("--against", metavar="RUN", help="Race the configuration of RUN with a change of it, the overrides.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; all else goes to standard error.")
def race(
    overrides: tuple[str, ...], config_dir: str | None, equal_within: float | None, against: str | None, as_json: bool
) -> int:
    """Add seeds to the variants in question until it is settled which is best.

    OVERRIDES name the variants as in a sweep, without seeds; max_seeds=N is the most that a variant gets.

    With --against, exits with 0 if the change is better, 1 if it is not, and 3 if that is undecided.
    """
    from experiments import hydra_app

    words = ["--config-dir", config_dir] if config_dir else []
    values = [f"hydra.sweeper.{word}" if word.startswith("max_seeds=") else word for word in overrides]
    if equal_within is not None:
        values.append(f"hydra.sweeper.equal_within={equal_within}")
    if against:
        from experiments.sweeps import gate

        words, values = [], gate.words_of(against, values)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        status = hydra_app.run(("-m", *words, *values, "hydra/sweeper=race"))
    from experiments.sweeps import race

    if not race.results:  # as with dry_run=true
        return status
    if as_json:
        print(race.results[0].as_json())
    return status or (gate.status(race.results[0]) if against else 0)


@commands.command("list")
@click.argument("group", required=False)
@click.option("--config-dir", metavar="DIR", help="A folder with options of your own.")
def list_options(group: str | None, config_dir: str | None) -> None:
    """List every group and option, or those of one GROUP with all arguments of Keras's classes."""
    import textwrap

    import yaml

    from experiments.config import compose
    from experiments.config.configuration import further_keys

    files = compose.option_files(config_dir)
    groups = sorted(files)
    if group and group not in groups:
        raise ExperimentError(f"{group}: there is no such group.", given=group, allowed=groups)
    width = max(len(file.stem) for options in files.values() for file in options)
    for name in [group] if group else groups:
        print(name)
        for file in files[name]:
            print(f"  {file.stem:{width}}  {compose.first_comment(file)}")
            if group and (more := ", ".join(further_keys(yaml.safe_load(file.read_text(encoding="utf-8")) or {}))):
                indent = " " * (width + 4)
                print(textwrap.fill(f"further keys: {more}", 120, initial_indent=indent, subsequent_indent=indent))


@commands.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=_PORT, default=5000, show_default=True, metavar="PORT", help="Port to listen on.")
def ui(host: str, port: int) -> int:
    """Open the MLflow UI on the right store."""
    from experiments.tracking.ui import serve_ui

    return serve_ui(host, port)


@commands.command()
@click.argument("run")
@click.option("--tolerance", type=float, default=0.0, metavar="X", help="Largest difference that counts as equal.")
def reproduce(run: str, tolerance: float) -> int:
    """Train a recorded run again and compare every number.

    RUN is the id of a run, a unique prefix of one, or last.
    """
    with quiet_import():
        from experiments import reproduce

    return 0 if reproduce.reproduce(run, tolerance) else 1


@commands.command()
@click.argument("sweeps", nargs=-1, metavar="[SWEEP]...")
@click.option(
    "--filter", "query", default="", metavar="FILTER", help="Only runs that match, in MLflow's search syntax."
)
@click.option("--metric", default="", metavar="METRIC", help="Rank by this metric instead of the objective.")
@click.option(
    "--on",
    type=click.Choice(["new-images", "these-images"]),
    default="new-images",
    show_default=True,
    help="What intervals and tests hold for: new images, too, or only the images of these runs.",
)
@click.option(
    "--equal-within",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DELTA",
    help="Also say which variants differ by less than this.",
)
@click.option("--across-data", is_flag=True, help="Compare runs on different data, which is refused otherwise.")
@click.option("--csv", default="", metavar="FILE", help="Also write the table to a file.")
@click.option("--html", default="", metavar="FILE", help="Also write a page with charts, errors and links to the runs.")
def compare(
    sweeps: tuple[str, ...],
    query: str,
    metric: str,
    on: str,
    equal_within: float | None,
    across_data: bool,
    csv: str,
    html: str,
) -> None:
    """Rank variants over their seeds, with intervals and tests.

    SWEEP is a sweep's name, with or without its six digits, the id of its run, a unique prefix of that id, or last,
    which is the default.
    """
    gc.disable()  # nothing here leaves rubbish in cycles, and looking for it takes a tenth of the time
    from experiments.compare import tables
    from experiments.compare.comparison import compare_runs, find_runs
    from experiments.sweeps.display import Display

    selected = find_runs(sweeps, query)
    found = compare_runs(
        selected if not (metric or on == "these-images" or equal_within) else replace(selected, race=None),
        metric,
        across_data=across_data,
        these_images=on == "these-images",
        equal_within=equal_within,
    )
    if csv:
        tables.write_file(tables.as_csv(found), csv)
    if html:
        from experiments.compare import report

        tables.write_file(report.page(found), html)
    tables.print_table(found, Display().console)
    if len(found.rows) == 1:
        raise ExperimentError("One variant alone cannot be compared.", advice="Name more sweeps, or widen --filter.")


@commands.command()
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


@commands.command()
@click.argument("model")
@click.option("--port", type=_PORT, default=7860, show_default=True, metavar="PORT", help="Port to listen on.")
def draw(model: str, port: int) -> None:
    """Open a page to draw a digit on, and see the prediction.

    MODEL is what predict takes.
    """
    from importlib.util import find_spec

    from experiments import load

    if find_spec("gradio") is None:
        raise ExperimentError("draw needs Gradio.", advice="Install it with: pip install -e '.[demo]'")
    classifier = load(model)
    from experiments.serving import demo

    demo.serve(classifier, port)


@commands.command()
@click.argument("source", metavar="RUN_OR_SWEEP")
@click.option("--name", required=True, metavar="NAME", help="Name of the registered model.")
@click.option("--force", is_flag=True, help="Make it champion regardless of the comparison.")
def register(source: str, name: str, force: bool) -> None:
    """Register a model in MLflow, as champion if it is better.

    For a sweep, the median seed of its best variant is registered.
    """
    from experiments.serving import register

    print(register.register_model(source, name, force=force))


@commands.command()
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

    if overrides and not data:
        raise click.UsageError(f"{' '.join(overrides)}: overrides need --data.")
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


@commands.command()
def sync() -> int:
    """Send what could not be sent to the store."""
    from experiments.tracking.locks import sync
    from experiments.tracking.store import StoreLost, check_store

    try:
        check_store()
        return 0 if sync(print) else 1
    except StoreLost as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
