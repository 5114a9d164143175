"""Folders are there whole or not at all."""

import os
import stat

import pytest

from mmlm.files import new_folder


def test_a_finished_folder_is_there_whole(tmp_path):
    target = tmp_path / "not" / "there" / "yet"
    with new_folder(target) as draft:
        (draft / "a").write_text("1")
        (draft / "sub").mkdir()
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert os.listdir(target.parent) == ["yet"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_a_broken_off_folder_is_not_there(error, tmp_path):
    def work():
        with new_folder(tmp_path / "new") as draft:
            (draft / "half").write_text("1")
            raise error

    with pytest.raises(error):
        work()
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / "new"):  # and it can be made again
        pass
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_is_left_alone(kind, tmp_path):
    target = tmp_path / "old"
    target.mkdir() if kind == "folder" else target.write_text("keep")
    with pytest.raises(FileExistsError, match="exists already; name another"), new_folder(target):
        raise AssertionError("the block must not run")
    assert os.listdir(tmp_path) == ["old"]


def test_of_two_at_once_one_wins_whole(tmp_path):
    def both():
        with new_folder(tmp_path / "new") as one:
            (one / "a").write_text("1")
            with new_folder(tmp_path / "new") as two:
                (two / "b").write_text("2")

    with pytest.raises(FileExistsError, match="new: exists already"):
        both()
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == ["b"]
