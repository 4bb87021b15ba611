"""What every job of a sweep needs, imported once by the server that jobs are forked from; starts no runtime."""

from experiments import quiet_import

with quiet_import():
    from experiments import tracking, train

tracking.import_model_flavor()

__all__ = ["train"]
