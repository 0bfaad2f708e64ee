"""What somebody who installs a release gets, on every supported Python at hand.

    build the sdist, and the wheel from it
    -> for each Python an empty environment with the wheel and the packages that it asks for
    -> there, outside of this folder: tests/matrix/smoke.py

    python -m tests.matrix.release [--torch-from ENVIRONMENT ...] [--python PROGRAM ...]

An environment takes up to 6 GB while it is in use, most of it PyTorch. ``--torch-from`` names environments
that have PyTorch already: one of the same Python version lends its packages, and only the wheel is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
SMOKE = Path(__file__).with_name("smoke.py")
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
QUIET = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile")
#: Neither this checkout nor the reader's settings reach into the environments.
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NORMFUSE", "VIRTUAL_ENV"))}


class StepError(Exception):
    """A command that failed; holds the end of what it said."""


def run(words: Sequence[str | Path], folder: Path) -> str:
    """What a command wrote to both outputs."""
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=CLEAN, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise StepError("\n".join(done.stdout.splitlines()[-15:]))
    return done.stdout


def pythons() -> dict[str, str]:
    """The program of each version that can make environments, on the path or installed by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = {}
    for version in VERSIONS:
        candidates = [*pyenv.glob(f"versions/{version}.*/bin/python"), shutil.which(f"python{version}")]
        usable = [str(one) for one in candidates if one and version_of(one) == version]
        if usable:
            found[version] = usable[0]
    return found


def version_of(python: str | Path) -> str | None:
    """``3.11``; None where the program does not run or comes without ``venv``."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def build(folder: Path) -> Path:
    """The wheel, built from the sdist; both are left in ``dist``."""
    run([sys.executable, "-m", "venv", folder / "builder"], ROOT)
    builder = folder / "builder/bin/python"
    run([builder, *QUIET, "-c", CONSTRAINTS, "build"], ROOT)
    run([builder, "-m", "build", "--outdir", folder / "dist", ROOT], ROOT)
    built = sorted((folder / "dist").iterdir())
    (ROOT / "dist").mkdir(exist_ok=True)
    for file in built:
        shutil.copy(file, ROOT / "dist")
        print(f"built dist/{file.name}, {file.stat().st_size // 1024} KB")
    return next(file for file in built if file.suffix == ".whl")


def install(python: str, lender: str | None, wheel: Path, folder: Path) -> Path:
    """The interpreter of a new environment in ``folder`` that has the wheel."""
    run([python, "-m", "venv", folder], ROOT)
    made = folder / "bin/python"
    if lender is None:
        run([made, *QUIET, "-c", CONSTRAINTS, wheel], ROOT)
        return made
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own, lent = run([made, "-c", code], ROOT).strip(), run([lender, "-c", code], ROOT).strip()
    (Path(own) / "lent.pth").write_text(lent + "\n", encoding="utf-8")
    run([made, *QUIET, "--no-deps", "--ignore-installed", wheel], ROOT)
    return made


def check(python: str, lender: str | None, wheel: Path, folder: Path) -> str:
    """One line about a Python whose environment passed."""
    started = time.monotonic()
    made = install(python, lender, wheel, folder / "environment")
    installed = time.monotonic()
    said = run([made, SMOKE, ROOT / "README.md"], folder).splitlines()[-1]
    how = "lent" if lender else "installed"
    return f"{said} ({how} in {installed - started:.0f} s, ran {time.monotonic() - installed:.0f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", action="append", help="a program; default: all of " + ", ".join(VERSIONS))
    parser.add_argument("--torch-from", action="append", default=[], help="an environment that lends PyTorch")
    options = parser.parse_args()
    chosen = {str(version_of(p)): p for p in options.python} if options.python else pythons()
    programs = [str(Path(one) / "bin/python") for one in options.torch_from]
    lenders = {version_of(program): program for program in programs}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="normfuse-release-") as held:
        wheel = build(Path(held))
        for version, python in chosen.items():
            with tempfile.TemporaryDirectory(prefix=f"{version}-", dir=held) as folder:
                try:
                    outcome = "ok      " + check(python, lenders.get(version), wheel, Path(folder))
                except StepError as error:
                    failed, outcome = failed + 1, f"FAILED  {error}"
            print(f"Python {version:5} {outcome}", flush=True)
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
