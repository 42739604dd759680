"""What a study depends on stays what it was when it was noted, or the study ends and says so."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign_tools import outcome, small_study

from fxfault.campaign import Study
from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.records.store import Store
from fxfault.campaign.workers.process_engine import ProcessEngine
from fxfault.cli.campaign import main
from fxfault.errors import ConfigError, DataError, FxFaultError, StoreError
from fxfault.experiment.parts import Batches, load_model
from fxfault.results.outputs import OutputFile

WEIGHTS = resources.files("fxfault.bundled") / "weights"


def once(action: Callable[[], object]) -> Callable[[Progress], None]:
    """Act when rows were stored for the first time."""
    left = [action]

    def follow(progress: Progress) -> None:
        if progress.rows and left:
            left.pop()()

    return follow


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two checkpoints of the same content in the current folder, and a third of other content."""
    monkeypatch.chdir(tmp_path)
    for name, of in (("a.pt", "digits"), ("b.pt", "digits"), ("other.pt", "digits_fat")):
        shutil.copy(str(WEIGHTS / f"{of}.pt"), name)
    return tmp_path


# -- checkpoints ----------------------------------------------------------------------------


MOST = 40


def of_two(trials: int) -> Study:
    """A study of two checkpoints, with so many trials of each."""
    axes = {"layers": ["all"], "injection_type": ["random"], "probability": [2.0]}
    axes["checkpoint"] = ["a.pt", "b.pt"]
    return small_study(axes=axes, checkpoint=None, stop=None, trials=trials)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The rows of `of_two` where nothing is replaced."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("a.pt", "b.pt"):
            shutil.copy(str(WEIGHTS / "digits.pt"), name)
        run_study(of_two(MOST), "whole.sqlite")
    return outcome(folder / "whole.sqlite")


@pytest.mark.usefixtures("quick_servers")
@pytest.mark.parametrize(
    ("engine", "name", "change", "message"),
    [
        ("local", "b.pt", lambda: os.replace("other.pt", "b.pt"), "was replaced while the study"),
        ("processes", "b.pt", lambda: os.replace("other.pt", "b.pt"), "was replaced while the"),
        ("local", "b.pt", lambda: os.unlink("b.pt"), "was removed while the study|no such file"),
        ("local", "a.pt", lambda: shutil.copy("other.pt", "a.pt"), "was replaced while the study"),
    ],
)
def test_a_checkpoint_that_is_replaced_ends_the_study(
    weights: Path,
    undisturbed: list[tuple[Any, ...]],
    engine: str,
    name: str,
    change: Callable[[], object],
    message: str,
) -> None:
    # A worker goes on while the driver acts: it must not be through by then.
    trials = MOST if engine == "processes" else 6
    study, path = of_two(trials), weights / "s.sqlite"
    expected = [row for row in undisturbed if row[1] < trials]
    made: Any = ProcessEngine(1) if engine == "processes" else engine
    with pytest.raises(DataError, match=rf"{name[0]}\.pt'.*({message})"):
        run_study(study, path, engine=made, on_progress=once(change))
    kept = outcome(path)
    assert kept
    shutil.copy(str(WEIGHTS / "digits.pt"), name)
    assert set(kept) < set(expected)
    run_study(study, path)
    assert outcome(path) == expected


def test_a_checkpoint_that_is_written_anew_with_the_same_content_is_none_other(
    weights: Path,
) -> None:
    def rewrite() -> None:
        os.replace("b.pt", "a.pt")

    study = small_study(checkpoint={"path": "a.pt"}, stop=None, trials=2)
    assert run_study(study, "s.sqlite", on_progress=once(rewrite)).is_finished


# -- the store ------------------------------------------------------------------------------


def test_a_store_that_is_deleted_in_mid_run_is_saved_and_gone_on_with(tmp_path: Path) -> None:
    path, undisturbed = tmp_path / "s.sqlite", tmp_path / "whole.sqlite"

    def delete() -> None:
        for ending in ("", "-wal", "-shm"):
            path.with_name(f"s.sqlite{ending}").unlink()

    study = small_study(stop=None, trials=3)
    with pytest.raises(StoreError, match=r"moved or deleted .* are kept in .*s\.kept-1\.sqlite"):
        run_study(study, path, on_progress=once(delete))
    assert not path.exists()
    os.replace(tmp_path / "s.kept-1.sqlite", path)
    kept = outcome(path)
    run_study(study, undisturbed)
    run_study(study, path)
    assert kept
    assert set(kept) <= set(outcome(undisturbed))
    assert outcome(path) == outcome(undisturbed)


def test_a_store_that_is_deleted_after_its_last_row_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"

    def delete(progress: Progress) -> None:
        if progress.is_finished:
            path.unlink()

    with pytest.raises(StoreError, match="moved or deleted"):
        run_study(small_study(stop=None, trials=1), path, on_progress=delete)


# -- folders that code of the user's changes ------------------------------------------------

MODULE = """
import os
from fxfault.models import build_model
def net(**kwargs):
    os.chdir("/")
    return build_model("quant_digits", num_classes=10, in_channels=1, image_size=(8, 8),
                       weight_bit_width=4, act_bit_width=4)
"""


