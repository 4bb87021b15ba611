"""Finds the runs and models that nobody needs any more, and deletes them."""

import re
import socket
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.filesize import decimal
from rich.table import Table

from experiments.compare.comparison import mode_of
from experiments.compare.variants import split
from experiments.errors import ExperimentError
from experiments.tracking import deletion
from experiments.tracking.deletion import Room
from experiments.tracking.delivery import is_waiting
from experiments.tracking.locks import is_locked, lock
from experiments.tracking.runs import StoredRun, job_list
from experiments.tracking.store import nothing_recorded, run_folder, shown_uri

_DELETED, _WEAKER = "deleted", "model of a weaker seed"


@dataclass(frozen=True)
class Item:
    """A run to delete, or the models alone of a run that stays."""

    run: StoredRun
    why: str
    room: Room

    @property
    def models_only(self) -> bool:
        """Whether the run itself stays."""
        return self.why == _WEAKER


@dataclass(frozen=True)
class Plan:
    """What to delete."""

    items: tuple[Item, ...]
    resumable: int  # unfinished runs that stay because they can be resumed

    @property
    def bytes(self) -> int:
        """How much room all of it takes."""
        return sum(item.room.bytes for item in self.items)


def find(keep_models: int | None = None) -> Plan:
    """Finds failed, killed, superseded and deleted runs, and on request models of weaker seeds.

    Whatever is registered stays, and the best run of a sweep, a run that another one reproduces, has started from or
    consists of, what is running or can be resumed, the runs of a running sweep, and a sweep of which a run stays. So do
    diverged and pruned runs, which are results.

    Args:
        keep_models: of how many seeds of a variant, the best ones, the models stay; None for all.

    Raises:
        ExperimentError: there is no store.
    """
    if nothing_recorded():
        raise ExperimentError(f"There is no store to clean: nothing is recorded in {shown_uri()}.")
    active, marked = ([run for run in runs if _is_ours(run)] for runs in deletion.all_runs())
    models, needed = deletion.registered()
    started_from = set()
    for run in (*active, *marked):
        needed |= {run.tags.get("best_run_id", ""), run.tags.get("reproduces", "")}
        needed |= {*run.tags.get("members", "").split()}  # of an ensemble
        started_from.add(re.split("[@/]", run.params.get("init_from", "null").removeprefix("runs:/"))[0])
    beginnings = tuple(started_from - {""})
    needed |= {run.run_id for run in (*active, *marked) if run.run_id.startswith(beginnings)}
    running = {run.run_id for run in active if run.status == "RUNNING"}
    usable = [run for run in active if run.parent not in running and run.run_id not in running]
    finished = {run.tags["fingerprint"] for run in active if run.finished and "fingerprint" in run.tags}
    broken = [run for run in usable if run.status != "FINISHED" and not run.diverged]
    resumable = {run.run_id for run in broken if _can_be_resumed(run, finished)}
    going = [*((run, _DELETED) for run in marked), *((run, _why(run)) for run in broken)]
    kept = needed | resumable
    going = [(run, why) for run, why in going if run.run_id not in kept and not models.intersection(run.models)]
    staying = {run.run_id for run in active} - {run.run_id for run, _ in going}
    parents = {run.parent for run in active if run.run_id in staying}
    items = [
        Item(run, why, deletion.room_of(run))
        for run, why in going
        if "sweep.name" not in run.tags or not (run.run_id in parents or staying.intersection(_runs_of_jobs(run)))
    ]
    for run in _weaker(usable, keep_models) if keep_models else []:
        if run.run_id not in needed and not models.intersection(run.models):
            items.append(Item(run, _WEAKER, deletion.room_of(run, models_only=True)))
    # What a server has in its database stays there, and need not be found again.
    return Plan(
        tuple(
            item
            for item in items
            if item.room.bytes or not (item.models_only or (item.why == _DELETED and deletion.is_server()))
        ),
        len(resumable),
    )


def _is_ours(run: StoredRun) -> bool:
    """Whether it is a run or sweep of this project, not of another program that uses the same store."""
    return bool({"fingerprint", "members", "sweep.name"} & run.tags.keys())


def _why(run: StoredRun) -> str:
    return "superseded" if "superseded" in run.tags else run.status.lower()


def _can_be_resumed(run: StoredRun, finished: Collection[str]) -> bool:
    """Whether the command of a run that has not finished would go on with it, or `sync` would send the rest of it."""
    fingerprint, folder = run.tags.get("fingerprint", ""), run_folder(run.run_id)
    if "superseded" in run.tags or fingerprint in finished:
        return False
    if is_waiting(folder) or (fingerprint and is_locked(fingerprint)):
        return True
    was_stopped = run.status == "KILLED" or run.tags.get("reason") == "store"
    elsewhere = run.tags.get("host") != socket.gethostname()  # where its checkpoints may be
    return was_stopped and "sweep.name" not in run.tags and (elsewhere or any(folder.glob("checkpoint-*.npz")))


def _runs_of_jobs(parent: StoredRun) -> set[str]:
    return {job["run_id"] for job in job_list(parent)}


def _weaker(runs: Sequence[StoredRun], keep: int) -> Iterator[StoredRun]:
    """The finished runs with a model that are none of the `keep` best seeds of their variant on their data."""
    groups: dict[tuple[str, ...], list[StoredRun]] = defaultdict(list)
    for run in runs:
        if run.status == "FINISHED" and run.models and "seed" in run.params:
            names = ("variant.id", "data.sha256", "data.test_sha256")
            groups[tuple(run.tags.get(name, "") for name in names)].append(run)
    for group in groups.values():
        metric = f"best/{group[0].params.get('objective', 'val_accuracy')}"
        sign = -1 if mode_of(metric, group) == "max" else 1
        # Of runs with one seed an original counts before its reproductions.
        group.sort(key=lambda run: (not run.finished, sign * run.metrics.get(metric, -sign * float("inf"))))
        seeds: set[tuple[object, ...]] = set()
        for run in group:
            seed = (run.params["seed"], *split(run))
            if seed in seeds or len(seeds) == keep:
                yield run
            seeds |= {seed} if len(seeds) < keep else set()


def delete(plan: Plan) -> Iterator[Item]:
    """Deletes what a plan lists, one item after another, and yields each that is gone.

    Raises:
        ExperimentError: artifacts cannot be deleted, or another process cleans this store.
    """
    with lock("clean", "This store is being cleaned"):
        for item in plan.items:
            if item.models_only:
                deletion.delete_models(item.room)
            elif not deletion.delete_run(item.run, item.room, marked=item.why == _DELETED):
                continue
            yield item


def table(plan: Plan) -> Table:
    """What a plan lists."""
    shown = Table("id", "run", "why", box=None, pad_edge=False)
    shown.add_column("size", justify="right", no_wrap=True)
    for item in plan.items:
        shown.add_row(item.run.run_id[:8], item.run.name, item.why, decimal(item.room.bytes))
    return shown


def counted(items: Sequence[Item]) -> str:
    """How many runs and models are listed, and the room that they take, in words."""
    whole = sum(not item.models_only for item in items)
    models = sum(len(item.room.models) for item in items)
    size = sum(item.room.bytes for item in items)
    runs = f"{whole:,} {'run' if whole == 1 else 'runs'}"
    return f"{runs} and {models:,} {'model' if models == 1 else 'models'}, {decimal(size)} ({size:,} bytes)"
