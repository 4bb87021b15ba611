"""Which GPUs jobs may use, with a stand-in for nvidia-smi: there is no GPU on the machines of the tests."""

import os

import pytest

from experiments.sweeps.gpus import least_used, usable_gpus


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Makes a program of that name that does what its text says."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def make(text):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)

    return make


def test_without_the_program_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usable_gpus() == []


@pytest.mark.parametrize(
    ("selected", "usable"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("2, 0", ["2", "0"]),
        ("1,-1,0", ["1"]),
        ("GPU-8f3a,GPU-11c2", ["GPU-8f3a", "GPU-11c2"]),
    ],
)
def test_the_user_may_select_some(nvidia_smi, monkeypatch, selected, usable):
    nvidia_smi('test "$*" = "--query-gpu=index --format=csv,noheader" && printf "0\\n1\\n2\\n"')
    if selected is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selected)
    assert usable_gpus() == usable


@pytest.mark.parametrize("text", ["exit 9", "echo no devices were found >&2; exit 6", "true"])
def test_a_driver_that_does_not_answer_is_no_gpu(nvidia_smi, monkeypatch, text):
    nvidia_smi(text)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert usable_gpus() == []


def test_a_job_gets_the_gpu_that_the_fewest_use():
    assert least_used([], []) is None
    assert least_used(["0", "1"], []) == "0"
    assert least_used(["0", "1"], ["0"]) == "1"
    assert least_used(["0", "1"], ["0", "1", "0", None]) == "1"
