"""What may follow on a command line."""

import pytest

from experiments.config.completion import candidates, groups


@pytest.mark.parametrize(
    ("words", "beginning", "found"),
    [
        ([], "ep", ["epochs="]),
        ([], "optimizer", ["optimizer=", "optimizer.beta_1=", "optimizer.beta_2=", "optimizer.learning_rate="]),
        (["optimizer=sgd"], "optimizer.m", ["optimizer.momentum="]),
        (["optimizer=adam"], "optimizer.m", []),
        ([], "tracking.", ["tracking.experiment=", "tracking.model=", "tracking.note=", "tracking.store_timeout=",
                           "tracking.system_metrics=", "tracking.tags="]),
        ([], "model=conv3_", ["model=conv3_batch_norm_dropout", "model=conv3_dropout", "model=conv3_wide"]),
        ([], "hydra/sweeper=r", ["hydra/sweeper=race"]),
        ([], "force=", ["force=true", "force=false"]),
        ([], "epochs=", []),
        ([], "nothing", []),
        (["model=none_such"], "ep", []),
        (["seed=1,2", "model=conv2,conv3"], "ep", ["epochs="]),
        (["--config-dir", "/no/such"], "ep", []),
    ],
)  # fmt: skip
def test_what_may_follow(words, beginning, found):
    assert candidates(words, beginning) == found


def test_options_of_the_users_own_may_follow(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny.yaml").write_text("# One layer.\ndefaults: [conv2, _self_]\nwidth: 3\n")
    assert candidates(["--config-dir", str(tmp_path)], "model=t") == ["model=tiny"]


def test_groups_may_follow():
    assert groups("s") == ["scale", "schedule", "sweep"]
