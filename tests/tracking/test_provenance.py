"""What a run records of its code and packages, with real repositories; and texts whose secrets are hidden."""

import getpass
import json
import logging
import os
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from experiments.tracking import provenance as module
from experiments.tracking.provenance import as_file, environment, provenance, uncommitted
from experiments.tracking.secrets import WithoutSecrets, without_secrets


def git(folder, *arguments, stdin=b""):
    done = subprocess.run(["git", "-C", str(folder), *arguments], input=stdin, capture_output=True, check=True)
    return done.stdout.decode()


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def commit(folder):
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")


def tree(folder):
    """Every file of a work tree: its content and whether it is executable, or what it links to."""
    files = (file for file in folder.rglob("*") if ".git" not in file.parts and not file.is_dir())
    return {
        str(file.relative_to(folder)): os.readlink(file)
        if file.is_symlink()
        else (file.read_bytes(), os.access(file, os.X_OK))
        for file in files
    }


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """A git that knows nobody's settings, and finds no repository around the test's folder."""
    file = tmp_path / "gitconfig"
    file.write_text("[user]\nname = Ada\nemail = ada@example.org\n[init]\ndefaultBranch = main\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return file


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of three files, all committed."""
    folder = tmp_path / "checkout"
    write(folder, {"a.py": b"one\ntwo\nthree\n", "b.py": b"b\n", ".gitignore": b"*.log\n"})
    git(folder, "init", "--quiet")
    commit(folder)
    monkeypatch.setattr(module, "CHECKOUT", folder)
    return folder


def test_the_diff_of_a_changed_and_a_new_file(checkout):
    write(checkout, {"a.py": b"one\n2\nthree\n", "new.py": b"new\n", "job.log": b"ignored\n"})
    (checkout / "b.py").unlink()
    lines = uncommitted().splitlines()
    assert [line for line in lines if not line.startswith("index ")] == [
        "diff --git a/a.py b/a.py",
        "--- a/a.py",
        "+++ b/a.py",
        "@@ -1,3 +1,3 @@",
        " one",
        "-two",
        "+2",
        " three",
        "diff --git a/b.py b/b.py",
        "deleted file mode 100644",
        "--- a/b.py",
        "+++ /dev/null",
        "@@ -1 +0,0 @@",
        "-b",
        "diff --git a/new.py b/new.py",
        "new file mode 100644",
        "--- /dev/null",
        "+++ b/new.py",
        "@@ -0,0 +1 @@",
        "+new",
    ]


UGLY_SETTINGS = """
[color]
ui = always
[diff]
noprefix = true
context = 0
external = false
renames = copies
[diff "upper"]
textconv = tr a-z A-Z <
[core]
attributesFile = {attributes}
quotePath = false
"""


@pytest.mark.parametrize("ugly", [False, True])
def test_git_apply_makes_the_same_tree_and_the_index_stays(checkout, tmp_path, settings, ugly):
    write(
        checkout,
        {
            "deleted.py": b"x\n" * 20,
            "moved.py": b"y\n" * 20,
            "image.png": bytes(range(256)) * 20,
            "windows.py": b"one\r\ntwo\r\n",
            "file": b"will be a folder\n",
            "script.sh": b"echo\n",
            "long.py": b"".join(b"%d\n" % number for number in range(100)),
        },
    )
    commit(checkout)
    git(tmp_path, "clone", "--quiet", "checkout", "clone")
    if ugly:
        (tmp_path / "attributes").write_text("*.py diff=upper\n")
        settings.write_text(settings.read_text() + UGLY_SETTINGS.format(attributes=tmp_path / "attributes"))
    write(
        checkout,
        {
            "staged.py": b"staged\n",
            "image.png": bytes(range(255, -1, -1)) * 20,
            "windows.py": b"one\r\n2\r\n",
            "long.py": b"".join(b"%d\n" % number for number in range(100) if number % 40),
            "new/binary.cfg": b"\0\1\2" * 100,
            "new/empty.py": b"",
            "new/no end of line.yaml": b"no end",
            "new/größe ä.yaml": "größe\n".encode(),
            ":(top)*.py": b"a name that git could take for a pattern\n",
        },
    )
    git(checkout, "add", "staged.py")
    (checkout / "staged.py").write_bytes(b"changed after that\n")
    (checkout / "deleted.py").unlink()
    (checkout / "moved.py").rename(checkout / "new" / "moved.py")
    (checkout / "file").unlink()
    write(checkout, {"file/inside.py": b"inside\n"})
    (checkout / "script.sh").chmod(0o755)
    (checkout / "link.py").symlink_to("nowhere")
    before = git(checkout, "status", "--porcelain"), (checkout / ".git" / "index").read_bytes()
    diff = uncommitted()
    assert (git(checkout, "status", "--porcelain"), (checkout / ".git" / "index").read_bytes()) == before
    git(tmp_path / "clone", "apply", stdin=diff.encode())
    assert tree(tmp_path / "clone") == tree(checkout)


def test_what_is_neither_code_nor_configuration_is_only_named(checkout):
    write(checkout, {"id_rsa": b"a key", "kaggle.json": b"another key", "new.py": b"new\n"})
    diff = uncommitted()
    assert "+new\n" in diff and "key" not in diff
    assert diff.endswith("# Not in this diff: 2 untracked, such as 'kaggle.json'.\n")


def test_nothing_uncommitted(checkout):
    write(checkout, {"job.log": b"ignored\n"})
    assert uncommitted() == ""


def test_a_change_as_late_as_the_index_is_found(checkout):
    git(checkout, "config", "core.trustctime", "false")
    written = (checkout / "b.py").stat().st_mtime_ns
    write(checkout, {"b.py": b"c\n"})
    for file in (checkout / "b.py", checkout / ".git" / "index"):
        os.utime(file, ns=(written, written))
    assert uncommitted().endswith("@@ -1 +1 @@\n-b\n+c\n")


def test_without_checkout(monkeypatch):
    monkeypatch.setattr(module, "CHECKOUT", None)
    assert uncommitted() == ""
    assert "git.commit" not in provenance()


def test_without_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    assert uncommitted() == ""
    assert "git.commit" not in provenance()


def test_without_git(checkout, monkeypatch):
    write(checkout, {"new.py": b"new\n"})
    monkeypatch.setenv("PATH", str(checkout))
    assert uncommitted() == ""
    assert "git.commit" not in provenance()


@pytest.mark.parametrize("staged", [False, True])
def test_without_any_commit(tmp_path, monkeypatch, staged):
    folder = tmp_path / "fresh"
    write(folder, {"new.py": b"new\n"})
    git(folder, "init", "--quiet")
    if staged:
        git(folder, "add", "new.py")
    monkeypatch.setattr(module, "CHECKOUT", folder)
    assert uncommitted().endswith("--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+new\n")
    assert "git.commit" not in provenance()


def test_a_folder_of_a_bigger_repository(tmp_path, monkeypatch):
    folder = tmp_path / "all" / "part"
    write(tmp_path / "all", {"part/a.py": b"a\n", "other/o.py": b"o\n"})
    git(tmp_path / "all", "init", "--quiet")
    commit(tmp_path / "all")
    git(tmp_path, "clone", "--quiet", "all", "clone")
    monkeypatch.setattr(module, "CHECKOUT", folder)
    write(tmp_path / "all", {"other/o.py": b"changed\n", "other/new.py": b"new\n"})
    assert uncommitted() == ""
    assert provenance()["git.dirty"] == "false"
    write(folder, {"a.py": b"changed\n", "sub/new.py": b"new\n"})
    git(folder, "config", "diff.relative", "true")
    git(tmp_path / "clone" / "part", "apply", stdin=uncommitted().encode())
    assert tree(tmp_path / "clone" / "part") == tree(folder)
    assert tree(tmp_path / "clone" / "other") == {"o.py": (b"o\n", False)}


def test_a_second_work_tree(checkout, tmp_path, monkeypatch):
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "second"))
    write(checkout, {"new.py": b"of the first\n"})
    monkeypatch.setattr(module, "CHECKOUT", tmp_path / "second")
    assert uncommitted() == ""
    write(tmp_path / "second", {"new.py": b"of the second\n"})
    assert uncommitted().endswith("+of the second\n")


def test_a_long_diff_is_cut_at_the_end_of_a_line(checkout):
    write(checkout, {"a.py": b"".join(b"line %03d\n" % number for number in range(200))})
    diff = uncommitted()
    assert len(diff) > 1500 and uncommitted(limit=len(diff)) == diff
    kept, note = uncommitted(limit=1000).rsplit("\n", 2)[:2]
    assert 1000 - len("+line 000\n") < len(f"{kept}\n") <= 1000
    assert diff.startswith(f"{kept}\n+line ")
    assert note == f"# Not in this diff: {len(diff) - len(kept) - 1} bytes that were cut here."


def test_the_largest_untracked_files_are_left_out_first(checkout):
    write(checkout, {"weights.bin": b"w" * 500, "more.bin": b"m" * 400, "small.py": b"small\n"})
    diff = uncommitted(limit=300)
    assert diff.splitlines()[-2:] == ["+small", "# Not in this diff: 2 untracked, such as 'weights.bin'."]
    git(checkout, "apply", "--check", "--reverse", stdin=diff.encode())
    write(checkout, {"a.py": b"".join(b"line %03d\n" % number for number in range(100))})
    note = uncommitted(limit=300).splitlines()[-1]
    assert note.startswith("# Not in this diff: 2 untracked, such as 'weights.bin' and ")
    assert note.endswith(" bytes that were cut here.")


def test_a_repository_inside_is_only_named(checkout):
    write(checkout, {"inside/new.py": b"new\n"})
    git(checkout / "inside", "init", "--quiet")
    assert uncommitted() == "# Not in this diff: 1 untracked, such as 'inside/'.\n"


def test_characters_that_are_not_utf8(checkout):
    write(checkout, {"b.py": b"caf\xe9\n"})
    assert uncommitted().endswith("-b\n+caf\ufffd\n")


def test_a_git_that_fails_is_told_of(checkout, caplog):
    write(checkout, {"b.py": b"c\n"})
    (checkout / ".git" / "index").write_bytes(b"spoiled")
    assert uncommitted() == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith("Uncommitted changes are not recorded: ") and "index" in caplog.messages[0]


def test_the_tags_of_a_checkout(checkout):
    tags = provenance()
    assert list(tags) == ["host", "pid", "mlflow.user", "git.commit", "git.dirty"]
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["git.commit"] == git(checkout, "rev-parse", "HEAD").strip()
    assert (tags["pid"], tags["git.dirty"]) == (os.getpid(), "false")
    file = json.loads(as_file(tags))
    assert list(file) == [*tags, "platform", "python", "tensorflow", "keras", "mlflow"]
    assert (file["keras"], file["git.commit"]) == (version("keras"), tags["git.commit"])
    write(checkout, {"new.py": b"new\n"})
    assert provenance()["git.dirty"] == "true"


def test_environment_is_a_file_for_pip():
    found = [Requirement(line) for line in environment().splitlines() if not line.startswith("#")]
    names = [each.name for each in found]
    assert [str(each.specifier) for each in found] == [f"=={version(name)}" for name in names]
    assert {"pip", "keras", "mlflow"} <= set(names) and "experiments" not in names
    assert len(set(names)) == len(names)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package into a folder of the test's own, which alone is looked into; returns what environment() says."""

    def install(folder, name, release, direct_url=None):
        info = tmp_path / folder / f"{name}-{release}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
        if direct_url:
            (info / "direct_url.json").write_text(json.dumps(direct_url))

    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    environment.cache_clear()
    yield install
    environment.cache_clear()


def test_environment_has_a_package_once_and_sorted(install):
    install("first", "Zed", "1.0")
    install("first", "a_b", "2.0")
    install("second", "A-B", "1.0")
    install("second", "experiments", "0.1.0")
    install("second", "middle", "3.0")
    assert environment() == "a_b==2.0\nmiddle==3.0\nZed==1.0\n"


def test_environment_leaves_out_the_rest_of_an_interrupted_installation(install, tmp_path):
    install("first", "whole", "2.0")
    for folder, metadata in [
        ("~hole-1.0.dist-info", "Metadata-Version: 2.1\nName: whole\nVersion: 1.0\n"),
        ("~one-1.0.dist-info", "Metadata-Version: 2.1\nName: gone\nVersion: 1.0\n"),
        ("blank-1.0.dist-info", ""),
    ]:
        write(tmp_path / "first", {f"{folder}/METADATA": metadata.encode()})
    (tmp_path / "first" / "empty-1.0.dist-info").mkdir()
    assert environment() == "whole==2.0\n"


@pytest.mark.parametrize(
    ("direct_url", "source"),
    [
        ({"url": "file:///home/ada/pack", "dir_info": {"editable": True}}, "file:///home/ada/pack"),
        ({"url": "https://example.org:8443/pack-1.0.whl"}, "https://example.org:8443/pack-1.0.whl"),
        ({"url": "https://ada:pass@example.org/pack-1.0.whl"}, "https://example.org/pack-1.0.whl"),
        ({"url": "https://token@example.org/pack-1.0.whl?sig=abc#sha256=1"}, "https://example.org/pack-1.0.whl"),
        (
            {"url": "https://token@example.org/p.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
            "git+https://example.org/p.git@12ab",
        ),
    ],
)
def test_environment_tells_what_came_from_elsewhere(install, direct_url, source):
    install("first", "pack", "1.0", direct_url)
    assert environment() == f"# pack==1.0 from {source}\n"


@pytest.fixture
def secrets(monkeypatch):
    """Sets environment variables, and only these could be secrets."""
    for name in set(os.environ) - {"HOME", "PATH"}:
        monkeypatch.delenv(name)

    def secrets(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ada:pass@example.org/x", "https://ada:***@example.org/x"),
        ("HTTPS://ada:x@example.org", "HTTPS://ada:***@example.org"),
        ("'postgresql+psycopg2://ada:p%40ss@db:5432/runs'", "'postgresql+psycopg2://ada:***@db:5432/runs'"),
        ("postgresql://ada:p@ss@db/runs", "postgresql://ada:***@db/runs"),
        ("postgresql://ada:@p@ss@db/runs", "postgresql://ada:***@db/runs"),
        ("postgresql://ada:p/a?s#s@db/runs?x=y", "postgresql://ada:***@db/runs?x=y"),
        ("postgresql://ada:12345@db/runs", "postgresql://ada:***@db/runs"),
        ("sqlite://ada:it's:me@/file.db", "sqlite://ada:***@/file.db"),
        ("redis://:pass@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
        ("http://a:b@h,http://c:d@h and amqp://e:f@h", "http://a:***@h,http://c:***@h and amqp://e:***@h"),
        ('{"a":"http://ada:pass@h","b":"me@example.org"}', '{"a":"http://ada:***@h","b":"me@example.org"}'),
        ("['http://ada:pass@h','me@example.org']", "['http://ada:***@h','me@example.org']"),
        ("https://ghp_token@github.com/a/b.git", "https://***@github.com/a/b.git"),
        ("git+https://ghp_token@github.com/a/b@main", "git+https://***@github.com/a/b@main"),
        ("https://ghp_token:@github.com/a", "https://***:@github.com/a"),
        ("https://ghp_token:x-oauth-basic@github.com/a", "https://***:***@github.com/a"),
        ("https://oauth2:ghp_token@github.com/a", "https://oauth2:***@github.com/a"),
    ],
)
def test_what_is_secret_in_a_uri(secrets, text, shown):
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "epoch 3: loss 0.5",
        "me@example.org, ada:you@example.org",
        "mailto:me@example.org",
        "git@github.com:ada/experiments.git",
        "ssh://git@github.com/ada/experiments.git",
        "postgresql://ada@db/runs",
        "sqlite:////home/ada/mlruns/mlflow.db",
        "sqlite:///C:\\Users\\ada@work\\mlflow.db",
        "file:///home/ada@work/mlruns",
        "file://C:/Users/ada@work",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "http://localhost:5000/users/me@example.org",
        "http://localhost:5000?user=me@example.org",
        "['http://localhost:5000','me@example.org']",
        '{"a":"http://localhost:5000","b":"me@example.org"}',
        "http://[::1]:5000/@ada",
        "https://example.org/a:b@c",
        "https://medium.com/@ada:8",
        "https://example.org,me@example.org",
        "<https://example.org>:me@example.org",
        "models:/classifier@champion",
        "ada@host:~$ a://b: c@d",
    ],
)
def test_what_is_no_secret(secrets, text):
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "DB_PASSWD",
        "mlflow_tracking_token",
        "AWS_SECRET_ACCESS_KEY",
        "OPENAI_API_KEY",
        "WANDB_APIKEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "SSH_PRIVATE_KEY",
        "SOME_CREDENTIALS",
        "DB_PASS",
        "DB_PWD",
        "AZURE_STORAGE_CONNECTION_STRING",
    ],
)
def test_the_value_of_a_variable_that_is_called_a_secret(secrets, name):
    secrets({name: "12+45678\n", "HARMLESS": "harmless text"})
    said = "harmless text 12+45678, (12+45678) ?token=12%2B45678 1245678"
    assert without_secrets(said) == "harmless text ***, (***) ?token=*** 1245678"


