"""The command `experiments`: thin subcommands that import what they need when they are called."""

import argparse
import contextlib
import gc
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from experiments import quiet_import
from experiments.errors import ExperimentError, JobsFailed

REFUSED = 2
INTERRUPTED = 130

_stopped_by: list[int] = []


def main() -> None:
    """Runs the command line and exits with 0 (done), 1 (a run failed), 2 (refused), 130 or 143 (stopped)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _stop)
    # Hydra is handed everything after `train`, its own --help included.
    if sys.argv[1:2] == ["train"]:
        _exit(_spoken(_train, sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="experiments", description="Config-driven experiments for image classifiers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", help="train one run, or a sweep with -m; see experiments train --help")
    listing = commands.add_parser("list", help="list every group and option, or those of one group")
    listing.add_argument("group", nargs="?")
    listing.add_argument("--config-dir", help="a folder with options of your own")
    listing.set_defaults(function=_list)
    ui = commands.add_parser("ui", help="open the MLflow UI on the right store")
    ui.add_argument("--host", default="127.0.0.1")
    ui.add_argument("--port", type=int, default=5000, choices=range(1, 65536), metavar="PORT")
    ui.set_defaults(function=_ui)
    again = commands.add_parser("reproduce", help="train a recorded run again and compare every number")
    again.add_argument("run", metavar="RUN", help="id of a run or a unique prefix of it, or last")
    again.add_argument("--tolerance", type=float, default=0.0, help="largest difference that counts as equal")
    again.set_defaults(function=_reproduce)
    ranking = commands.add_parser("compare", help="rank variants over their seeds, with intervals and tests")
    ranking.add_argument(
        "sweeps",
        nargs="*",
        metavar="SWEEP",
        help="its name, with or without the six digits; the id of its run, or a unique prefix of it; last (default)",
    )
    ranking.add_argument("--filter", default="", help="only runs that match it, in the grammar of MLflow's search")
    ranking.add_argument("--metric", default="", help="what to rank by, by default the objective")
    ranking.add_argument("--across-data", action="store_true", help="compare runs on different data all the same")
    ranking.add_argument("--csv", metavar="FILE", help="write the table to a file, too")
    ranking.add_argument("--html", metavar="FILE", help="write a page with charts, mistakes and links to every run")
    ranking.set_defaults(function=_compare)
    saying = commands.add_parser("predict", help="say what is on images")
    saying.add_argument("model", metavar="MODEL", help="RUN, runs:/…, models:/name@alias, best:SWEEP or a .keras file")
    saying.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or patterns")
    saying.add_argument("--prepare", choices=["none", "resize", "mnist"], help="by default what fits the model's data")
    form = saying.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, with all probabilities, instead of a table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    saying.add_argument("--picture", metavar="FILE", help="draw the images, what the net sees, and its probabilities")
    saying.set_defaults(function=_predict)
    drawing = commands.add_parser("draw", help="draw a digit on a page, and see what a model says")
    drawing.add_argument("model", metavar="MODEL", help="as for predict")
    drawing.add_argument("--port", type=int, default=7860, choices=range(1, 65536), metavar="PORT")
    drawing.set_defaults(function=_draw)
    registering = commands.add_parser(
        "register", help="put a model into MLflow's registry, as champion if it is better"
    )
    registering.add_argument(
        "source", metavar="SWEEP_OR_RUN", help="a sweep, of which the best variant is taken; or a run"
    )
    registering.add_argument("--name", required=True, help="of the registered model")
    registering.add_argument("--force", action="store_true", help="make it champion whatever the comparison says")
    registering.set_defaults(function=_register)
    exporting = commands.add_parser("export", help="write a model for another runtime, and check it there")
    exporting.add_argument("model", metavar="MODEL", help="as for predict")
    exporting.add_argument("--format", required=True, choices=["keras", "saved_model", "onnx", "litert"])
    exporting.add_argument("--out", required=True, metavar="DIR", help="where the file goes, with export.json")
    exporting.add_argument("--quantize", choices=["int8"], help="of LiteRT: smaller and faster, hardly less exact")
    exporting.add_argument("--data", nargs="+", default=[], metavar="CHOICE", help="to check on, with its overrides")
    exporting.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    exporting.set_defaults(function=_export)
    commands.add_parser("sync", help="send what a lost store lacks").set_defaults(function=_sync)
    arguments = parser.parse_args()
    _exit(_spoken(arguments.function, arguments))


def _exit(status: int) -> NoReturn:
    """Ends without the walk through all that MLflow and TensorFlow have imported, which takes a second."""
    gc.disable()
    gc.freeze()
    sys.exit(status)


def _stop(number: int, _: object) -> None:
    _stopped_by.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _spoken(function: Any, arguments: Any) -> int:
    """Runs a subcommand; a user's mistake becomes one message instead of a traceback."""
    try:
        return function(arguments)
    except ExperimentError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # whoever reads it, as head does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException:
        # Inside OmegaConf an interruption may come out as another error.
        if not _stopped_by or _stopped_by[0] != signal.SIGINT:
            raise
        print("experiments: interrupted", file=sys.stderr)
        return INTERRUPTED


