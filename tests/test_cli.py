"""The command `experiments`, in processes of its own: what it prints, its exit status, and what it leaves behind."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli
from experiments.config.compose import CONF_DIR
from experiments.tracking.store import jobs_folder

EXPERIMENTS = str(Path(sys.executable).parent / "experiments")
COMMANDS = [
    "train", "race", "list", "ui", "reproduce",
    "compare", "runs", "sweeps", "diff",
    "predict", "draw", "register", "export", "ensemble", "robustness", "sync", "clean",
]  # fmt: skip
HEAVY = ["keras", "matplotlib", "mlflow", "sklearn", "tensorflow"]


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here builds a net in this process."""


@pytest.fixture
def here(tmp_path):
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def experiments(*words, cwd, **env):
    return subprocess.run(
        [EXPERIMENTS, *words], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )


# Commands that import nothing heavy

LIGHT = """
import json, sys
from experiments import cli
sys.argv = ["experiments", *json.loads(sys.argv[1])]
try:
    cli.main()
finally:
    loaded = sorted(set({heavy}) & set(sys.modules))
    print(f"loaded {{loaded}}")
"""


def light(*words, cwd):
    """Exit status, output and errors of a command that must not import what is heavy."""
    script = LIGHT.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)], cwd=cwd, capture_output=True, text=True, check=False
    )
    output, _, loaded = done.stdout.rpartition("loaded ")
    assert loaded == "[]\n", done.stderr
    assert not list(cwd.iterdir())
    return done.returncode, output, done.stderr


def test_help_names_every_command(here):
    status, output, errors = light("--help", cwd=here)
    assert (status, errors) == (0, "")
    assert re.findall(r"^  (\w+) ", output, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "experiments: Missing command. Try: experiments --help"),
        (["cmpare"], "experiments: No such command 'cmpare'. Did you mean 'compare'? Try: experiments --help"),
        (
            ["compare", "--metrics", "loss"],
            "experiments compare: No such option '--metrics'. Did you mean '--metric'? Try: experiments compare --help",
        ),
        (["predict", "last"], "experiments predict: Missing argument 'IMAGE...'. Try: experiments predict --help"),
        (
            ["predict", "last", "1.png", "--json", "--csv"],
            "experiments predict: --json and --csv cannot be combined. Try: experiments predict --help",
        ),
        (
            ["ui", "--port", "0"],
            "experiments ui: Invalid value for '--port': 0 is not in the range 1<=x<=65535. Try: experiments ui --help",
        ),
        (
            ["export", "last", "data.limit=20", "--format", "onnx", "--out", "here"],
            "experiments export: data.limit=20: overrides need --data. Try: experiments export --help",
        ),
        (
            ["robustness", "last", "4197d91d", "best:depth"],
            "experiments robustness: 4197d91d best:depth: only one is taken; overrides such as data.path=FILE may "
            "follow. Try: experiments robustness --help",
        ),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused_in_one_line(here, words, message):
    assert light(*words, cwd=here) == (2, "", f"{message}\n")


def test_list_shows_every_option_of_every_group(here):
    status, output, errors = light("list", cwd=here)
    assert (status, errors) == (0, "")
    shown, group = [], ""
    for line in output.splitlines():
        if line.startswith("  "):
            option, what = line.split(maxsplit=1)
            assert len(what) > 10
            shown.append(f"{group}/{option}")
        else:
            group = line
    files = sorted(CONF_DIR.glob("*/**/*.yaml"), key=lambda file: (file.parent.relative_to(CONF_DIR).as_posix(), file))
    assert shown == [file.relative_to(CONF_DIR).with_suffix("").as_posix() for file in files]


def test_list_shows_the_options_of_a_group_inside_another_one(here):
    status, output, _ = light("list", "hydra/sweeper/pruner", cwd=here)
    assert status == 0
    group, *lines = output.splitlines()
    assert group == "hydra/sweeper/pruner"
    assert [line.split()[0] for line in lines] == ["hyperband", "median", "none"]


