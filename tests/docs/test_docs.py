"""README and docs: every command composes or parses, every link leads somewhere, and the reference is that of conf/."""

import functools
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.config.configuration import further_keys
from experiments.errors import ExperimentError
from test_imports import ALLOWED, ROOMS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
NAMED_FILE = re.compile(r"#\s(?:@package _global_\n#\s)?([\w/]+\.(?:yaml|py))\b")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page):
    """The `experiments` commands of a page as lists of words, and the environment variables they are given."""
    found, variables = [], {}
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language not in ("", "bash"):
            continue
        for line in code.replace("\\\n", " ").splitlines():
            line = re.sub(r'^make train ARGS="(.*)"', r"experiments train \1", line.strip().removeprefix("$ "))
            if not re.match(r"(export |[A-Z_]+=\S+ )*(experiments |export )", line):
                continue
            words = shlex.split(line, comments=True)
            variables |= dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            if "experiments" in words:
                found.append(words[words.index("experiments") + 1 :])
    return found, variables


def write_files(page, folder):
    """Writes the files that the blocks of a page name in their first comment."""
    for _, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if name := NAMED_FILE.match(code):
            file = folder / name[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code, encoding="utf-8")


def split_options(words):
    """The overrides of a command and its `--config-dir`; `-m` and `--cfg job` change nothing that is composed."""
    words, config_dir = [word for word in words if word not in ("-m", "--cfg", "job")], None
    if "--config-dir" in words:
        place = words.index("--config-dir")
        config_dir = words[place + 1]
        del words[place : place + 2]
    return words, config_dir


def texts(override):
    """What an override may be in one job: with a sweep each of its values, with an interval both ends."""
    value = override.value()
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.get_key_element()
    if hasattr(value, "start") and not hasattr(value, "range"):
        return [f"{key}={end}" for end in (value.start, value.end)]
    return [f"{key}={text}" for text in override.sweep_string_iterator()]


def jobs(overrides):
    """Enough jobs of a sweep that each value of each override is in one of them."""
    choices = [texts(override) for override in OverridesParser.create().parse_overrides(overrides)]
    for number in range(max(map(len, choices), default=1)):
        yield [values[min(number, len(values) - 1)] for values in choices]


def sweep_entries(overrides, config_dir):
    """The overrides that a sweep file of the page adds: its grid, and each combination beside it or left out."""
    chosen = next((word.removeprefix("sweep=") for word in overrides if word.startswith("sweep=")), None)
    file = Path(config_dir or ".", "sweep", f"{chosen}.yaml")
    if not file.is_file():
        return [[]]
    sweeper = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["sweeper"]
    lists = (value for value in sweeper.values() if isinstance(value, list))
    entries = [sweeper["params"], *itertools.chain.from_iterable(lists)]
    return [[f"{key}={value}" for key, value in entry.items()] for entry in entries]


@by_page
def test_every_train_command_composes(page, compose, tmp_path, monkeypatch):
    found, variables = commands(page)
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EXPERIMENTS_ALLOW_TARGETS", variables.get("EXPERIMENTS_ALLOW_TARGETS", ""))
    for key in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        if key in variables:
            monkeypatch.setenv(key, variables[key])
    for words in found:
        if words[:1] != ["train"] or "model.dropuot=0.3" in words:
            continue
        overrides, config_dir = split_options(words[1:])
        parsed = OverridesParser.create().parse_overrides(overrides)
        if any(override.is_sweep_override() for override in parsed):
            assert "-m" in words or any(word.startswith("sweep=") for word in words), words
        for entry in sweep_entries(overrides, config_dir):
            for job in jobs([*overrides, *entry]):
                compose(*job, config_dir=config_dir)


def test_the_readme_shows_a_typo_that_is_refused(compose):
    with pytest.raises(ExperimentError, match="Did you mean dropout"):
        compose("model.dropuot=0.3")


@functools.cache
def help_of(*words):
    command = [sys.executable, "-m", "experiments.cli", *words, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@by_page
def test_every_other_command_exists_with_its_options(page):
    for words in commands(page)[0]:
        if words[:1] in (["train"], ["--help"]):
            continue
        options = [word for word in words if word.startswith("--")]
        text = help_of(words[0])
        assert [option for option in options if option not in text] == [], words


def test_the_command_line_reference_has_every_command_and_option():
    page = (ROOT / "docs/reference/command-line.md").read_text(encoding="utf-8")
    names = re.findall(r"^  (\w+) ", help_of(), re.MULTILINE)
    assert len(names) > 5
    for name in names:
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
        assert section, f"no section on {name}"
        options = set() if name == "train" else set(re.findall(r"--[\w-]+", help_of(name))) - {"--help"}
        assert {option for option in options if option not in section[1]} == set(), name


@by_page
def test_keys_in_the_text_exist(page):
    reference = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `([\w.]+)` \|", reference, re.MULTILINE))
    for file in (ROOT / "conf").glob("*/*.yaml"):
        known |= set(further_keys(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, f"{file.parent.name}."))
    known |= {key.rpartition(".")[0] for key in known}
    groups = {key.partition(".")[0] for key in known if "." in key} - {"hydra"}
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    keys = re.findall(rf"`((?:{'|'.join(groups)})\.[a-z_.]*[a-z])[`=]", text)
    assert [key for key in keys if key not in known and not key.endswith((".py", ".keras"))] == []


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(slugs) == len(set(slugs)), f"{page}: two headings have the same anchor"
    return set(slugs)


@by_page
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached():
    def linked(page):
        links = re.findall(r"\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
        return {(page.parent / link).resolve() for link in links if "://" not in link}

    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        new = set(itertools.chain.from_iterable(linked(page) for page in new)) - reached
    assert set(PAGES) - reached == set()


def test_the_map_of_the_code_has_every_module_and_the_import_rule():
    page = (ROOT / "docs/explanation/code-map.md").read_text(encoding="utf-8")
    rule = {
        room: set(re.findall(r"\w+", names)) for room, names in re.findall(r"^\| `(\w+)` \| (`.+`) \|$", page, re.M)
    }
    unlisted = ("cli", "__init__", "hydra_plugins")
    assert rule == {room: names for room, names in ALLOWED.items() if names and room not in unlisted}
    modules = {f"{room}.py" for room, files in ROOMS.items() if files[0].name == f"{room}.py"}
    packages = {f"{room}/" for room, files in ROOMS.items() if files[0].name == "__init__.py" and room != "__init__"}
    assert {name for name in modules | packages if f"`{name}`" not in page and f"/{name}`" not in page} == set()


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    prose = [line for line in lines if not line.startswith("|")]
    assert [line for line in prose if len(line) > 120] == []


def test_the_configuration_reference_is_that_of_conf():
    page = ROOT / "docs/reference/configuration.md"
    generated = runpy.run_path(str(page.with_name("generate.py")))["page"]()
    assert page.read_text(encoding="utf-8") == generated, "Run: .venv/bin/python docs/reference/generate.py"