def test_a_value_that_is_no_secret(secrets, tmp_path):
    file = tmp_path / "credentials.json"
    file.write_text("{}")
    secrets(
        {
            "GOOGLE_APPLICATION_CREDENTIALS": str(file),
            "TOKENIZERS_PARALLELISM": "false",
            "MY_TOKEN": "",
            "A_TOKEN": "1234567",
        }
    )
    said = f"false {file} 1234567"
    assert without_secrets(said) == said


def test_the_longest_secret_is_replaced_first(secrets):
    secrets({"A_TOKEN": "abcdefgh", "B_TOKEN": "abcdefghijkl", "C_TOKEN": "cdefghij"})
    assert without_secrets("abcdefghijkl abcdefgh cdefghij") == "*** *** ***"


def test_secrets_change_with_the_environment(secrets, monkeypatch):
    assert without_secrets("abcdefgh") == "abcdefgh"
    secrets({"A_TOKEN": "abcdefgh"})
    assert without_secrets("abcdefgh") == "***"
    secrets({"A_TOKEN": "ijklmnop"})
    assert without_secrets("abcdefgh ijklmnop") == "abcdefgh ***"
    monkeypatch.delenv("A_TOKEN")
    assert without_secrets("ijklmnop") == "ijklmnop"


def test_a_value_that_is_not_utf8(secrets):
    secrets({"A_TOKEN": os.fsdecode(b"\xff1234567")})
    assert without_secrets("token %FF1234567") == "token ***"


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
@pytest.mark.parametrize(
    ("uri", "said", "shown"),
    [
        ("mysql://ada:p%40ss12@db/x", "p@ss12 and p%40ss12 of ada at db", "*** and *** of ada at db"),
        ("mysql://ada:p+ss12@db/x", "p+ss12 and p%2Bss12", "*** and ***"),
        ("mysql://ada:p/s#s12@db/x", "p/s#s12", "***"),
        ("mysql://ada:five5@db/x", "five5 mysql://ada:five5@db/x", "five5 mysql://ada:***@db/x"),
        ("mysql://mlflow:mlflow@db/x", "mlflow mysql://mlflow:mlflow@db/x", "mlflow mysql://mlflow:***@db/x"),
        ("https://token1@example.org", "token1 https://token1@example.org", "token1 https://***@example.org"),
        ("http://localhost:500000/x@y", "500000", "500000"),
        ("sqlite:////home/ada/mlflow.db", "sqlite:////home/ada/mlflow.db", "sqlite:////home/ada/mlflow.db"),
    ],
)
def test_the_password_of_a_store_wherever_it_stands(secrets, name, uri, said, shown):
    secrets({name: uri})
    assert without_secrets(said) == shown


