"""The folder of a training: one process writes into it, and it stays where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxfault.errors import ConfigError, TrainingError
from fxfault.training.run_folder import CONFIG, LAST, RunFolder

CLAIM = """
import sys
from pathlib import Path
from fxfault.errors import FxFaultError
from fxfault.training.run_folder import RunFolder
try:
    getattr(RunFolder, sys.argv[1])(Path(sys.argv[2]))
    print("taken")
except FxFaultError as error:
    print(error)
"""


def claim(how: str, path: Path) -> str:
    """What another process says that wants the folder."""
    run = subprocess.run([sys.executable, "-c", CLAIM, how, path], capture_output=True, text=True)
    return run.stdout


@pytest.mark.parametrize("how", ["create", "open"])
def test_a_second_training_is_refused_by_whatever_name(tmp_path: Path, how: str) -> None:
    path, link = tmp_path / "run", tmp_path / "link"
    folder = RunFolder.create(path)
    link.symlink_to(path)
    if how == "open":
        for name in (CONFIG, LAST):
            folder.write(name, "")
    for name in (path, link):
        assert f"{name} is being written by another training: wait for it" in claim(how, name)
    folder.release()
    assert claim(how, path) == "taken\n"


def test_the_same_process_may_open_its_folder_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    again = RunFolder.create(tmp_path / "run")
    assert folder == again


def test_a_folder_in_another_ones_place_is_not_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    os.rename(tmp_path / "run", tmp_path / "moved")
    (tmp_path / "run").mkdir()
    with pytest.raises(TrainingError, match=r"run, was replaced by another one"):
        folder.write(CONFIG, "")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_stays_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(Path("run"))
    monkeypatch.chdir("/")
    folder.write(CONFIG, "seed: 1")
    assert (tmp_path / "run" / CONFIG).is_file()
    assert folder.path == Path("run")


def test_a_folder_with_files_is_still_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        RunFolder.create(tmp_path)


def test_a_folder_is_taken_before_the_work_and_given_back_where_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    said = []
    with pytest.raises(KeyError), RunFolder.reserved(path):
        raise KeyError(said.append(claim("create", path)))
    assert "is being written by another training" in said[0]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with pytest.raises(KeyError), RunFolder.reserved(path):
        raise KeyError
    assert list((tmp_path / "runs").iterdir()) == []
    with RunFolder.reserved(path) as folder:
        pass
    assert folder.path.is_dir()