def _train(arguments: list[str]) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from experiments.config.compose import CONF_DIR, check_command
    from experiments.config.overrides import first_line

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us instead of Hydra's own printer
    sys.argv = ["experiments train", *arguments]
    options = get_args_parser().parse_args(arguments)
    for option in ("config_name", "config_path", "experimental_rerun"):
        if getattr(options, option):  # they would run what nothing has checked
            raise ExperimentError(f"--{option.replace('_', '-')} is not for this command.", advice="Use --config-dir.")
    if not (options.help or options.hydra_help or options.shell_completion):
        check_command(options.overrides, options.config_dir, multirun=options.multirun)
    # A job of a sweep may have another working directory.
    config_dir = os.path.abspath(options.config_dir) if options.config_dir else None
    refused: list[ExperimentError] = []
    failed: list[str] = []

    def task(cfg: DictConfig) -> Any:
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return _run_job(cfg, config_dir)
        if sys.stdout.isatty():
            print("Loading TensorFlow …", flush=True)
        try:
            result = _run_one(cfg, options.config_dir)
        except ExperimentError as error:
            refused.append(error)  # raised here, it would reach the user through Hydra's own report
            return None
        if result and result.status != "FINISHED":
            failed.append(result.run_id)
        return result.objective if result else None

    try:
        hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ExperimentError(first_line(error)) from error
    except JobsFailed:
        return 1
    if refused:
        raise refused[0]
    return 1 if failed else 0


def _run_one(cfg: Any, config_dir: str | None) -> Any:
    """A single run, or with `dry_run=true` what it would be."""
    from experiments.config.compose import current_job

    with quiet_import():
        from experiments import train
    configuration = current_job(cfg, config_dir)
    if not cfg.dry_run:
        return train.run(configuration)
    plan = train.plan(configuration)
    print(f"{configuration.title}: {plan.num_parameters:,} parameters; can be trained, nothing is recorded")
    return None


