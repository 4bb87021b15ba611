"""What differs between two runs: each kind is found, and nothing else is said."""

import io
import json
import subprocess
from dataclasses import astuple

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from experiments import cli, galleries
from experiments.compare.difference import difference, draw, print_difference
from experiments.errors import ExperimentError
from experiments.galleries import disagreements
from experiments.tracking import provenance
from records import record

LABELS = np.arange(20) % 3
TAGS = {
    "git.commit": "a" * 40, "git.dirty": "false", "python": "3.11.7", "tensorflow": "2.21.0", "keras": "3.15.1",
    "mlflow": "3.17.2", "host": "here",
}  # fmt: skip
METRICS = {"test/accuracy": 0.9, "loss": 0.1, "cost/train_seconds": 10.0}
ENVIRONMENT = "# experiments-extra==1.0 from file:///here\nkeras==3.15.1\nnumpy==2.4.6\ntensorflow==2.21.0\n"


def arrays(**values):
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


def said(wrong=()):
    """The files of a run whose model is wrong on some test images, the first of them the most confidently."""
    probabilities = np.eye(3, dtype="float32")[LABELS] * 0.8 + 0.1
    for place, (row, guess) in enumerate(dict(wrong).items()):
        probabilities[row] = 0.01
        probabilities[row, guess] = 0.9 - 0.01 * place
    rows = np.array(list(dict(wrong)), int)
    images = np.stack([np.full((28, 28, 1), row, "uint8") for row in range(20)])
    names = np.array(["a", "b", "c"])
    mistakes = {
        "index": rows * 10,
        "image": images[rows],
        "label": names[LABELS[rows]],
        "predicted": names[LABELS[rows]],
    }
    return {
        "test_predictions.npz": arrays(labels=LABELS, probabilities=probabilities),
        "mistakes.npz": arrays(**mistakes),
    }


def run(store, *, tags=None, metrics=None, files=None, **more):
    files = {"environment.txt": ENVIRONMENT.encode(), **said(), **(files or {})}
    return record(
        store, tags={**TAGS, **(tags or {})}, metrics={**METRICS, **(metrics or {})}, files=files, **more
    )  # fmt: skip


