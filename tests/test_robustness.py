"""Robustness: what is measured, where it is recorded, and what is refused."""

import numpy as np
import pytest

from experiments import load, run
from experiments.compare.comparison import compare_runs, find_runs
from experiments.corruptions import CORRUPTIONS, corrupted
from experiments.errors import ExperimentError
from experiments.robustness import robustness
from experiments.tracking.runs import get_run

TINY = ["epochs=1", "model.filters=[8,8]", "model.dense_units=[]", "optimizer.learning_rate=0.003"]


@pytest.mark.slow
def test_a_run_gets_the_accuracies_of_all_corruptions(shared_store, digits, capsys, tmp_path, monkeypatch):
    ids = [run(["data=mnist", f"data.path={digits}", *TINY, f"seed={seed}"]).run_id for seed in (0, 1)]
    capsys.readouterr()
    (measured,) = robustness(ids[0])
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == ["corruption", "none", *CORRUPTIONS, "mean"]
    found = get_run(ids[0]).metrics
    assert found["test/accuracy"] == pytest.approx(measured.clean)
    with np.load(digits) as arrays:
        images, labels = arrays["x_test"][..., None], arrays["y_test"]
    fog = load(ids[0]).predict(corrupted("fog", images, 0)).argmax(axis=1)
    assert found["robustness/fog"] == pytest.approx((fog == labels).mean())
    mean = np.mean([found[f"robustness/{name}"] for name in CORRUPTIONS])
    assert found["robustness/mean"] == pytest.approx(mean)
    assert found["robustness/relative"] == pytest.approx(mean / measured.clean)
    assert [file.path for file in shared_store.list_artifacts(ids[0], "figures")].count("figures/robustness.png") == 1

    robustness(ids[1])
    compared = compare_runs(find_runs([], "metrics.`robustness/mean` > 0"), "robustness/mean")
    assert len(compared.rows) == 1 and len(compared.rows[0].runs) == 2
    assert any("Ranked by robustness/mean: the test set was used for selection" in note for note in compared.notes)

    load(ids[0]).model.save(tmp_path / "model.keras")
    with pytest.raises(ExperimentError, match="the run that trained it is not known, nor its data"):
        robustness(str(tmp_path / "model.keras"))
    (alone,) = robustness(str(tmp_path / "model.keras"), ["mnist", f"data.path={digits}"])
    assert alone.accuracies == measured.accuracies
    with pytest.raises(ExperimentError, match="are not those of"):
        robustness(ids[0], ["mnist_5k"])
    with pytest.raises(ExperimentError, match="There is no sweep in this store yet"):
        robustness("none-such")


def test_a_model_of_other_images_is_refused(store, tmp_path):
    import keras

    pixels = keras.Input((32, 32, 3))
    classes = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(pixels))
    keras.Model(pixels, classes).save(tmp_path / "color.keras")
    with pytest.raises(ExperimentError, match="takes images of 32 x 32 x 3 values; the corruptions are made for gray"):
        robustness(str(tmp_path / "color.keras"), ["mnist_5k"])