def _run_job(cfg: Any, config_dir: str | None) -> Any:
    """A job of a sweep: its objective, or with `dry_run=true` its plan."""
    from hydra.core.hydra_config import HydraConfig

    from experiments.config.compose import current_job

    with quiet_import():
        from experiments import train
        from experiments.tracking.run import redirect_output
    configuration = current_job(cfg, config_dir)
    if cfg.dry_run:
        return train.plan(configuration)
    if not cfg.tracking.parent:  # of a sweeper that is not ours
        return train.run(configuration).objective
    from experiments.sweeps import display
    from experiments.sweeps.sweep import job_output

    with _contained(), redirect_output(job_output(cfg.tracking.parent, cfg.tracking.job)) as console:
        tell = display.teller(configuration, console)
        if cfg.tracking.trial is None:
            return train.run(configuration, tell).objective
        from experiments.sweeps import search

        method = HydraConfig.get().sweeper.pruner
        hopeless = search.pruner_of(cfg.tracking.parent, cfg.tracking.trial, method, cfg.objective.metric)
        return train.run(configuration, lambda *epoch: tell(*epoch) or hopeless(*epoch)).objective


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Tells a launcher in plain words how a job has failed, and keeps one that exits from taking it along."""
    from experiments.sweeps.launcher import JobDied

    try:
        yield
    except ExperimentError:
        raise
    except Exception as error:
        # In words: to read TensorFlow's errors, the launching process would have to import it.
        last_line = traceback.format_exception_only(error)[-1].strip()
        raise JobDied("error", last_line) from None
    except SystemExit as error:
        if error.code in {128 + number for number in signal.Signals}:  # so do signals end a process
            raise
        raise JobDied("exit", f"exit status {error.code}") from None


def _list(arguments: argparse.Namespace) -> int:
    from experiments.config import compose

    folders = compose.folders(arguments.config_dir)
    files = [file for folder in folders for file in sorted(folder.glob("*/*.yaml"))]
    groups = sorted({file.parent.name for file in files})
    if arguments.group and arguments.group not in groups:
        raise ExperimentError(f"{arguments.group}: there is no such group.", given=arguments.group, allowed=groups)
    width = max(len(file.stem) for file in files)
    for group in [arguments.group] if arguments.group else groups:
        print(group)
        for file in files:
            if file.parent.name == group:
                comments = (
                    line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")
                )
                print(f"  {file.stem:{width}}  {next((c for c in comments if not c.startswith('@')), '')}")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    with quiet_import():
        from experiments import reproduce

    return 0 if reproduce.reproduce(arguments.run, arguments.tolerance) else 1


def _compare(arguments: argparse.Namespace) -> int:
    gc.disable()  # nothing here leaves rubbish in cycles, and looking for it takes a tenth of the time
    from experiments.compare import tables
    from experiments.compare.comparison import comparison, find
    from experiments.sweeps.display import Display

    title, runs = find(arguments.sweeps, arguments.filter)
    found = comparison(runs, title, arguments.metric, across_data=arguments.across_data)
    if arguments.csv:
        tables.write(tables.as_csv(found), arguments.csv)
    if arguments.html:
        from experiments.compare import report

        tables.write(report.page(found), arguments.html)
    tables.show(found, Display().console)
    if len(found.rows) == 1:
        raise ExperimentError("One variant alone cannot be compared.", advice="Name more sweeps, or widen --filter.")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from experiments import images, load

    files = images.files(arguments.images)
    classifier = load(arguments.model)
    from experiments.serving import predict
    from experiments.sweeps.display import Display

    prepare = predict.preparation(classifier, arguments.prepare)
    found, refused = predict.predict(classifier, files, prepare)
    if arguments.json:
        predict.write_json(found, sys.stdout)
    elif arguments.csv:
        predict.write_csv(found, sys.stdout)
    elif found:
        predict.show(found, Display().console)
    if arguments.picture and found:
        predict.draw(found, prepare, Path(arguments.picture))
    for sentence in refused:
        print(f"experiments: {sentence}", file=sys.stderr)
    return 1 if refused else 0


def _draw(arguments: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from experiments import load

    if find_spec("gradio") is None:
        raise ExperimentError("draw needs Gradio.", advice="Install it with: pip install -e '.[demo]'")
    classifier = load(arguments.model)
    from experiments.serving import demo

    demo.serve(classifier, arguments.port)
    return 0


def _register(arguments: argparse.Namespace) -> int:
    from experiments.serving import register

    print(register.register(arguments.source, arguments.name, force=arguments.force))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from experiments import load

    classifier = load(arguments.model)
    from experiments import reproduce
    from experiments.serving import export

    run = classifier.run
    of_run = reproduce.configuration_of(run) if run and "fingerprint" in run.tags and not arguments.data else None
    images = export.images_of(classifier, of_run, arguments.data)
    options = {"quantize": arguments.quantize is not None, "overwrite": arguments.overwrite}
    try:
        checked = export.export(classifier, arguments.format, Path(arguments.out), images, **options)
    except export.NotEqualError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    print(f"{Path(arguments.out) / checked.file}: {checked.bytes:,} bytes")
    print(f"Compared with Keras on {checked.images}: {checked.equal_labels:,} of {checked.number:,} labels are equal,")
    print(f"probabilities differ by up to {checked.largest_difference:.2g}.")
    if checked.accuracy is not None and checked.accuracy_before is not None:
        print(f"Accuracy {checked.accuracy:.2%}, and {checked.accuracy_before:.2%} before.")
    return 0


def _sync(_: argparse.Namespace) -> int:
    from experiments.tracking.locks import sync
    from experiments.tracking.store import StoreLost, check_store

    try:
        check_store()
        return 0 if sync(print) else 1
    except StoreLost as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1


def _ui(arguments: argparse.Namespace) -> int:
    from experiments.tracking.ui import serve_ui

    return serve_ui(arguments.host, arguments.port)


if __name__ == "__main__":
    main()
