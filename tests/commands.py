"""What tests of whole commands share."""

import os
import subprocess
import sys
from pathlib import Path

EXPERIMENTS = str(Path(sys.executable).parent / "experiments")


def experiments(*words, **env):
    """Runs `experiments train` to its end; standard output and errors in one text."""
    return subprocess.run(
        [EXPERIMENTS, "train", *words],
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def runs(store):
    """Every run of a store, in whichever experiment."""
    found = [experiment.experiment_id for experiment in store.search_experiments()]
    return store.search_runs(found) if found else []
