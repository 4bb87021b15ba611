"""Records what a run or a sweep reports at once, and sends it to the store in the background."""

import contextlib
import errno
import json
import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import mlflow

from experiments.tracking.delivery import JOURNAL, Delivery, read_journal
from experiments.tracking.store import AGAIN_AFTER, is_refusal, store_error, store_uri

_log = logging.getLogger(__name__)

_LONGEST_REQUEST = 10  # seconds; MLflow's client ends a request after 8


@contextlib.contextmanager
def full_disk_is_a_warning(file: Path) -> Iterator[None]:
    """Leaves out a file when the disk is full, read-only or gone; any other error is raised."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) and file.parent.exists():
            raise
        _log.warning("%s cannot be written: %s", file.name, error)
        with contextlib.suppress(OSError):
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


class Outbox:
    """Writes what a run records to its journal and sends it in a background thread, so that training never waits.

    Args:
        client: of the store.
        run_id: the run that it belongs to.
        folder: of the run.
        unsure: whether the store may already have some of the entries.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, folder: Path, *, unsure: bool) -> None:
        self._delivery = Delivery(client, run_id, folder, unsure=unsure)
        self._journal = folder / JOURNAL
        self._delivery.waiting = read_journal(folder)  # what an earlier attempt could not send
        self._news = threading.Condition()
        self._lost: Exception | None = None
        self._disk_is_full = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, kind: str, **entry: Any) -> dict[str, Any]:
        """Writes an entry to the journal and sends it in the background."""
        with self._news:
            added = self._delivery.add(kind, **entry)
            self._write_down(added)
            self._news.notify_all()
        return added

    def _write_down(self, entry: Mapping[str, Any]) -> None:
        try:
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps(entry) + "\n")
        except OSError as error:  # it is sent from memory all the same
            if not self._disk_is_full:
                _log.warning("%s cannot be written: %s", self._journal, error)
            self._disk_is_full = True

    def put_file(self, name: str, text: str) -> None:
        """Writes an artifact into the folder and sends it; when the disk is full, the run continues without it."""
        file = self._delivery.folder / name
        with full_disk_is_a_warning(file):
            file.write_text(text, encoding="utf-8", newline="")
            self.put("file", name=name)

    def close(self, status: str, patience: float) -> bool:
        """Ends the run; waits up to `patience` seconds for a store that does not answer.

        Returns:
            Whether everything has arrived.
        """
        with self._news:
            self._delivery.add_files()
        last = self.put("status", status=status)
        deadline = monotonic() + patience
        try:
            with self._news:
                while self._delivery.waiting:
                    # Once it has arrived, or has been tried at least.
                    ended = last not in self._delivery.waiting or self._delivery.tried is last
                    lost = self._lost if ended else None
                    if lost and (is_refusal(lost) or monotonic() > deadline):
                        break
                    self._news.wait(0.2 if self._lost else None)
        finally:
            with self._news:
                self._delivery.given_up = True
                self._news.notify_all()
            self._thread.join(timeout=_LONGEST_REQUEST)  # or it could still send something to a run that is reopened
            complete = not self._delivery.waiting
            if complete:
                self._journal.unlink(missing_ok=True)
            else:
                _log.warning(
                    "%s Everything not yet sent is kept in %s.",
                    store_error(store_uri(), self._lost) if self._lost else "The store does not have all of the run.",
                    self._delivery.folder,
                )
        return complete

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._delivery.waiting or self._delivery.given_up)
                if self._delivery.given_up:
                    return
            try:
                self._delivery.go()
            except Exception as error:  # nothing that a store raises may reach the training
                self._failed(error)
            else:
                if not self._delivery.given_up:
                    self._succeeded()

    def _failed(self, error: Exception) -> None:
        with self._news:
            known, self._lost = self._lost, error
        if known is None or (is_refusal(known) and not is_refusal(error)):
            _log.warning(
                "%s Training continues; everything recorded is kept and sent later.", store_error(store_uri(), error)
            )
        with self._news:
            self._news.notify_all()
            self._news.wait_for(self._is_another_try_due, timeout=AGAIN_AFTER)

    def _is_another_try_due(self) -> bool:
        return self._delivery.given_up or self._delivery.tried is not self._delivery.waiting[-1]

    def _succeeded(self) -> None:
        with self._news:
            lost, self._lost = self._lost, None
            self._news.notify_all()
        if lost:
            _log.info("The tracking store answers again and has everything.")