def test_list_of_one_group_shows_the_first_comment_of_each_file(here):
    status, output, errors = light("list", "scale", cwd=here)
    assert (status, errors) == (0, "")
    width = max(len(file.stem) for file in CONF_DIR.glob("*/**/*.yaml"))
    first = {file.stem: file.read_text().splitlines()[0][2:] for file in sorted((CONF_DIR / "scale").glob("*.yaml"))}
    lines = [line for line in output.splitlines() if not line.startswith(" " * (width + 4))]
    assert lines == ["scale", *(f"  {option:{width}}  {what}" for option, what in first.items())]
    # The directive of a file that is packaged elsewhere is no description.
    experiments = light("list", "experiment", cwd=here)[1]
    assert "@package" not in experiments
    assert re.search(r"^  two_conv +The small model of many MNIST tutorials", experiments, re.MULTILINE)


def test_list_of_one_group_shows_the_arguments_of_keras_that_no_file_lists(here):
    output = " ".join(light("list", "optimizer", cwd=here)[1].split())
    assert (
        "further keys: clipnorm, clipvalue, ema_momentum, ema_overwrite_frequency, global_clipnorm, "
        "gradient_accumulation_steps, loss_scale_factor, use_ema, weight_decay"
    ) in output
    assert "early_stopping.start_from_epoch" in light("list", "callbacks", cwd=here)[1]
    assert "further keys" not in light("list", cwd=here)[1]


def test_list_shows_options_of_the_users_own(here, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text("# One layer.\ndefaults: [conv2, _self_]\n")
    output = light("list", "model", "--config-dir", str(tmp_path / "mine"), cwd=here)[1]
    assert re.search(r"^  tiny +One layer\.$", output, re.MULTILINE)


GROUPS = (
    "augment, callbacks, data, experiment, hydra/launcher, hydra/sweeper, hydra/sweeper/pruner, hydra/sweeper/sampler, "
    "loss, metrics, model, optimizer, scale, schedule, sweep"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "nope"], f"nope: there is no such group. Allowed: {GROUPS}."),
        (
            ["list", "optimiser"],
            f"optimiser: there is no such group. Did you mean optimizer? Allowed: {GROUPS}.",
        ),
        (["list", "--config-dir", "/no/such"], "--config-dir /no/such: there is no such folder."),
    ],
)
def test_list_of_what_is_not_there(here, words, message):
    assert light(*words, cwd=here) == (2, "", f"experiments: {message}\n")


def test_cfg_job_prints_the_configuration(here):
    status, output, errors = light("train", "--cfg", "job", "model=conv3", "epochs=2", cwd=here)
    assert (status, errors) == (0, "")
    assert output.startswith("epochs: 2\nbatch_size: 32\n")
    assert "\nmodel:\n  _target_: experiments.models.convnet\n  filters:\n  - 32\n  - 64\n  - 128\n" in output
    assert "hydra" not in output


def test_train_help_lists_groups_and_options(here):
    status, output, errors = light("train", "--help", cwd=here)
    assert (status, errors) == (0, "")
    assert "\noptimizer: adam, adamw, lion, muon, nadam, rmsprop, schedule_free_adamw, sgd\n" in output
    assert "\nlearning_rate" not in output


# What is refused

