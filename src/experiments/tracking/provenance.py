"""Where a run comes from: machine, packages, commit and uncommitted changes."""

import contextlib
import functools
import getpass
import json
import logging
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from experiments.config.compose import CHECKOUT
from experiments.tracking.runs import StoredRun, artifact
from experiments.tracking.store import call_store, open_store

_log = logging.getLogger(__name__)

PROVENANCE = "provenance.json"
#: Untracked files of other kinds may be data, or a key that somebody has left there.
_OF_A_PROJECT = (b".py", b".yaml", b".yml", b".toml", b".cfg", b".sh")


def provenance() -> dict[str, object]:
    """The machine, the user and the code, as tags."""
    tags: dict[str, object] = {"host": socket.gethostname(), "pid": os.getpid()}
    with contextlib.suppress(OSError, KeyError):  # in a container the user may have no name
        tags["mlflow.user"] = getpass.getuser()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = _git("rev-parse", "--verify", "HEAD").decode().strip()
        changed = _git("status", "--porcelain", "--untracked-files=normal", "--", ".")
        tags |= {"git.commit": commit, "git.dirty": str(bool(changed)).lower()}
    return tags


def versions() -> dict[str, str]:
    """The versions of the system, of Python and of the libraries that a result depends on most."""
    found = {"platform": platform.platform(), "python": platform.python_version()}
    return found | {name: version(name) for name in ("tensorflow", "keras", "mlflow")}


def as_file(tags: Mapping[str, object]) -> str:
    """The content of `provenance.json`: what `provenance` has found, and the versions."""
    return json.dumps({**tags, **versions()}, indent=1)


def provenance_of(run: StoredRun) -> dict[str, str]:
    """Machine, commit and versions of a run; earlier versions have recorded all of them as tags."""
    with TemporaryDirectory() as folder:
        file = artifact(run, PROVENANCE, Path(folder))
        written = json.loads(file.read_text(encoding="utf-8")) if file else {}
    return {name: str(value) for name, value in {**written, **run.tags}.items()}


def images_of(run: StoredRun) -> str:
    """How many images of which size a run was trained on, in words; empty if that was not recorded."""
    inputs = call_store(open_store().get_run, run.run_id).inputs
    if not inputs or not inputs.dataset_inputs:
        return ""
    used = inputs.dataset_inputs[0]
    profile, sizes = json.loads(used.dataset.profile), {tag.key: tag.value for tag in used.tags}
    parts = [f"{int(sizes[f'{part}_images']):,} for {part}" for part in ("training", "validation", "test")]
    shape, classes = profile["image_shape"], profile["classes"]
    return f"{profile['images']:,} images of {shape} in {classes} classes, of which {', '.join(parts)}"


def source(tags: Mapping[str, object]) -> dict[str, object]:
    """What the MLflow UI shows as the source of a run: the first two words of its command, if that is known."""
    words = str(tags.get("command", "")).split()[:2]
    return {"mlflow.source.name": " ".join(words), "mlflow.source.type": "LOCAL"} if words else {}


@functools.cache
def environment() -> str:
    """Every installed package with its version, as a file that pip can install.

    A package that was not installed from an index (PEP 610), so that pip could not find its version, is a comment.
    """
    names = set()
    for found in distributions():
        with contextlib.suppress(FileNotFoundError):  # left behind by an installation that was interrupted
            if "Name" in found.metadata:
                names.add(re.sub("[-_.]+", "-", found.metadata["Name"]).lower())  # PEP 503: A_b and a-b are one
    lines = []
    for name in sorted(names - {"experiments"}):
        with contextlib.suppress(PackageNotFoundError):  # pip sets an old version aside as ~ame while it installs
            dist = distribution(name)
            line = f"{dist.metadata['Name']}=={dist.version}"
            direct_url = dist.read_text("direct_url.json")
            lines.append(f"# {line} from {_source(direct_url)}" if direct_url else line)
    return "".join(f"{line}\n" for line in lines)


def _source(direct_url: str) -> str:
    """The URL in the text of a direct_url.json, without what may be secret; of a repository also the commit."""
    found = json.loads(direct_url)
    url = urlsplit(found["url"])
    url = url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="")
    vcs = found.get("vcs_info")
    return f"{vcs['vcs']}+{url.geturl()}@{vcs['commit_id']}" if vcs else url.geturl()


