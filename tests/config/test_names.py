"""What runs and variants are called."""

import shlex

import pytest

from experiments.config.compose import compose, restored
from experiments.config.names import names

#: Overrides -> what the variant is called, which is the name of a single run, too, before its seed.
NAMES = {
    "": "conv2",
    "seed=4": "conv2",
    "model=conv3 model.dropout=0.3": "conv3 dropout=0.3",
    "model.dropout=0.3 model=conv3": "conv3 dropout=0.3",
    "model=conv3 epochs=3": "conv3 epochs=3",
    "experiment=two_conv": "conv2 data=mnist",
    "optimizer=sgd optimizer.learning_rate=0.1": "conv2 optimizer=sgd learning_rate=0.1",
    "epochs=9 callbacks=early_stopping callbacks.early_stopping.patience=7": (
        "conv2 callbacks=[early_stopping] patience=7 epochs=9"
    ),
    # Early stopping monitors the objective, so it does not differ in itself.
    "objective=val_loss callbacks=[early_stopping]": "conv2 callbacks=[early_stopping] objective=val_loss",
    "data=npz data.path=/home/me/digits.npz": "conv2 data=npz",
    "tracking.note=x +tracking.tags.idea=y hydra.job.name=z force=true": "conv2",
    "optimizer.learning_rate=0.00123456789": "conv2 learning_rate=0.00123457",
    "class_weight={1:2,3:0.5}": 'conv2 class_weight={"1":2,"3":0.5}',
    "scale=standard schedule=cosine model.filters=[16,32]": "conv2 filters=[16,32] scale=standard schedule=cosine",
}


@pytest.mark.parametrize("words", NAMES)
def test_what_differs_from_the_defaults(words):
    configuration = compose(shlex.split(words))
    assert names(configuration).variant == NAMES[words]
    assert names(configuration).run == f"{NAMES[words]} seed={configuration.cfg.seed}"


def test_a_name_is_that_of_the_values_whoever_has_set_them():
    assert names(compose(["experiment=two_conv"])).variant == names(compose(["data=mnist", "model=conv2"])).variant
    assert names(compose(["model.dropout=0.0", "epochs=5"])).variant == "conv2"


def test_splits_are_replicates_of_a_variant_and_part_of_the_name_of_a_run():
    configuration = compose(["data.split_seed=4", "seed=2"])
    assert (names(configuration).variant, names(configuration).run) == ("conv2", "conv2 split_seed=4 seed=2")


def test_a_job_is_called_by_what_its_sweep_varies():
    job = compose(["model=conv3", "epochs=2", "data.limit=100", "model.dropout=0", "data.fold=1", "seed=4"])
    assert names(job, ["model.dropout", "seed"]).run == "dropout=0 seed=4"
    assert names(job, ["model.dropout", "model"]).run == "conv3 dropout=0 seed=4"
    assert names(job, ["data.fold"]).run == "fold=1 seed=4"
    assert names(job, ["seed"]).run == names(job).run == "conv3 fold=1 limit=100 epochs=2 seed=4"
    assert names(compose(["experiment=two_conv"]), ["experiment"]).run == "experiment=two_conv seed=0"


def test_long_names_are_cut_where_they_can_be_read():
    many = compose([
        "model.filters=[16,32,64]", "model.kernel_size=5", "loss.label_smoothing=0.1", "scale=standard",
        "optimizer.learning_rate=0.00123456789", "epochs=12", "batch_size=64", "seed=123",
    ])  # fmt: skip
    assert names(many).run == "conv2 filters=[16,32,64] kernel_size=5 scale=standard … seed=123"
    assert len(names(many).run) <= 80
    assert names(many).variant == (
        "conv2 filters=[16,32,64] kernel_size=5 scale=standard label_smoothing=0.1 learning_rate=0.00123457 "
        "batch_size=64 epochs=12"
    )


def test_what_is_cut_stays_unique():
    widths = ",".join(["128"] * 30)
    variants = [names(compose([f"model.dense_units=[{widths},{last}]"])).variant for last in (1, 2)]
    assert all(name.startswith("conv2 dense_units=[128,128,128,128,128,128,128,128,128,12… [") for name in variants)
    assert len({*variants}) == 2


def test_an_option_that_is_gone_still_has_a_name(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# mine\ndefaults: [conv2, _self_]\ndropout: 0.3\n")
    made = compose(["model=mine", "model.dropout=0.4"], config_dir=str(tmp_path))
    assert names(made).variant == "mine dropout=0.4"
    again = restored(made.as_yaml, [], None, made.parameters)
    assert again.variant == made.variant
    assert names(again).variant == f"mine [{made.variant[:6]}]"


def test_a_callback_that_is_added_by_its_class_may_have_any_name():
    made = compose(["+callbacks.nan._target_=keras.callbacks.TerminateOnNaN"])
    assert names(made).run == "conv2 callbacks=[nan] seed=0"
    assert names(made).variant == f"conv2 callbacks=[nan] [{made.variant[:6]}]"