CONVNETS = (
    "backbone, conv2, conv2_batch_norm, conv3, conv3_batch_norm_dropout, conv3_dropout, conv3_wide, conv5, "
    "conv5_small, sequential"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle=conv3"], "modle: there is no such key. Did you mean model?"),
        (["model=conv4"], f"model=conv4: there is no such option. Did you mean conv5? Allowed: {CONVNETS}."),
        (["epochs=0"], "epochs=0 is refused: it must be a whole number of at least 1."),
        (["epochs=[1"], "epochs=[1: this is no override. Write key=value; quote a value with special characters."),
        (
            ["seed=1,2", "epochs=3"],
            "seed=1,2: this is a sweep of several runs. Start it with: experiments train -m seed=1,2 epochs=3",
        ),
        (["--config-dir", "/no/such"], "--config-dir /no/such: there is no such folder."),
        (
            ["+hydra.callbacks.x._target_=os.system"],
            "hydra.callbacks.x._target_=os.system is refused. Under hydra only hydra.* and hydra_plugins.* may stand.",
        ),
        (
            ["--cfg", "job", "seed=-1"],
            "seed=-1 is refused: it must be a whole number of at least 0 and below 4294967296.",
        ),
        (
            ["--config-name", "other"],
            "--config-name is not for this command. Use --config-dir.",
        ),
        pytest.param(
            ["data.limit=9"],
            "data.limit=9 is fewer than the 10 classes. Give data.limit=10 or more, or null for all images.",
            marks=pytest.mark.slow,  # only the data can tell
        ),
    ],
)
def test_refused_input(here, tmp_path, words, message):
    store = tmp_path / "store" / "mlflow.db"
    done = experiments("train", *words, cwd=here, MLFLOW_TRACKING_URI=f"sqlite:///{store}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"experiments: {message}\n")
    assert not store.parent.exists()
    assert not list(here.iterdir())


def test_unknown_flag_is_refused(here):
    done = experiments("train", "--epochs", "3", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("experiments train: error: unrecognized arguments: --epochs\n")


# Trainings


@pytest.fixture
def digits_words(digits):
    return ["data=npz", f"data.path={digits}", "tracking.model=false"]


def only_run(store):
    experiments = store.search_experiments()
    (run,) = store.search_runs([experiment.experiment_id for experiment in experiments])
    return run


@pytest.mark.slow
def test_output_that_goes_to_a_file(here, store, digits_words):
    done = experiments("train", *digits_words, "epochs=2", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"[\x20-\x7e\n]+", done.stdout)
    run = only_run(store)
    name = "conv2 data=npz epochs=2 seed=0"
    number = r"\d+\.\d+"
    values = rf"loss {number}  accuracy {number}  val_loss {number}  val_accuracy {number}  {number} s"
    expected = [
        rf"{name} \({run.info.run_id}\)",
        rf"Epoch 1/2  {values}",
        rf"Epoch 2/2  {values}",
        rf"Test accuracy {number} % \(95 % confidence interval {number} to {number} %, largest class {number} %, "
        rf"chance {number} %\), "
        rf"best epoch [12] of 2, {number} s",
        rf"Recorded as {name} \({run.info.run_id}\)",
        r"View it with: \S*experiments ui",
    ]
    lines = [line for line in done.stdout.splitlines() if not line.startswith("This processor multiplies bfloat16")]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    assert not list(here.iterdir())
    assert run.data.tags["command"] == f"experiments train {' '.join(digits_words)} epochs=2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "reason", "level", "said"),
    [
        # After Ctrl-C the console says in words how to resume instead.
        (signal.SIGINT, 130, "interrupted", "DEBUG", "experiments: interrupted\n"),
        (signal.SIGTERM, 143, "signal", "ERROR", ""),
    ],
)
def test_signal_ends_a_training_as_killed(here, store, digits_words, number, status, reason, level, said):
    words = [EXPERIMENTS, "train", *digits_words, "epochs=1000"]
    with subprocess.Popen(words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line.startswith("Epoch 1/1000  ") for line in process.stdout)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (status, said)
    run = only_run(store)
    folder = jobs_folder() / run.info.run_id
    assert (folder / "job.log").read_text().splitlines()[-1].endswith(f" {level} KILLED: {number.name}")
    shutil.rmtree(folder)
    assert run.info.status == "KILLED"
    assert run.info.end_time >= run.info.start_time
    assert (run.data.tags["reason"], run.data.tags["failure"]) == (reason, number.name)


def test_diverged_training_is_a_failed_run(store, digits_words, monkeypatch, capfd):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # the command sets it
    before = signal.getsignal(signal.SIGTERM)
    words = ["epochs=2", "optimizer=sgd", "optimizer.learning_rate=1e38"]
    monkeypatch.setattr(sys, "argv", ["experiments", "train", *digits_words, *words])
    with pytest.raises(SystemExit) as exit_status:
        cli.main()
    signal.signal(signal.SIGTERM, before)
    assert exit_status.value.code == 1
    run = only_run(store)
    assert (run.info.status, run.data.tags["diverged"]) == ("FAILED", "true")
    output, errors = capfd.readouterr()
    assert (output.splitlines()[-1], errors) == (f"FAILED: {run.data.tags['failure']}", "")


@pytest.mark.slow
def test_crash_shows_its_traceback(here, tmp_path, store, digits_words):
    (tmp_path / "my_nets.py").write_text("def build(**arguments):\n    raise RuntimeError('a bug of the user')\n")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text("_target_: my_nets.build\n")
    allowed = {"EXPERIMENTS_ALLOW_TARGETS": "my_nets", "PYTHONPATH": str(tmp_path)}
    words = ["--config-dir", str(tmp_path / "mine"), "model=own", *digits_words]
    done = experiments("train", *words, cwd=here, **allowed)
    assert (done.returncode, done.stdout) == (1, "")
    assert "\nTraceback (most recent call last):\n" in done.stderr
    assert f'File "{tmp_path / "my_nets.py"}", line 2, in build' in done.stderr
    assert done.stderr.endswith("RuntimeError: a bug of the user\n")
    assert [experiment.name for experiment in store.search_experiments()] == ["Default"]
    assert not list(here.iterdir())


@pytest.mark.slow
def test_a_terminal_gets_a_progress_bar_and_every_epoch_once(here, tmp_path):
    outer, inner = pty.openpty()
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/store/mlflow.db", "TERM": "xterm"}
    words = [EXPERIMENTS, "train", "data.limit=100", "epochs=2", "tracking.model=false"]
    with subprocess.Popen(words, cwd=here, stdout=inner, stderr=inner, env=environment) as training:
        os.close(inner)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while read := os.read(outer, 65536):
                shown += read
    os.close(outer)
    text = shown.decode()
    assert training.returncode == 0
    assert text.startswith("Loading TensorFlow …\r\n")
    assert re.search(r"epoch +steps +loss +val_loss +accuracy +val_accuracy +time", re.sub(r"\x1b\[\d*m", "", text))
    assert re.findall(r"(\d/2) +4/4(?: +[\d.]+){5} s\r\n", text) == ["1/2", "2/2"]
    assert "Test accuracy" in text


# TAB completion


#: Shell -> how it starts without the user's settings, and what turns completion on.
SHELLS = {
    "bash": (["--norc", "--noprofile"], 'eval "$(_EXPERIMENTS_COMPLETE=bash_source experiments)"'),
    "zsh": (["-f"], 'autoload -Uz compinit; compinit -D; eval "$(_EXPERIMENTS_COMPLETE=zsh_source experiments)"'),
    "fish": (["--no-config"], "_EXPERIMENTS_COMPLETE=fish_source experiments | source"),
}
#: What is typed -> what it becomes.
COMPLETED = {
    "experiments comp\tlast": "experiments compare last",
    "experiments compare --equal\t0.01": "experiments compare --equal-within 0.01",
    "experiments train model=conv3_w\tseed=1": "experiments train model=conv3_wide seed=1",
    "experiments train model=conv3 model.dr\t0.3": "experiments train model=conv3 model.dropout=0.3",
    "experiments list opt\t-h": "experiments list optimizer -h",
}
ANSWER = rb"\[(experiments [^\x1b]*)\]\r\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_in_a_real_shell(here, tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    arguments, set_up = SHELLS[shell]
    outer, inner = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "HOME": str(tmp_path)}
    environment["PATH"] = f"{Path(EXPERIMENTS).parent}:{os.environ['PATH']}"
    shown = b""
    with subprocess.Popen(
        ["setsid", "--ctty", shell, *arguments, "-i"],
        cwd=here,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=environment,
    ) as process:
        os.close(inner)
        # A hangup throws away what has not been read, so the shell lives until its last line has arrived.
        for keys, answer in [
            (f'{set_up}; echo "[set ""up]"', rb"\[set up\]\r\n"),
            *((f'{line}\x01echo "[\x05]"', ANSWER) for line in COMPLETED),
        ]:
            os.write(outer, f"{keys}\n".encode())
            before = len(shown)
            while not re.search(answer, shown[before:]):
                shown += os.read(outer, 65536)
        process.kill()
    os.close(outer)
    assert [line.decode() for line in re.findall(ANSWER, shown)] == list(COMPLETED.values())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script(here, shell):
    done = experiments(cwd=here, _EXPERIMENTS_COMPLETE=f"{shell}_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_EXPERIMENTS_COMPLETE={shell}_complete" in done.stdout
    assert ("compopt -o nospace" in done.stdout) == (shell == "bash")
