"""The subcommand that compares variants."""

import gc
import json
from dataclasses import replace

import click

from experiments.errors import ExperimentError


@click.command()
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
@click.option("--only", default="", metavar="RANKS", help="Show only these rows, as in 1,4; tests stay those of all.")
@click.option("--csv", default="", metavar="FILE", help="Also write the table to a file.")
@click.option("--latex", default="", metavar="FILE", help="Also write the table in LaTeX, for the package booktabs.")
@click.option("--html", default="", metavar="FILE", help="Also write a page with charts, errors and links to the runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare(
    sweeps: tuple[str, ...],
    query: str,
    metric: str,
    on: str,
    equal_within: float | None,
    across_data: bool,
    only: str,
    csv: str,
    latex: str,
    html: str,
    as_json: bool,
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
    if html:
        from experiments.compare import report

        tables.write_file(report.page(found), html)
    shown = tables.only(found, only) if only else found
    if csv:
        tables.write_file(tables.as_csv(shown), csv)
    if latex:
        tables.write_file(tables.as_latex(shown), latex)
    if as_json:
        print(json.dumps(tables.as_json(shown), indent=1))
    else:
        tables.print_table(shown, Display().console)
    if len(found.rows) == 1:
        raise ExperimentError("One variant alone cannot be compared.", advice="Name more sweeps, or widen --filter.")
