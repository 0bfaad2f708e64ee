"""Interrupted work is gone on with, and an error leaves nothing."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import normfuse
from normfuse.checkpoint import rewriting, shard, workplace
from normfuse.checkpoint.plan import plan_of
from normfuse.checkpoint.planned import Plan
from tests.checkpoint.folders import contents, saved

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("given") / "in", "gpt2")


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """What is written when nothing happens."""
    out = tmp_path_factory.mktemp("whole") / "out"
    normfuse.rewrite_folder(given, out)
    return contents(out)


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    """The same in three files, and what becomes of it."""
    folder = tmp_path_factory.mktemp("large")
    saved(folder / "in", "gpt2", size="60KB")
    normfuse.rewrite_folder(folder / "in", folder / "out")
    return folder / "in", contents(folder / "out")


@pytest.fixture(autouse=True)
def known_plans(monkeypatch):
    """A plan of the same folder with the same options is made once."""

    def planned(folder, options, *rest):
        key = (folder.path, options.only)
        if key not in _PLANS:
            _PLANS[key] = plan_of(folder, options, *rest)
        return _PLANS[key]

    monkeypatch.setattr(rewriting, "plan_of", planned)


_PLANS: dict[object, Plan] = {}


class Stopped(BaseException):
    """As an interrupt from the keyboard, which is no error."""


def stop_at(monkeypatch, place, error, name="_fold"):
    """Raise at the ``place``-th call, when a half of it is done."""
    calls, original = [], getattr(shard, name)

    def counted(*args):
        calls.append(args)
        if len(calls) == place:
            raise error
        return original(*args)

    monkeypatch.setattr(shard, name, counted)


@pytest.mark.parametrize("place", [1, 4, 17])
def test_it_is_gone_on_with_and_gives_the_same_bytes(place, given, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, place, Stopped())
        with pytest.raises(Stopped):
            normfuse.rewrite_folder(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    finished = {f.name: f.stat().st_ino for f in (tmp_path / ".out.normfuse").glob("*.safetensors")}
    assert bool(finished) or place < 17
    done = normfuse.rewrite_folder(given, tmp_path / "out")
    assert done.reused == len(finished)
    assert contents(tmp_path / "out") == whole
    assert all((tmp_path / "out" / name).stat().st_ino == node for name, node in finished.items())
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["input", "options"])
def test_what_was_made_of_something_else_is_made_again(change, given, whole, tmp_path, monkeypatch):
    asked = {"only": ["recentre"]} if change == "options" else {}
    with monkeypatch.context() as patch:
        stop_at(patch, 9, Stopped())
        with pytest.raises(Stopped):
            normfuse.rewrite_folder(given, tmp_path / "out", **asked)
    assert list((tmp_path / ".out.normfuse").glob("*.safetensors"))
    if change == "input":
        for file in given.glob("*.safetensors"):
            os.utime(file)
    done = normfuse.rewrite_folder(given, tmp_path / "out")
    assert done.reused == 0
    assert contents(tmp_path / "out") == whole


def stop_anywhere(monkeypatch, place):
    """Raise before the ``place``-th step of any kind; returns the list of steps that were begun."""
    begun, lock = [], threading.Lock()

    def watch(owner, name):
        original = getattr(owner, name)

        def step(*args, **kwargs):
            with lock:
                begun.append(name)
                if len(begun) == place:
                    raise Stopped
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)

    for name in ("_reserve", "_copy", "_fold", "_to_disk"):
        watch(shard, name)
    for name in ("_put_back", "_use_again", "_move_in", "_to_disk"):
        watch(workplace, name)
    watch(workplace.Workplace, "write_text")
    watch(Path, "replace")
    watch(Path, "unlink")
    return begun


@pytest.mark.parametrize("is_replaced", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_may_be_interrupted_before_any_step(is_replaced, large_files, tmp_path, monkeypatch):
    given, whole = large_files
    old = {"config.json": b"{}"}
    for place in itertools.count(1):
        folder = tmp_path / str(place)
        out = folder / "out"
        folder.mkdir()
        if is_replaced:
            out.mkdir()
            (out / "config.json").write_bytes(old["config.json"])
        with monkeypatch.context() as patch:
            steps = stop_anywhere(patch, place)
            try:
                normfuse.rewrite_folder(given, out, force=is_replaced)
            except Stopped:
                assert not out.exists() or contents(out) in (old, whole)
        if len(steps) < place:  # nothing was interrupted
            break
        normfuse.rewrite_folder(given, out, force=out.exists())
        assert contents(out) == whole, steps
        assert [f.name for f in folder.iterdir()] == ["out"], steps
    assert {"_fold", "_to_disk", "_move_in", "write_text", "replace"} <= set(steps)


_KILLED = """
import os, random, signal, sys, time
import normfuse
from normfuse.checkpoint import rewriting
given, folder, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
planned = rewriting._planned(rewriting.Path(given), rewriting._options({}), None, False, print)
rewriting._planned = lambda *args: planned

