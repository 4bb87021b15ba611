"""Every YAML of conf/: it composes, it is built, and its head says what it is and how to run it."""

import functools
import inspect
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments import quiet_import
from experiments.config.compose import CONF_DIR, compose
from experiments.config.names import names
from experiments.config.schema import GROUPS
from experiments.config.targets import instantiate

with quiet_import():
    from experiments.training.build import build as build_components
    from experiments.training.runtime import start_runtime

FILES = sorted(CONF_DIR.rglob("*.yaml"))
OPTIONS = [str(file.relative_to(CONF_DIR).with_suffix("")) for file in FILES if file.parent.parent == CONF_DIR]
AT_LEAST = {
    "data": 5, "scale": 4, "augment": 7, "model": 8, "loss": 2, "optimizer": 8, "schedule": 5, "callbacks": 3,
    "metrics": 6, "experiment": 6, "sweep": 7,
}  # fmt: skip
#: What builders get from the run instead of a file.
RUN_VALUES = {"input_shape", "num_classes", "train_images", "learning_rate", "total_steps", "steps_per_epoch"}


@pytest.fixture(autouse=True)
def fresh_keras():
    """No name of a layer matters here."""


@pytest.fixture(scope="module")
def built(digits, tmp_path_factory):
    """For an option: its configuration on small files that need no download, their images, and all parts."""
    start_runtime(seed=0, threads=2, deterministic=True, precision="float32")
    photos = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 20, 20), dtype=np.uint8)
    table = ["path,label"]
    for name, images in zip(("cat", "dog"), pixels, strict=True):
        (photos / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(photos / name / f"{number}.png")
            table.append(f"{name}/{number}.png,{name}")
    (photos / "table.csv").write_text("\n".join(table))
    large = [f"data.path={photos}", "data.image_size=[32,32]", "data.color_mode=rgb", "scale=none"]
    places = dict.fromkeys(("mnist", "fashion_mnist", "npz"), f"data.path={digits}")
    places |= {"folder": f"data.path={photos}", "csv": f"data.path={photos}/table.csv", "mnist_5k": "data.limit=20"}

    @functools.cache
    def build(option):
        words = words_of(option)
        if option == "model/backbone":
            configuration = compose([*words, "data=folder", *large])
        else:
            configuration = compose([*words, places[compose(words).choices["data"]]])
        images = instantiate(configuration.cfg, "data")
        return configuration, images, build_components(configuration.cfg, images)

    return build


def words_of(option):
    group, _, name = option.partition("/")
    return [f"{group}=[{name}]" if group == "callbacks" else f"{group}={name}"]


def head(file):
    """The comment lines that a file begins with, without the directive to Hydra."""
    lines = file.read_text().splitlines()
    comments = lines[: next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return [line.removeprefix("#").strip() for line in comments if not line.startswith("# @package")]


def commands(file):
    """Every whole command in the head of a file; those with a word in capitals are to be filled in."""
    found = re.findall(
        r"(?:^|: )experiments train((?: [a-z][\w.]*=[\w.,\[\]]+)*)(?= \(|, |$)", "\n".join(head(file)), re.M
    )
    return [words.split() for words in found]


def test_every_group_has_its_options():
    groups = {folder.name for folder in CONF_DIR.iterdir() if folder.is_dir() and folder.name != "hydra"}
    assert groups == set(AT_LEAST) == {*GROUPS, "experiment", "sweep"}
    for group, number in AT_LEAST.items():
        assert len([option for option in OPTIONS if option.startswith(f"{group}/")]) >= number


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_built(built, option):
    configuration, images, parts = built(option)
    assert parts.model.input_shape == (None, *images.image_shape)
    assert parts.model.output_shape == (None, images.num_classes)
    assert len(parts.callbacks) == len(configuration.cfg.get("callbacks") or {})
    assert len(parts.augmentation) == len(configuration.cfg.augment)
    group, _, name = option.partition("/")
    if group == "experiment":
        assert configuration.experiment == name
    elif group == "sweep":
        assert configuration.overrides[0] == option.replace("/", "=")
    else:
        assert configuration.choices[group] == (f"[{name}]" if group in ("callbacks", "metrics") else name)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith(("model/", "experiment/"))])
def test_number_of_parameters_in_the_head_is_right(built, option):
    text = " ".join(head(CONF_DIR / f"{option}.yaml"))
    said = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) parameters", text)]
    if option.startswith("model/"):
        assert len(said) == 1
    if said:
        assert [built(option)[2].model.count_params()] == said


@pytest.mark.parametrize("option", OPTIONS)
def test_every_knob_of_our_builders_stands_in_the_file(built, option):
    cfg = built(option)[0].cfg
    nodes = [node for node in (cfg.data, cfg.scale, cfg.model, cfg.schedule) if node._target_.startswith("experiments")]
    assert len(nodes) >= 3
    for node in nodes:
        module, _, function = node._target_.rpartition(".")
        builder = getattr(__import__(module, fromlist=[function]), function)
        parameters = inspect.signature(builder).parameters
        assert set(node) - {"_target_"} == set(parameters) - RUN_VALUES
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
        # A default stands for a key that recorded configurations of earlier versions lack.
        has_default = {name for name, parameter in parameters.items() if parameter.default is not parameter.empty}
        assert has_default <= {"duplicates", "background", "resize", "test_fraction", "folds", "fold", "memory_mb"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF_DIR)))
def test_head_says_what_it_is(file):
    lines = file.read_text().splitlines()
    comments = [number for number, line in enumerate(lines) if line.startswith("#")]
    assert comments == list(range(len(comments)))
    assert 1 <= len(head(file)) <= 5
    assert len(head(file)[0]) >= 20  # all that `experiments list` shows
    assert max(map(len, lines)) <= 140


@pytest.mark.parametrize("option", OPTIONS)
def test_head_holds_the_command(option):
    group, _, name = option.partition("/")
    found = commands(CONF_DIR / f"{option}.yaml")
    assert f"{group}={name}" in found[0]
    for words in found:
        assert names(compose(words)).run


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("sweep/")])
def test_every_command_in_the_head_of_a_sweep_builds_all_its_models(option, digits):
    file = CONF_DIR / f"{option}.yaml"
    nets = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"].get("model", "conv2").split(",")
    for words in commands(file):
        data = f"data.path={digits}" if "data=mnist" in words or "experiment=one_cycle" in words else "data.limit=20"
        for net in nets:
            cfg = compose([*words, data, f"model={net}"]).cfg
            assert len(build_components(cfg, instantiate(cfg, "data")).model.layers) > len(cfg.model.filters)


def test_commands_in_the_head_of_the_default_run():
    assert commands(CONF_DIR / "config.yaml") == [[], ["model=conv3", "epochs=3"]]


def test_default_run_needs_no_download_and_no_file():
    default = compose([])
    assert default.choices["data"] == "mnist_5k"
    assert "path" not in default.cfg.data


def test_options_of_one_group_share_key_names():
    keys = {option: set(yaml.safe_load((CONF_DIR / f"{option}.yaml").read_text()) or {}) for option in OPTIONS}
    of = {group: [names for option, names in keys.items() if option.startswith(f"{group}/")] for group in AT_LEAST}
    assert set.intersection(*of["optimizer"]) == {"_target_", "learning_rate"}
    assert set.intersection(*of["data"]) == {
        "_target_",
        "validation_fraction",
        "split_seed",
        "folds",
        "fold",
        "limit",
        "duplicates",
    }
