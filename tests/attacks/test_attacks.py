"""Every attack of the table ends as it must: its status, one line at most, and no code is run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from attacks.table import Attack, attacks

from fxfault.cli import campaign, evaluate, inspect, train

MAINS: dict[str, Callable[[Sequence[str]], int]] = {
    "fxfault-campaign": campaign.main,
    "fxfault-eval": evaluate.main,
    "fxfault-inspect": inspect.main,
    "fxfault-train": train.main,
}
TABLE = attacks()
# An error of ours quotes its cause; what only says that it is a bug is one.
NEVER = ("Traceback", "this is a bug in fxfault")


def test_the_table_is_large_and_its_names_differ() -> None:
    assert len(TABLE) >= 250
    assert len({attack.name for attack in TABLE}) == len(TABLE)


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
    try:
        status = MAINS[command](argv)
    except SystemExit as end:  # argparse
        status = end.code if isinstance(end.code, int) else 1
    err = capfd.readouterr().err
    assert status == attack.status, err
    assert err.count("\n") <= 1, err
    assert len(err) < 6000
    assert not [text for text in NEVER if text in err], err
    assert attack.says in err
    if status == 2:
        assert err.startswith("error: ")
        assert err.rstrip("\n").isprintable()
    assert not os.path.exists("run")