PROVENANCE = {**TAGS, "platform": "Linux-6"}
WITHOUT_TAGS = dict.fromkeys(("python", "tensorflow", "keras", "mlflow"))
KINDS = {
    "a parameter": (
        {"params": {"model.dropout": "0.3"}}, [("configuration", "model.dropout", "0.0", "0.3")]),
    "a choice": ({"params": {"model": "conv3"}}, [("configuration", "model", "conv2", "conv3")]),
    "a seed": ({"params": {"seed": "1"}}, [("configuration", "seed", "0", "1")]),
    "a parameter of one": (
        {"params": {"optimizer.clipnorm": "1.0"}}, [("configuration", "optimizer.clipnorm", None, "1.0")]),
    "all data": ({"tags": {"data.sha256": "e" * 64}}, [("data", "data.sha256", "d" * 64, "e" * 64)]),
    "validation images": (
        {"tags": {"data.validation_sha256": "e"}}, [("data", "data.validation_sha256", "v" * 64, "e")]),
    "code": ({"tags": {"code.sha256": "e"}}, [("code", "code.sha256", "c", "e")]),
    "a commit": ({"tags": {"git.commit": "b" * 40}}, [("code", "git.commit", "a" * 40, "b" * 40)]),
    "an uncommitted change": (
        {"files": {"git.diff": b"+x = 1\n"}}, [("code", "git.diff", None, "102b1a33d962")]),
    "python": ({"tags": {"python": "3.12.1"}}, [("versions", "python", "3.11.7", "3.12.1")]),
    "keras": (
        {"tags": {"keras": "3.16.0"}, "files": {"environment.txt": ENVIRONMENT.replace("3.15.1", "3.16.0").encode()}},
        [("versions", "keras", "3.15.1", "3.16.0")],
    ),
    "another package": (
        {"files": {"environment.txt": ENVIRONMENT.replace("2.4.6", "2.4.7").encode()}},
        [("versions", "numpy", "2.4.6", "2.4.7")],
    ),
    "the machine": ({"tags": {"host": "there"}}, [("machine", "host", "here", "there")]),
    "the end": (
        {"status": "FAILED", "tags": {"reason": "memory"}},
        [("ending", "status", "FINISHED", "FAILED"), ("ending", "reason", None, "memory")],
    ),
    "a metric": ({"metrics": {"loss": 0.2}}, [("metrics", "loss", 0.1, 0.2)]),
    "a metric of one": ({"metrics": {"auc": 0.2}}, [("metrics", "auc", None, 0.2)]),
    "nothing": ({}, []),
    "nothing but where it is recorded": (
        {"tags": WITHOUT_TAGS, "files": {"provenance.json": json.dumps(PROVENANCE).encode()}}, []),
    "nothing but how a number is written": ({"params": {"model.dropout": "0"}}, []),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_nothing_else_is_said(store, kind):
    changes, expected = KINDS[kind]
    found = difference(run(store), run(store, **changes))
    assert [astuple(value) for value in (*found.values, *found.metrics)] == expected
    assert found.equal_metrics == 3 - (kind == "a metric")
    assert found.answers and found.answers.rows == ()
    assert found.commits is None
    assert found.uncommitted == (("", "+x = 1\n") if kind == "an uncommitted change" else ("", ""))


def test_answers_that_differ_are_counted(store):
    # Labels of the rows 3, 4, 5 and 6 are 0, 1, 2 and 0.
    first = run(store, files=said({3: 1, 4: 2, 6: 1}))
    second = run(store, files=said({5: 0, 4: 0, 6: 1}))
    answers = difference(first, second).answers
    assert (answers.number, answers.rows) == (20, (3, 4, 5))
    assert (answers.first_right, answers.second_right, answers.both_wrong) == (1, 1, 1)


def test_the_picture_has_each_image_with_both_answers(store, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        galleries, "disagreements", lambda *arguments: drawn.update(arguments=arguments) or disagreements(*arguments)
    )
    found = difference(run(store, files=said({3: 1, 4: 2, 6: 1})), run(store, files=said({5: 0, 4: 0, 6: 1})))
    draw(found, tmp_path / "differences.png")
    images, labels, (first, second), names, number = drawn["arguments"]
    assert [image.flat[0] for image in images] == [3, 4, 5]
    assert (labels.tolist(), first.tolist(), second.tolist()) == ([0, 1, 2], [1, 2, 2], [0, 0, 0])
    assert (names, number) == (["0", "1", "2"], 3)
    assert (tmp_path / "differences.png").read_bytes().startswith(b"\x89PNG")
    same = difference(run(store), run(store))
    with pytest.raises(ExperimentError, match="There is no test image to draw"):
        draw(same, tmp_path / "same.png")
    with pytest.raises(ExperimentError, match=r"none/x\.png cannot be written"):
        draw(found, tmp_path / "none" / "x.png")


@pytest.mark.parametrize(
    "changes", [{"tags": {"data.test_sha256": "other"}}, {"tags": {"data.test_sha256": None}}, {"files": said()}]
)
def test_answers_are_not_compared_where_they_cannot_be(store, changes):
    missing = {} if "tags" in changes else {"test_predictions.npz": b"damaged"}
    found = difference(run(store), run(store, tags=changes.get("tags"), files=missing))
    assert found.answers is None
    console = Console(file=io.StringIO(), width=200)
    print_difference(found, console)
    assert "Their answers for test images cannot be compared" in console.file.getvalue()


def git(folder, *words):
    settings = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    command = ["git", "-C", str(folder), *settings, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_diff_between_commits_that_are_here_is_shown(store, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    git(checkout, "init", "--quiet")
    commits = []
    for text in ("x = 1\n", "x = 2\n"):
        (checkout / "net.py").write_text(text)
        git(checkout, "add", ".")
        git(checkout, "commit", "--quiet", "--message", "change")
        commits.append(git(checkout, "rev-parse", "HEAD"))
    monkeypatch.setattr(provenance, "CHECKOUT", checkout)
    found = difference(*(run(store, tags={"git.commit": commit}) for commit in commits))
    assert found.commits.splitlines()[-3:] == ["@@ -1 +1 @@", "-x = 1", "+x = 2"]
    console = Console(file=io.StringIO(), width=80)
    print_difference(found, console)
    assert console.file.getvalue().endswith("\nChanges between the commits:\n" + found.commits)
    # A name that would be an option, or a commit that is not here.
    assert provenance.diff_of_commits("--output=x", commits[0]) is None
    assert provenance.diff_of_commits("a" * 40, commits[0]) is None


def test_the_json(store):
    first, second = run(store), run(store, params={"seed": "1"}, metrics={"loss": 0.2}, files=said({3: 1}))
    done = CliRunner().invoke(cli.command_line, ["diff", first, second, "--json"], catch_exceptions=False)
    assert json.loads(done.output) == {
        "runs": [{"run_id": run_id, "name": "conv2 seed=0"} for run_id in (first, second)],
        "differences": [{"section": "configuration", "name": "seed", "first": "0", "second": "1"}],
        "metrics": [{"name": "loss", "first": 0.1, "second": 0.2}],
        "equal_metrics": 2,
        "test_images": {"number": 20, "different": 1, "first_right": 1, "second_right": 0, "both_wrong": 0},
        "diff": {"commits": None, "uncommitted": ["", ""]},
    }


def test_what_is_refused(store, tmp_path):
    first, parent = run(store), run(store, tags={"sweep.name": "mine-123456"})
    with pytest.raises(ExperimentError, match=f"^{first} and {first[:30]} are one run, {first}\\. Name two runs\\.$"):
        difference(first, first[:30])
    with pytest.raises(ExperimentError, match=f"^{parent} is a sweep\\. Name two runs\\.$"):
        difference(first, parent)
    elsewhere = "0" * 32
    message = (
        f"^{elsewhere}: there is no such run in this store\\..* {first} is in sqlite:.*, and both must be in one store"
    )
    with pytest.raises(ExperimentError, match=message):
        difference(first, elsewhere)
