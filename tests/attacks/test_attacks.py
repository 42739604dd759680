"""Every attack of the table ends as it must: its status, one line at most, and no code is run."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from attacks.law import MAINS, breaches, ended
from attacks.table import Attack, attacks

TABLE = attacks()


def test_the_table_is_large_and_its_names_differ() -> None:
    assert len(TABLE) >= 250
    assert len({attack.name for attack in TABLE}) == len(TABLE)


@pytest.fixture(autouse=True)
def workers_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers begin with what this process has imported, which takes them seconds else."""
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forking)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", TABLE, ids=lambda attack: attack.name.replace(" ", "_"))
def test_an_attack(
    attack: Attack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FXFAULT_TRACEBACK", raising=False)
    attack.prepare()
    command, *argv = attack.argv
    capfd.readouterr()
    status = ended(MAINS[command], argv)
    err = capfd.readouterr().err
    assert status == attack.status, err
    assert err.count("\n") <= 1, err
    assert not breaches(status, err), err
    assert attack.says in err
    assert not os.path.exists("run")
