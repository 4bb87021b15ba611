"""Results are reproducible: alone, in a sweep, after a crash, and by `experiments reproduce`."""

import re
import subprocess

import mlflow
import numpy as np
import pytest

from commands import EXPERIMENTS, experiments, forked, killed_after, runs
from experiments import ExperimentError, run, train
from experiments.config.compose import compose
from experiments.reproduce import reproduce

NUMBERS = ["accuracy", "learning_rate", "loss", "val_accuracy", "val_loss"]


@pytest.fixture
def small(digits, tmp_path):
    """Overrides of a run of a second, on a file of the test's own."""
    file = tmp_path / "digits.npz"
    file.write_bytes(digits.read_bytes())
    return ["data=npz", f"data.path={file}", "epochs=1", "model.filters=[2,4]"]


@pytest.fixture
def random(small):
    """Overrides of a run whose numbers depend on all that is random: dropout, augmentation, order of the images."""
    return [*small[:2], "epochs=3", "model=conv3_dropout", "augment=shift_rotate"]


def table(output):
    """The last table: number -> verdict."""
    lines = output[output.index("number ") :].splitlines()[1:-1]
    return {line.split()[0]: " ".join(line.split()[1:]) for line in lines}


def test_a_run_is_had_again_to_the_last_bit(store, random, capsys):
    original = run(random)
    assert reproduce(f"runs:/{original.run_id}")
    output = capsys.readouterr().out
    assert "Data, code, versions and machine are the same as when the run was recorded." in output
    assert table(output) == dict.fromkeys([*NUMBERS, "weights", "predictions"], "equal")
    again, first = runs(store)
    assert output.splitlines()[-1] == (
        f"Equal: every recorded number of {first.info.run_id} was reproduced by {again.info.run_id}."
    )
    assert again.data.tags["reproduces"] == original.run_id
    assert again.data.tags["command"] == f"experiments reproduce {original.run_id}"
    assert again.info.run_name == first.info.run_name
    assert again.info.experiment_id == first.info.experiment_id
    for values in (first.data.params, again.data.params):
        assert values["loss.label_smoothing"] == "0.0"
    points = store.get_metric_history(first.info.run_id, "val_accuracy")
    assert all(len(str(point.value)) <= 10 for point in points)  # float32 and not 0.9459999799728394
    for tag in ("variant", "variant.id", "fingerprint", "weights.sha256", "predictions.sha256"):
        assert again.data.tags[tag] == first.data.tags[tag]
    assert "reproduces" not in first.data.tags and "superseded" not in first.data.tags


def test_one_changed_pixel_is_found(store, small, tmp_path, capsys):
    original = run(small)
    with np.load(tmp_path / "digits.npz") as archive:
        arrays = dict(archive)
    arrays["x_train"][1, 14, 14] ^= 255
    np.savez(tmp_path / "digits.npz", **arrays)
    assert not reproduce(original.run_id)
    output = capsys.readouterr().out
    first, again = (found.data.tags["data.sha256"][:12] for found in reversed(runs(store)))
    assert re.search(rf"^data\.sha256 +{first} +{again}$", output, re.MULTILINE)
    verdicts = table(output)
    assert verdicts["learning_rate"] == "equal"
    for name in ("loss", "val_loss", "weights", "predictions"):
        assert re.fullmatch(r"differs by up to [\d.e-]+", verdicts[name])
    assert output.splitlines()[-1].startswith(f"Different: not every number of {original.run_id} was reproduced by ")
    assert reproduce(original.run_id, tolerance=10)  # nothing here can be farther apart
    assert re.fullmatch(r"within [\d.e-]+", table(capsys.readouterr().out)["weights"])


