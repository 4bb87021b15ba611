"""What every job of a sweep needs, done once in the server that jobs are forked from; starts no runtime."""

import gc
import io

import numpy as np
import sklearn.model_selection  # noqa: F401 - imported to be there

from experiments import quiet_import

with quiet_import():
    from experiments import galleries, train
    from experiments.tracking.run import preload

preload()
galleries.samples(np.zeros((1, 28, 28, 1)), ["0"]).savefig(io.BytesIO())  # finds fonts and reads them
gc.freeze()  # or every job walks through all of it when it forgets earlier models

__all__ = ["train"]
