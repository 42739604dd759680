"""Every attack of the table ends as it must: its status, one line at most, and no code is run."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from attacks.law import MAINS, breaches, ended
from attacks.streams import FILE, Streams, status_with, stream_attacks
from attacks.table import Attack, attacks

from fxfault.campaign.workers import process_engine

TABLE = attacks()
STREAMS = list(stream_attacks())


def test_the_table_is_large_and_its_names_differ() -> None:
    rows = [*TABLE, *(attack for attack, _ in STREAMS)]
    assert len(rows) >= 250
    assert len({attack.name for attack in rows}) == len(rows)


@pytest.fixture(autouse=True)
def workers_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers from this process, which has imported what they need."""
    monkeypatch.setattr(process_engine, "FORKS", False)
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forking)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder, and show no tracebacks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FXFAULT_TRACEBACK", raising=False)


def _name(row: object) -> str:
    return row.name.replace(" ", "_") if isinstance(row, Attack) else ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", TABLE, ids=_name)
def test_an_attack(attack: Attack, capfd: pytest.CaptureFixture[str]) -> None:
    attack.prepare()
    command, *argv = attack.argv
    capfd.readouterr()
    status = ended(MAINS[command], argv)
    err = capfd.readouterr().err
    assert status == attack.status, err
    assert not breaches(status, err), err
    assert attack.says in err
    assert not os.path.exists("run")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("attack", "streams"), STREAMS, ids=_name)
def test_streams(attack: Attack, streams: Streams, capfd: pytest.CaptureFixture[str]) -> None:
    attack.prepare()
    capfd.readouterr()
    status = status_with(streams, attack.argv)
    err = capfd.readouterr().err
    assert status == attack.status, err
    if streams.err == FILE and status == 2:
        assert not breaches(status, err), err
        assert attack.says in err
    else:
        assert err == ""
    if streams.out == FILE:
        # Nothing is lost where an encoding lacks a letter.
        assert bool(Path("stdout.txt").read_bytes()) == (status == 0)