@pytest.fixture
def wandering(weights: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a network whose factory goes to another folder."""
    (weights / "wandering_net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(weights)
    monkeypatch.delitem(sys.modules, "wandering_net", raising=False)
    return "wandering_net:net"


def test_a_model_that_changes_the_folder_moves_neither_weights_nor_store(
    weights: Path, wandering: str
) -> None:
    axes = {"layers": ["all"], "injection_type": ["random"], "probability": [2.0]}
    study = small_study(
        model={"name": wandering},
        axes={**axes, "checkpoint": ["a.pt", "b.pt"]},
        checkpoint=None,
        stop=None,
        trials=2,
    )
    assert run_study(study, "s.sqlite").is_finished
    assert Path.cwd() == Path("/")
    assert outcome(weights / "s.sqlite")
    _, info = load_model(study.experiment, str(weights / "a.pt"))
    assert info is not None


def test_an_output_is_written_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output = OutputFile("--csv", Path("t.csv"))
    monkeypatch.chdir("/")
    assert output.write("1") == Path("t.csv")
    assert (tmp_path / "t.csv").read_text() == "1"


# -- data -----------------------------------------------------------------------------------


def test_data_that_changes_between_two_readings_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = torch.zeros(4, 1, 2, 2)
    data = [(images[number], 0) for number in range(4)]
    batches = Batches(data, 2)
    monkeypatch.setattr("fxfault.experiment.parts.KEPT_BYTES", 0)
    assert len(list(batches)) == len(list(batches)) == 2
    images[3] += 1
    with pytest.raises(DataError, match="batch 1 of the data set is not what it was"):
        list(batches)


# -- what an output may not name ------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "s.sqlite"
    axes = {"layers": ["all"], "injection_type": ["random"], "probability": [2.0]}
    run_study(small_study(axes=axes, stop=None, trials=2), path)
    return path


PATHS = {
    "the file": lambda f: f / "s.sqlite",
    "log": lambda f: f / "s.sqlite-wal",
    "index": lambda f: f / "s.sqlite-shm",
    "journal": lambda f: f / "s.sqlite-journal",
    "lock": lambda f: f / "s.sqlite-lock",
    "capitals": lambda f: f / "S.SQLite-WAL",
    "relative": lambda f: f / "sub" / ".." / "s.sqlite-wal",
    "link": lambda f: f / "link",
    "folder link": lambda f: f / "here" / "s.sqlite-wal",
    "hard link": lambda f: f / "hard",
}


@pytest.fixture
def store_folder(tmp_path: Path, finished: Path) -> Path:
    """A store with a log, as a killed study leaves it, and ways to it."""
    shutil.copy(finished, tmp_path / "s.sqlite")
    with Store.open(tmp_path / "s.sqlite", write=True) as store:
        store.register(["another cell"])
        for ending in ("", "-wal", "-shm"):
            shutil.copy(tmp_path / f"s.sqlite{ending}", tmp_path / f"kept{ending}")
    for ending in ("", "-wal", "-shm"):
        os.replace(tmp_path / f"kept{ending}", tmp_path / f"s.sqlite{ending}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("s.sqlite-wal")
    (tmp_path / "here").symlink_to(".")
    os.link(tmp_path / "s.sqlite-wal", tmp_path / "hard")
    return tmp_path


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize(
    "options", [["export", "--csv"], ["export", "--json"], ["report", "--html"]]
)
def test_an_output_is_no_file_of_the_store(
    store_folder: Path, way: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in store_folder.glob("s.sqlite*")}
    command, flag = options
    name = PATHS[way](store_folder)
    assert main([command, "--store", str(store_folder / "s.sqlite"), flag, str(name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {flag}: {name} is the ")
    assert line.endswith("name another file")
    assert {path: path.read_bytes() for path in store_folder.glob("s.sqlite*")} == before


@pytest.mark.parametrize("way", [way for way in PATHS if way != "capitals"])
def test_an_output_of_any_command_is_no_file_of_any_store(store_folder: Path, way: str) -> None:
    with pytest.raises(ConfigError, match="name another file"):
        OutputFile("--output", PATHS[way](store_folder))


def test_pictures_take_the_place_of_no_store(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "f"
    assert main(["report", "--store", str(finished), "--figures", str(folder)]) == 0
    picture = min(folder.glob("*.svg"))
    shutil.copy(finished, picture)
    capsys.readouterr()
    assert main(["report", "--store", str(picture), "--figures", str(folder)]) == 2
    assert "is the store; name another file" in capsys.readouterr().err


def test_a_store_that_is_made_meanwhile_is_not_written_over(tmp_path: Path, finished: Path) -> None:
    output = OutputFile("--csv", tmp_path / "t.csv")
    shutil.copy(finished, tmp_path / "t.csv")
    with pytest.raises(FxFaultError, match="is the store"):
        output.write("1")
    assert (tmp_path / "t.csv").read_bytes() == finished.read_bytes()
