"""What is done for speed in a study: never at the cost of another row."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign_tools import outcome, small_study

import fxfault
from fxfault import passes
from fxfault.campaign.driver import run_study
from fxfault.campaign.workers.plan import Plan
from fxfault.campaign.workers.process_engine import ProcessEngine
from fxfault.campaign.workers.worker_history import WorkerHistory
from fxfault.errors import ConfigError, FxFaultError
from fxfault.evaluation import make_runner
from fxfault.evaluation.compiled_runner import USED
from fxfault.evaluation.incremental import free_memory
from fxfault.evaluation.incremental import runner as incremental
from fxfault.evaluation.incremental.runner import IncrementalRunner

CPU = torch.device("cpu")


FEW: dict[str, Any] = {"stop": None, "trials": 3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The rows without anything that is done for speed."""
    path = tmp_path_factory.mktemp("plain") / "study.sqlite"
    run_study(small_study(**FEW), path, incremental=False, freeze=False)
    return outcome(path)


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile by a backend that takes no time."""
    real = passes.compilation.compile

    def quickly(*args: Any, **options: Any) -> Any:
        return real(*args, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(fxfault, "compile", quickly)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of torch, about itself.
        yield
    torch._dynamo.reset()


def without_doubt(notes: list[str]) -> list[str]:
    """What is said beside that a network of random weights is no better than chance."""
    assert sum("no better than chance" in note for note in notes) == 1
    return [note for note in notes if "no better than chance" not in note]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_memory": 0},
        {"cache_memory": 4096, "verify": 100.0, "freeze": False},
        {"compile": True},
        {"compile": True, "incremental": False, "verify": 50.0},
    ],
    ids=str,
)
def test_rows_do_not_depend_on_what_is_done_for_speed(
    tmp_path: Path, plain: list[tuple[Any, ...]], quick_compiler: None, options: dict[str, Any]
) -> None:
    notes: list[str] = []
    study = small_study(**FEW)
    run_study(study, tmp_path / "study.sqlite", on_note=notes.append, **options)
    assert outcome(tmp_path / "study.sqlite") == plain
    assert without_doubt(notes) == ([USED] if options.get("compile") else [])


def test_compiled_code_is_used_where_every_sample_is_struck(quick_compiler: None) -> None:
    from fxfault.campaign.workers.trial_runner import TrialRunner

    trial_runner = TrialRunner(Plan(study=small_study().to_dict(), compile=True))
    cell = small_study().cells(trial_runner.facts().sites, {})[-1]
    expected = TrialRunner(Plan(study=small_study().to_dict())).run(cell, 0)
    trial_runner.run(cell, 0)
    assert trial_runner._network is not None
    runner: Any = trial_runner._network.trials.runner
    runner.runner.run = None  # Whoever calls it fails.
    assert trial_runner.run(cell, 0).same_counts(expected)


def test_a_prediction_that_is_not_verified_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_rightly = incremental.Evaluation.run

    def wrong(self: Any) -> None:
        evaluate_rightly(self)
        if self.faults.trial == 2:
            self.revision.top[0] = self.revision.top[0].flip(0)

    path = tmp_path / "study.sqlite"
    monkeypatch.setattr(incremental.Evaluation, "run", wrong)
    with pytest.raises(FxFaultError, match=r"^verify: batch 0, sample 0: .* \(trial 2\)"):
        run_study(small_study(), path, verify=100.0)
    kept = outcome(path)
    monkeypatch.undo()
    run_study(small_study(), path)
    assert {row[1] for row in kept} == {0, 1}
    assert kept == outcome(path)[: len(kept)]


# -- what is asked for ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True, "freeze": False}, r"compile: only a frozen network is compiled"),
        ({"incremental": False, "cache_memory": 9}, r"cache_memory: nothing is kept, as every run"),
        ({"incremental": False, "verify": 5.0}, r"verify: nothing is to be compared"),
        ({"cache_memory": -1}, r"cache_memory: got -1, allowed: bytes, 0 and up"),
        ({"verify": 101.0}, r"verify: got 101\.0, allowed: a number from 0 to 100"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_study(small_study(), tmp_path / "study.sqlite", **options)
    assert not list(tmp_path.iterdir())


def test_workers_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "free_memory", lambda device: 8000)
    assert Plan(study={}).cache_memory_on(CPU) == 2000
    assert Plan(study={}, sharing=4).cache_memory_on(CPU) == 500
    assert Plan(study={}, sharing=4, cache_memory=1000).cache_memory_on(CPU) == 250
    # A worker of each GPU has that to itself.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert Plan(study={}, sharing=4).cache_memory_on(torch.device("cuda", 0)) == 1000
    assert Plan(study={}, sharing=4, device="cuda:0").cache_memory_on(torch.device("cuda")) == 500


def test_a_worker_of_several_knows_that_it_shares() -> None:
    plan = Plan(study={}, cache_memory=1000)
    assert ProcessEngine(4)._prepared(plan).cache_memory_on(CPU) == 250


def test_the_runner_gets_its_share() -> None:
    plan = Plan(study={}, cache_memory=999, sharing=3, verify=7.0)
    data: Any = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))]
    model = fxfault.transform(torch.nn.Sequential(_site()), {"enabled": True, "probability": 1.0})
    runner = make_runner(model.eval(), data, CPU, print, **plan.runner_options(CPU))
    assert isinstance(runner, IncrementalRunner)
    assert plan.runner_options(CPU) == {
        "incremental": True,
        "compile": False,
        "cache_memory": 333,
        "verify": 7.0,
    }


def _site() -> Any:
    from brevitas.nn import QuantIdentity

    return QuantIdentity(bit_width=4, scaling_impl_type="const", min_val=-1.0, max_val=1.0)


def test_why_batches_are_run_whole_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxfault.evaluation.incremental import golden_run

    why = golden_run.Independence("it is a test", mixing=True)
    monkeypatch.setattr(golden_run, "independence", lambda *_: why)
    notes: list[str] = []
    run_study(small_study(stop=None, trials=1), tmp_path / "s.sqlite", on_note=notes.append)
    assert without_doubt(notes) == ["batches are run whole: it is a test"]


def test_what_all_workers_say_is_said_once() -> None:
    said: list[str] = []
    history = WorkerHistory()
    history.on_note = said.append
    for text in ("compiled", "compiled", "not used any more", "compiled"):
        history.note(text)
    assert said == ["compiled", "not used any more"]