def start(out):
    child = os.fork()
    if not child:
        normfuse.rewrite_folder(given, out)
        os._exit(0)
    return child

for name in ("first", "second"):
    begun = time.monotonic()
    os.waitpid(start(f"{folder}/{name}"), 0)
whole, random, killed = time.monotonic() - begun, random.Random(seed), 0
for number in range(15):
    for kills in (1, 1, 1, 0):
        child = start(f"{folder}/{number}")
        time.sleep(kills * random.uniform(0, whole))
        if kills:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WIFSIGNALED(status), status
        killed += 1
        if os.path.exists(f"{folder}/{number}"):  # it was complete, and only the process was not at its end
            break
print("killed", killed)
"""


@pytest.mark.slow
def test_a_process_may_be_killed_at_any_moment(given, whole, tmp_path):
    """Fifteen folders, each killed up to three times; the moments are drawn with a fixed seed."""
    words = [sys.executable, "-c", _KILLED, given, tmp_path, "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("killed")[-1]) > 0, done.stdout
    for folder in tmp_path.iterdir():
        if not folder.name.endswith("-lock"):  # an empty file, where the last moment was the one
            assert not folder.name.startswith("."), folder
            assert contents(folder) == whole, folder


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_it_finished(given, whole, tmp_path):
    """Killed as soon as the first file is there, wherever it is then."""
    code = (
        "import sys, time, normfuse\n"
        "from normfuse.checkpoint import shard\n"
        "def slow(*args, fold=shard._fold): time.sleep(0.2); fold(*args)\n"
        "shard._fold = slow\n"
        "normfuse.rewrite_folder(sys.argv[1], sys.argv[2])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, given, tmp_path / "out"])
    work = tmp_path / ".out.normfuse"
    deadline = time.monotonic() + 120
    while not list(work.glob("*.safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = normfuse.rewrite_folder(given, tmp_path / "out")
    assert done.reused >= 1
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["_reserve", "_copy"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(name, given, tmp_path, monkeypatch):
    stop_at(monkeypatch, 3, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), name)
    with pytest.raises(normfuse.InputError, match=r"cannot write .*out: No space left on device$"):
        normfuse.rewrite_folder(given, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_write_the_same_folder(given, tmp_path):
    with (tmp_path / ".out.normfuse-lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(normfuse.NormfuseError, match="another run is writing it"):
            normfuse.rewrite_folder(given, tmp_path / "out")


def test_force_replaces_a_checkpoint_and_nothing_else(given, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(normfuse.InputError, match="it exists and is no checkpoint folder"):
        normfuse.rewrite_folder(given, out, force=True)
    (out / "config.json").write_text("{}")
    with pytest.raises(
        normfuse.InputError, match="it exists; choose a new folder, or replace it with --force"
    ):
        normfuse.rewrite_folder(given, out)
    normfuse.rewrite_folder(given, out, force=True)
    assert contents(out) == whole
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_an_error_keeps_what_was_to_be_replaced(given, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    monkeypatch.setattr(rewriting, "_index", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        normfuse.rewrite_folder(given, out, force=True)
    assert contents(out) == {"config.json": b"{}"}
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
