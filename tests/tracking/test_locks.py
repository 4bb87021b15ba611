"""The lock of a run: whose it is, and what happens when it is lost."""

import errno
import json
import os
import threading
import time

import pytest

from experiments.tracking import locks
from experiments.tracking.locks import AlreadyRunning, lock, unlock
from experiments.tracking.store import jobs_folder

OTHER = {"host": "elsewhere", "pid": 1, "started": 0}


@pytest.fixture
def touched(store, monkeypatch):
    """A store whose locks are touched all the time."""
    monkeypatch.setattr(locks, "TOUCHED_EVERY", 0.001)


def lock_file():
    (file,) = jobs_folder().glob("*-work.lock")
    return file


def wait_for_warning(caplog, text):
    """Waits until the thread that keeps the lock has warned."""
    deadline = time.monotonic() + 120
    while text not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def test_a_lock_keeps_others_out_and_is_gone_afterwards(store):
    refused = pytest.raises(AlreadyRunning, match=r"^This very run is being trained by process \d+ on ")
    with lock("work"), refused, lock("work"):
        raise AssertionError
    assert list(jobs_folder().iterdir()) == []


def test_a_lock_that_another_host_has_taken_over_stays_its_own(touched, caplog):
    with lock("work"):
        file = lock_file()
        file.with_suffix(".new").write_text(json.dumps(OTHER))
        file.with_suffix(".new").replace(file)
        wait_for_warning(caplog, "was taken over")
    assert json.loads(file.read_text()) == OTHER
    assert warnings(caplog) == [
        f"The lock {file} was taken over by process 1 on elsewhere: another process may do the same work now."
    ]
    unlock("work")
    assert file.exists()  # that host still touches it


def test_a_lock_that_was_deleted_is_said_once(touched, caplog):
    with lock("work"):
        file = lock_file()
        file.unlink()
        wait_for_warning(caplog, "was deleted")
    assert warnings(caplog) == [f"The lock {file} was deleted: another process may do the same work now."]


def test_a_lock_on_a_drive_that_fails_for_a_while_is_kept(touched, caplog, monkeypatch):
    tries = []
    kept = threading.Event()
    utime = os.utime

    def failing(file):
        tries.append(file)
        if len(tries) < 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        utime(file)
        kept.set()

    monkeypatch.setattr(locks.os, "utime", failing)
    with lock("work"):
        file = lock_file()
        assert kept.wait(120)
    assert warnings(caplog) == [
        f"The lock {file} cannot be kept: [Errno 5] Input/output error. Another host may do the same work soon."
    ]
    assert not file.exists()


def test_many_at_once_for_one_lock_meet_no_half_deleted_file(store):
    inside, most, unexpected = [], [], []

    def work():
        for _ in range(150):
            try:
                with lock("work"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except AlreadyRunning:
                pass
            except BaseException as error:
                unexpected.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexpected == []
    assert set(most) == {1}
