"""What an MLflow server for several machines stands on: PostgreSQL, and a server that speaks S3."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

from commands import answers, free_port


def postgresql_programs():
    """The folder of PostgreSQL's programs, which Debian leaves out of the PATH; None where it is not installed."""
    found = [shutil.which("pg_ctl"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), reverse=True)]
    return next((Path(program).resolve().parent for program in found if program), None)


class PostgreSQL:
    """A cluster of its own on 127.0.0.1, with a user `mlflow` whose password is in a file.

    Args:
        folder: an empty one that the user `postgres` can enter, if this process is root, whom PostgreSQL refuses.
        passwords: the file that libpq is to read the password from, by the name of PGPASSFILE.
    """

    def __init__(self, folder, passwords):
        self.folder, self.passwords = folder, passwords
        self.port = free_port()
        password = secrets.token_urlsafe()
        passwords.touch(mode=0o600)
        passwords.write_text(f"127.0.0.1:{self.port}:*:mlflow:{password}\n")
        self.user = "postgres" if os.geteuid() == 0 else None
        own = folder / "password"
        own.write_text(password)
        if self.user:
            for place in (folder, own):
                shutil.chown(place, self.user)
        self._run("initdb", "--username=mlflow", f"--pwfile={own}", "--auth=scram-sha-256", "--no-sync")
        own.unlink()
        self.start()

    def _run(self, program, *words):
        subprocess.run(
            [postgresql_programs() / program, "--pgdata", self.folder / "data", *words],
            cwd=self.folder,
            user=self.user,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def start(self):
        options = f"-h 127.0.0.1 -p {self.port} -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "--log", self.folder / "log", "--options", options)

    def new_database(self, name):
        """Makes an empty database and returns its URI."""
        words = ["--host=127.0.0.1", f"--port={self.port}", "--username=mlflow", "--no-password", name]
        env = os.environ | {"PGPASSFILE": str(self.passwords)}
        subprocess.run([postgresql_programs() / "createdb", *words], env=env, check=True)
        return f"postgresql://mlflow@127.0.0.1:{self.port}/{name}"

    def kill(self):
        self._run("pg_ctl", "stop", "--mode=immediate")


class S3:
    """moto's server, which answers as Amazon's S3 does and keeps everything in memory."""

    def __init__(self):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not answers(port):
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self):
        self.process.kill()
        self.process.wait()
