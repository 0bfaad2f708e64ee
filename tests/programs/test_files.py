"""Files are there as a whole or not at all, and nothing else is ever replaced by one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import patch

import pytest

import normfuse
from normfuse.files import check_new_folder, check_writable, new_folder, replacing, write_text


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_device_or_a_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(normfuse.InputError, match="it is a device or a pipe"):
            check_writable(target)
        with pytest.raises(normfuse.InputError, match="it is a device or a pipe"):
            write_text(target, "text")
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert left_in(tmp_path / "folder") == ["target"]


LOOPS = {"itself": ("loop",), "each other": ("other", "loop"), "a file in a loop": ("other/file", "other")}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_of_links_is_refused_and_stays(name, tmp_path):
    for link, target in zip(("loop", "other"), LOOPS[name], strict=False):
        (tmp_path / link).symlink_to(target)
    before = {link: link.readlink() for link in tmp_path.iterdir()}
    for check in (check_writable, check_new_folder, lambda file: write_text(file, "text")):
        with pytest.raises(normfuse.InputError, match="loop: Too many levels of symbolic links"):
            check(tmp_path / "loop")
    assert {link: link.readlink() for link in tmp_path.iterdir()} == before


def test_a_folder_is_made_where_a_link_points_to(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in ("empty", "missing"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        with new_folder(tmp_path / "link") as unfinished:
            (unfinished / "file").write_text("whole")
        assert (tmp_path / "link").is_symlink()
        assert left_in(tmp_path / target) == ["file"]


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        patch.object(Path, "write_text", side_effect=full),
        pytest.raises(normfuse.InputError, match=f"cannot write {target}: No space left on device"),
    ):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert left_in(tmp_path) == ["file"]


@pytest.mark.parametrize("made", [replacing, new_folder])
def test_an_error_inside_leaves_nothing(made, tmp_path):
    def fail_half_way():
        with made(tmp_path / "out") as unfinished:
            half = unfinished / "part" if unfinished.is_dir() else unfinished
            half.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert left_in(tmp_path) == []


def test_an_empty_folder_may_be_filled_and_another_may_not(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as unfinished:
        (unfinished / "file").write_text("whole")
    assert left_in(tmp_path / "out") == ["file"]
    with pytest.raises(normfuse.InputError, match="it exists"), new_folder(tmp_path / "out"):
        pass


def test_a_folder_that_may_not_be_written_to_is_refused_by_name(tmp_path, monkeypatch):
    """Who may do everything, as root, has no such folder; the question is answered for them."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    for check in (check_writable, check_new_folder):
        with pytest.raises(normfuse.InputError, match=f"the folder {tmp_path} is read-only"):
            check(tmp_path / "out")
