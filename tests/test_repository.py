"""Promises of the repository itself: packaging, pins, make targets, and words that must not occur."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: Spelled so that this file does not contain them; ``torch.library`` is none of them.
FORBIDDEN = re.compile(r"\.\./shar[e]d|/wor[k]/|(?<!\w)\.librar[y]")


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _name(requirement):
    return _normal(re.match(r"[A-Za-z0-9._-]+", requirement).group())


def _pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_python_version_entry_points_and_extras_are_declared():
    assert PROJECT["requires-python"] == ">=3.10"
    assert PROJECT["scripts"] == {"normfuse": "normfuse.cli.app:main"}
    backends = PROJECT["entry-points"]["torch_dynamo_backends"]
    assert backends == {"normfuse": "normfuse.backends.entry:normfuse_backend"}
    assert set(PROJECT["optional-dependencies"]) == {"bench", "docs", "models", "onnx", "test", "triton"}


def test_the_backend_is_the_function_that_the_entry_point_names():
    (found,) = entry_points(group="torch_dynamo_backends", name="normfuse") or (None,)
    if found is None:
        pytest.skip("normfuse is not installed")
    from normfuse.backends.entry import normfuse_backend

    assert found.load() is normfuse_backend


def test_the_version_is_the_one_of_the_package():
    import normfuse

    assert normfuse.__version__ == PROJECT["version"]


def test_every_pin_is_exact_and_single():
    pins = _pins()
    exact = re.compile(r'[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*(; python_version >= "3.11")?')
    assert all(exact.fullmatch(pin) for pin in pins), pins
    names = [_name(pin) for pin in pins]
    assert len(names) == len(set(names))


def test_every_dependency_has_a_pin():
    extras = PROJECT["optional-dependencies"].values()
    required = [*PROJECT["dependencies"], *(r for extra in extras for r in extra)]
    assert {_name(r) for r in required} <= {_name(pin) for pin in _pins()}


def test_the_build_needs_one_exact_package():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert [re.fullmatch(r"setuptools==[0-9.]+", r) is not None for r in build["requires"]] == [True]


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "normfuse" / "py.typed").is_file()


def test_the_package_takes_along_what_is_not_python():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["normfuse"]
    folder = ROOT / "normfuse"
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files - packed if path.suffix != ".py"} == set()
    assert {path.suffix for path in packed} == {".typed", ".css", ".js", ".cpp"}


@pytest.mark.parametrize("target", ["demo", "test", "lint", "gpu", "bench", "docs", "clean"])
def test_make_target_exists(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_check_script_is_executable():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def _tracked():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_the_search_for_forbidden_words_can_fail():
    words = ["../sh" + "ared", "/wo" + "rk/main", "see ." + "library"]
    assert all(FORBIDDEN.search(word) for word in words)
    assert not FORBIDDEN.search("torch.library.custom_op, network/worker")


def test_no_tracked_file_mentions_the_machine_it_was_written_on():
    found = []
    for path in _tracked():
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match}" for match in FORBIDDEN.findall(text)]
    assert not found