def uncommitted(limit: int = 1_000_000) -> str:
    r"""The uncommitted changes, as a diff that `git apply` takes at the root of the checkout.

    Untracked files are included if they are code or configuration: the smallest first, up to `limit` bytes together.
    The last line says what was left out.

    Args:
        limit: bytes; a longer diff is cut at the end of a line, and the last line says how much is missing.

    Returns:
        The diff, with binary files, and with \ufffd for characters that are not UTF-8. It is empty if nothing is
        uncommitted, if there is no checkout, repository or git, and, with a warning, if git fails.
    """
    try:
        used_index = os.fsdecode(_git("rev-parse", "--git-path", "index").rstrip(b"\r\n"))
    except (OSError, subprocess.CalledProcessError):
        return ""
    try:
        diff, left_out = _diff(Path(str(CHECKOUT), used_index), limit)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else error
        _log.warning("Uncommitted changes are not recorded: %s", reason)
        return ""
    missing = [f"{len(left_out)} untracked, such as {left_out[-1]!r}"] if left_out else []
    if len(diff) > limit:
        end = diff.rfind(b"\n", 0, limit) + 1
        missing.append(f"{len(diff) - end} bytes that were cut here")
        diff = diff[:end]
    note = f"# Not in this diff: {' and '.join(missing)}.\n" if missing else ""
    return diff.decode(errors="replace") + note


def diff_of_commits(before: str, after: str) -> str | None:
    """What has changed between two commits, as a diff; None if the checkout does not have both."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commits = (f"{before}^{{commit}}", f"{after}^{{commit}}")
        options = ("--no-color", "--no-ext-diff", "--no-textconv", "--end-of-options")
        return _git("diff", *options, *commits, "--", ".").decode(errors="replace")
    return None


def _diff(used_index: Path, limit: int) -> tuple[bytes, list[str]]:
    """The diff of the checkout, and the untracked files that are not in it, the largest last."""
    with TemporaryDirectory() as folder:
        index = Path(folder, "index")
        with contextlib.suppress(FileNotFoundError):  # nothing was ever added
            # The time is copied too: git looks again into files that were changed as late as the index was written.
            shutil.copy2(used_index, index)
        listed = _git("ls-files", "--others", "--exclude-standard", "-z", "--", ".", index=index).split(b"\0")[:-1]
        root = os.fsencode(str(CHECKOUT))
        taken, left_out, room = [], [], limit
        for size, name in sorted((os.lstat(os.path.join(root, name)).st_size, name) for name in listed):
            room -= size
            if room < 0 or not name.endswith(_OF_A_PROJECT):
                left_out.append(name.decode(errors="replace"))
            else:
                taken.append(name)
        if taken:
            names = ("--pathspec-from-file=-", "--pathspec-file-nul")
            _git("--literal-pathspecs", "add", "--intent-to-add", *names, index=index, stdin=b"\0".join(taken))
        try:
            commit = _git("rev-parse", "--verify", "HEAD")
        except subprocess.CalledProcessError:
            commit = _git("hash-object", "-t", "tree", "--stdin")  # nothing was ever committed: the empty tree
        # A user's settings may ask for another program, other prefixes or no context, which git apply cannot read.
        options = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--submodule=short", "--unified=3")
        prefixes = ("--src-prefix=a/", "--dst-prefix=b/")
        # In a folder of a bigger repository git apply passes over what is not named from the repository's root.
        command = ("-c", "diff.relative=false", "diff", "--binary", *options, *prefixes)
        return _git(*command, commit.decode().strip(), "--", ".", index=index), left_out


def _git(*arguments: str, index: Path | None = None, stdin: bytes = b"") -> bytes:
    """The output of git in the checkout.

    Raises:
        OSError: there is no checkout or no git.
        subprocess.CalledProcessError: git fails, for example because the checkout is in no repository.
    """
    git = shutil.which("git")
    if git is None or CHECKOUT is None:
        raise FileNotFoundError("no git" if git is None else "no checkout")
    # Without optional locks, or asking would get in the way of a user who commits meanwhile.
    command = [git, "--no-optional-locks", "-C", str(CHECKOUT), *arguments]
    variables = os.environ | ({"GIT_INDEX_FILE": str(index)} if index else {})
    return subprocess.run(command, input=stdin, capture_output=True, env=variables, check=True).stdout  # noqa: S603 - no shell