def test_a_log_without_secrets(secrets, tmp_path):
    secrets({"A_TOKEN": "abcdefgh"})
    log, file = logging.getLogger("test_provenance"), logging.FileHandler(tmp_path / "job.log")
    file.setFormatter(WithoutSecrets("%(levelname)s %(message)s"))
    log.addHandler(file)
    try:
        raise ConnectionError("http://ada:pass@example.org")
    except ConnectionError:
        log.exception("Token %s", "abcdefgh")
    log.removeHandler(file)
    file.close()
    lines = (tmp_path / "job.log").read_text().splitlines()
    assert lines[:2] == ["ERROR Token ***", "Traceback (most recent call last):"]
    assert lines[-1] == "ConnectionError: http://ada:***@example.org"
    assert "pass@" not in "".join(lines)


def test_a_password_in_the_query_of_a_uri():
    uri = "postgresql://host/db?user=ada&password=hunter2222&sslmode=require"
    assert without_secrets(uri) == "postgresql://host/db?user=ada&password=***&sslmode=require"


def test_a_secret_as_json_and_a_shell_write_it(secrets):
    secret = """it's a "secret" \\ of 8"""  # noqa: S105 - of nothing
    secrets({"SOME_TOKEN": secret})
    assert without_secrets(json.dumps([secret])) == '["***"]'
    assert without_secrets(shlex.join(["tell", secret])) == "tell '***'"
