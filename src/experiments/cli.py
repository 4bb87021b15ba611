"""The command `experiments`: its start and end, and the subcommands that train, list options or open the store.

A subcommand imports what it needs when it is called. `commands/` has the others.
"""

import contextlib
import gc
import os
import signal
import sys

import click

from experiments import quiet_import
from experiments.commands import completion
from experiments.commands.compare import compare
from experiments.commands.models import PORT, draw, ensemble, export, predict, register, robustness
from experiments.commands.runs import clean, diff, runs, sweeps
from experiments.errors import ExperimentError


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, no_args_is_help=False, context_settings={"max_content_width": 120})
def command_line() -> None:
    """Config-driven experiments for Keras image classifiers."""


def main() -> None:
    """Runs the command line and exits with 0 (done), 1 (a run failed), 2 (refused), 130 or 143 (stopped)."""
    if instruction := os.environ.get(completion.VARIABLE):
        sys.exit(completion.complete(command_line, instruction))
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
        with command_line.make_context("experiments", sys.argv[1:]) as context:
            return command_line.invoke(context) or 0
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
@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=completion.overrides)
def train(arguments: tuple[str, ...]) -> int:
    """Train one run, or a sweep with -m or sweep=NAME."""
    from experiments import hydra_app

    return hydra_app.run(arguments)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, shell_complete=completion.overrides)
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


@click.command("list")
@click.argument("group", required=False, shell_complete=completion.groups)
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


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=5000, show_default=True, metavar="PORT", help="Port to listen on.")
def ui(host: str, port: int) -> int:
    """Open the MLflow UI on the right store."""
    from experiments.tracking.ui import serve_ui

    return serve_ui(host, port)


@click.command()
@click.argument("run")
@click.option("--tolerance", type=float, default=0.0, metavar="X", help="Largest difference that counts as equal.")
def reproduce(run: str, tolerance: float) -> int:
    """Train a recorded run again and compare every number.

    RUN is the id of a run, a unique prefix of one, last, or best:SWEEP.
    """
    from experiments.compare.names import find_run

    run_id = find_run(run).run_id
    with quiet_import():
        from experiments import reproduce

    return 0 if reproduce.reproduce(run_id, tolerance) else 1


@click.command()
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


for _command in (
    train, race, list_options, ui, reproduce, compare, runs, sweeps, diff, predict, draw, register, export,
    ensemble, robustness, sync, clean,
):  # fmt: skip
    command_line.add_command(_command)

if __name__ == "__main__":
    main()