def test_another_number_of_test_images_is_no_matter_of_tolerance(store, small, tmp_path, capsys):
    original = run(small)
    with np.load(tmp_path / "digits.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "digits.npz", **arrays | {name: arrays[name][:90] for name in ("x_test", "y_test")})
    assert not reproduce(original.run_id, tolerance=10)
    assert table(capsys.readouterr().out)["predictions"] == "different"


def test_a_pruned_run_is_had_again_as_far_as_it_came(store, random, capsys):
    original = train.run(compose(random), should_stop=lambda epoch, _: epoch == 2)
    assert reproduce(original.run_id)
    again = runs(store)[0]
    assert [point.step for point in store.get_metric_history(again.info.run_id, "loss")] == [1, 2]
    assert "pruned" not in again.data.tags
    output = capsys.readouterr().out
    assert output.count("Pruned after epoch 2") == 1  # the original
    assert output.count("Stopped after epoch 2, the last one of the original run") == 1


def test_a_diverged_run_diverges_again(store, small, capsys):
    original = run([*small, "optimizer=sgd", "optimizer.learning_rate=1e38"])
    assert original.status == "FAILED"
    assert reproduce(original.run_id)
    assert table(capsys.readouterr().out)["diverged"] == "equal"


def test_the_same_bits_alone_in_a_sweep_and_side_by_side(store, random, tmp_path):
    forked(tmp_path)(*random, "seed=2").join()
    (alone,) = runs(store)
    done = experiments("-m", *random, "seed=0,1,2", "hydra.launcher.n_jobs=2", "force=true")
    assert done.returncode == 0, done.stdout
    weights = {found.data.params["seed"]: found.data.tags["weights.sha256"] for found in runs(store)[:3]}
    assert weights["2"] == alone.data.tags["weights.sha256"]
    assert len(set(weights.values())) == 3


@pytest.mark.slow
def test_a_child_of_a_sweep_is_had_again_by_the_command(store, random):
    experiments("-m", *random, "seed=0,1", "tracking.model=false")
    child = next(found for found in runs(store) if found.data.params.get("seed") == "1")
    done = subprocess.run([EXPERIMENTS, "reproduce", child.info.run_id], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    again = runs(store)[0]
    assert again.data.tags["reproduces"] == child.info.run_id
    assert {"sweep", "job", "mlflow.parentRunId"} & set(again.data.tags) == set()


@pytest.mark.slow
def test_a_resumed_run_is_had_again(store, random, tmp_path):
    start = forked(tmp_path)
    killed_after(start(*random, "epochs=20"), 3, 0, tmp_path / "home")
    start(*random, "epochs=20").join()
    (original,) = runs(store)
    assert original.info.status == "FINISHED"
    assert reproduce(original.info.run_id)


@pytest.mark.slow
def test_a_run_on_a_server_is_had_again(server, small):
    original = run(small)
    assert reproduce(original.run_id)
    assert len(runs(mlflow.MlflowClient(server.uri))) == 2


def test_what_was_not_recorded_is_said_and_not_judged(store, small, capsys):
    original = run([*small, "tracking.model=false"])
    store.log_metric(original.run_id, "my_note", 1.0, step=1)  # of the user, no number of the training
    store.set_tag(original.run_id, "weights.sha256", "another")
    store.delete_tag(original.run_id, "predictions.sha256")
    assert not reproduce(original.run_id)
    assert table(capsys.readouterr().out)["weights"] == "different"
    assert reproduce(original.run_id, tolerance=1e-3)
    verdicts = table(capsys.readouterr().out)
    assert "my_note" not in verdicts
    assert verdicts["weights"] == verdicts["predictions"] == "not recorded, so not compared"


def test_odd_tags_are_no_trouble(store, small, capsys):
    original = run(small)
    store.set_tag(original.run_id, "command", "experiments train 'an open quote")
    store.set_tag(original.run_id, "host", "[/oops]")
    assert reproduce(original.run_id)
    assert "[/oops]" in capsys.readouterr().out


def test_a_stored_configuration_reads_nothing_of_this_machine(store, small):
    original = run(small)
    given = with_configuration(store, original.run_id, lambda text: text.replace("seed: 0", "seed: ${oc.env:HOME}"))
    assert refusal(given).endswith("it holds an interpolation, ${…}.")


def refusal(given):
    with pytest.raises(ExperimentError) as error:
        reproduce(given)
    return str(error.value)


def test_a_run_that_is_not_there(store, small):
    original = run(small)
    assert refusal(f"{original.run_id[:-1]}x") == (
        f"{original.run_id[:-1]}x: there is no such run in this store. Did you mean {original.run_id}?"
    )
    assert refusal("conv2") == (
        f"conv2: there is no such run in this store. Did you mean {original.run_id} ({original.name})?"
    )


def test_a_run_of_another_program(store):
    foreign = store.create_run("0", run_name="of another program")
    assert refusal(foreign.info.run_id) == f"{foreign.info.run_id} (of another program) is still running."
    store.set_terminated(foreign.info.run_id)
    assert refusal(foreign.info.run_id) == (
        f"{foreign.info.run_id} (of another program) was not recorded by this project."
    )


def test_a_sweep_is_not_a_run(store):
    parent = store.create_run("0", tags={"sweep.name": "seeds-123456"})
    assert refusal(parent.info.run_id) == f"{parent.info.run_id} is a sweep. Name one of its runs."


def test_data_that_are_gone(store, small, tmp_path):
    original = run(small)
    (tmp_path / "digits.npz").unlink()
    assert refusal(original.run_id).startswith(f"data.path: there is no file {tmp_path}/digits.npz.")
    assert len(runs(store)) == 1


def with_configuration(store, run_id, change):
    """Replaces a line in the recorded configuration of a run."""
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/config.yaml")
    store.log_text(run_id, change(text), "config.yaml")
    return run_id


def test_a_configuration_of_another_version(store, small):
    original = run(small)
    given = with_configuration(store, original.run_id, lambda text: text.replace("epochs:", "num_epochs:"))
    assert refusal(given).startswith(
        f"{given} has a configuration that this version does not accept: "
        "num_epochs: there is no such key. Did you mean "
    )


def test_a_configuration_with_a_target_that_runs_code(store, small, tmp_path):
    original = run(small)
    evil = f"scale:\n  _target_: os.system\n  command: touch {tmp_path}/ran\nignored:"
    given = with_configuration(store, original.run_id, lambda text: text.replace("scale:", evil, 1))
    assert "_target_=os.system" in refusal(given)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_refusals_end_with_status_2(store):
    done = subprocess.run([EXPERIMENTS, "reproduce", "nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "experiments: nothing: there is no such run in this store.\n"
