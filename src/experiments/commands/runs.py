"""The subcommands that list what was recorded, compare two runs, and delete what is no longer needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from experiments.compare import listing

LAST = click.IntRange(min=1)


@click.command()
@click.option(
    "--filter",
    "query",
    default="",
    metavar="FILTER",
    help="Only runs that match, in MLflow's search syntax; numbers also as in optimizer.learning_rate > 0.01.",
)
@click.option("--sweep", default="", metavar="SWEEP", help="Only the runs of this sweep, all of them.")
@click.option("--last", type=LAST, metavar="N", help="How many, the newest first.  [default: 20]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def runs(query: str, sweep: str, last: int | None, as_json: bool) -> None:
    """List runs: what differs between them, results, time, size."""
    from experiments.compare import listing

    _show(*listing.list_runs(query, sweep, last), "runs", as_json)


@click.command()
@click.option("--last", type=LAST, metavar="N", help="How many, the newest first.  [default: 20]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def sweeps(last: int | None, as_json: bool) -> None:
    """List sweeps: what they vary, the best result, time, size."""
    from experiments.compare import listing

    _show(*listing.list_sweeps(last), "sweeps", as_json)


def _show(entries: list["listing.Entry"], more: bool, kind: str, as_json: bool) -> None:
    from experiments.compare import listing
    from experiments.sweeps.display import Display

    if as_json:
        print(json.dumps([listing.as_json(entry) for entry in entries], indent=1))
        return
    display = Display()
    if entries:
        display.console.print(listing.table(entries))
    display.print(
        f"The newest {len(entries)} {kind}; --last N shows more."
        if more
        else f"{len(entries):,} {kind if len(entries) != 1 else kind[:-1]}."
    )


@click.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--picture", default="", metavar="FILE", help="Draw test images on which the two answer differently.")
def diff(first: str, second: str, as_json: bool, picture: str) -> None:
    """Show all that differs between two runs.

    Configuration, data, code, versions, machine, metrics, and answers for test images.
    """
    from experiments.compare import difference
    from experiments.sweeps.display import Display

    found = difference.difference(first, second)
    if as_json:
        print(json.dumps(difference.as_json(found), indent=1))
    else:
        difference.print_difference(found, Display().console)
    if picture:
        difference.draw(found, Path(picture))


@click.command()
@click.option(
    "--keep-models",
    type=click.IntRange(min=1),
    metavar="K",
    help="Also delete the models of all but the best K seeds of every variant.",
)
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would be deleted.")
def clean(keep_models: int | None, yes: bool) -> None:
    """Delete failed, killed, superseded and deleted runs.

    What is registered stays, and so does the best run of a sweep, what another run reproduces or has started from, and
    what is running or can be resumed.
    """
    from experiments.compare import cleaning
    from experiments.sweeps.display import Display
    from experiments.tracking.deletion import is_server

    plan, display = cleaning.find(keep_models), Display()
    if plan.items:
        display.console.print(cleaning.table(plan))
    if plan.resumable:
        display.print(f"Not deleted because they can be resumed, or sent with experiments sync: {plan.resumable:,}.")
    if not plan.items:
        display.print("There is nothing to delete.")
    elif not yes:
        display.print(f"This would delete {cleaning.counted(plan.items)}. To delete them, add --yes.")
    else:
        display.print(f"Deleted {cleaning.counted(list(cleaning.delete(plan)))}.")
        if is_server():
            display.print("Their parameters and metrics stay in the server's database until mlflow gc is run there.")
