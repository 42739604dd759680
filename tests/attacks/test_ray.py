"""Attacks on the Ray engine: the rows of the local one that trials or setting up end with."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks.law import MAINS, breaches, ended
from attacks.table import RUN, Attack, attacks

# Few: each starts a process that imports torch.
ROWS = ("network exit later, run", "data pipe, run")
TABLE = [attack for attack in attacks() if attack.name in ROWS]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for all, as it takes seconds to start."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fxfault[ray]'")
    # Ray's children import what we do, from here.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    try:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    finally:
        ray.shutdown()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("attack", TABLE, ids=lambda attack: attack.name.replace(" ", "_"))
def test_an_attack_by_ray(
    attack: Attack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    attack.prepare()
    capfd.readouterr()
    status = ended(MAINS[RUN[0]], [*attack.argv[1:], "--engine", "ray", "--workers", "1"])
    err = capfd.readouterr().err
    assert status == attack.status, err
    assert not breaches(status, err), err
    assert attack.says in err
