"""Running a study: which trials are run, what a store is refused for, and what a kill costs."""

from __future__ import annotations

import os
import random
import signal
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign_tools import SMALL, outcome, small_study, without_time

import fxfault
from fxfault.campaign import Cell, Study
from fxfault.campaign.driver import Progress, run_study
from fxfault.campaign.estimates.cell_states import EARLY, UNFINISHED, states
from fxfault.campaign.estimates.ranking import heat_map, rank_sites
from fxfault.campaign.estimates.summary import summarise
from fxfault.campaign.records import fingerprint
from fxfault.campaign.records.store import Store
from fxfault.campaign.trial_queue import TrialQueue
from fxfault.campaign.workers import trial_runner
from fxfault.campaign.workers.engine import Batch
from fxfault.campaign.workers.engines import LocalEngine, make_engine
from fxfault.campaign.workers.plan import Plan
from fxfault.campaign.workers.trial_runner import TrialRunner
from fxfault.data.batches import take_apart
from fxfault.errors import DataError, ForeignCodeError, FxFaultError, SiteError, StoreError
from fxfault.evaluation import FullRunner
from fxfault.evaluation.exposure import Exposure
from fxfault.evaluation.full.predictions import Predictions, predict
from fxfault.evaluation.rows import COUNTS, TrialRow, measure
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import Batches, load_model, open_test_data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a whole run in one process."""
    path = tmp_path_factory.mktemp("undisturbed") / "study.sqlite"
    run_study(small_study(), path)
    return path


# -- one trial ------------------------------------------------------------------------------


def predictions(top: list[list[int]], struck: list[bool] | None = None) -> Predictions:
    hit = None if struck is None else torch.tensor(struck)
    return Predictions(torch.tensor(top), torch.tensor([0, 1, 2, 3]), hit)


def counted(golden: Predictions, faulty: Predictions) -> TrialRow:
    return measure(golden, faulty, cell="c", trial=3, faults=9, elements=70, seconds=0.5)


def test_a_row_counts_what_the_faults_did() -> None:
    golden = predictions([[0, 1], [1, 0], [0, 2], [2, 0]])
    # Right and still right; now wrong; wrong and now right; wrong and now wrong otherwise.
    faulty = predictions([[0, 2], [2, 1], [2, 0], [1, 0]], [True, True, True, False])
    assert counted(golden, faulty) == TrialRow(
        cell="c",
        trial=3,
        samples=4,
        correct=2,
        golden_correct=2,
        sdc=3,
        critical_sdc=1,
        top5=None,
        faults=9,
        elements=70,
        struck=3,
        masked=1,
        seconds=0.5,
    )


def test_the_best_five_are_counted_where_there_are_five() -> None:
    golden = predictions([[4, 5, 6, 7, 8]] * 4)
    faulty = predictions([[4, 5, 6, 7, 0], [1, 5, 6, 7, 8], [4, 5, 6, 7, 8], [3, 2, 1, 0, 9]])
    assert counted(golden, replace(faulty, struck=torch.zeros(4, dtype=torch.bool))).top5 == 3


def test_predictions_that_cannot_be_compared_are_refused() -> None:
    golden = predictions([[0, 1]] * 4)
    with pytest.raises(FxFaultError, match="without a note of the struck ones"):
        counted(golden, golden)


def test_a_trial_is_the_evaluation_that_one_would_write_by_hand(undisturbed: Path) -> None:
    experiment = small_study().experiment
    model, _ = load_model(experiment, "bundled:digits")
    batches = Batches(open_test_data(experiment).dataset, 5)
    config = {"enabled": True, "apply_during": "eval", "seed": 7, "layers": "input_quant"}
    faulty = fxfault.transform(model, {**config, "probability": 2.0, "injection_type": "msb_flip"})
    faulty.faults.reset(trial=3)
    statistics = faulty.faults.new_statistics()
    golden, struck = predict(model, batches), predict(faulty, batches)
    changed = golden.top[:, 0] != struck.top[:, 0]
    cell = Cell.of(
        injection_type="msb_flip",
        probability=2,
        layers=["input_quant"],
        checkpoint="bundled:digits",
    )
    with Store.open(undisturbed) as store:
        row = next(row for row in store.rows(cell.key) if row.trial == 3)
    assert (row.samples, row.golden_correct, row.correct) == (24, golden.correct, struck.correct)
    assert row.sdc == int(changed.sum()) > 0
    assert (row.faults, row.elements) == (statistics.total_injections, 24 * 64)
    assert row.faults > 0


FAULTS: list[dict[str, Any]] = [
    {"probability": 3.0},
    {"probability": 0.0},
    {"probability": 3.0, "layers": ["features.2", "classifier.2"]},
    {"num_faults": 3, "layers": ["features.2", "classifier.2"]},
    {"injection_type": "stuck_at_1", "bit": 2, "probability": 3.0},
    {"injection_type": "bit_flip", "rate_unit": "bit", "probability": 1.0},
    {"hw_mask": True, "frequency_value": 16, "probability": 20.0},
    {
        "faults": [
            {"injection_type": "random", "probability": 30.0, "layers": "features.*"},
            {"injection_type": "stuck_at_0", "bit": 0, "probability": 30.0, "layers": "features.5"},
        ]
    },
]


@pytest.mark.parametrize("config", FAULTS, ids=str)
def test_elements_are_counted_without_an_activation_as_statistics_count_them(
    config: dict[str, Any],
) -> None:
    experiment = small_study().experiment
    model, _ = load_model(experiment, "bundled:digits")
    batches = Batches(open_test_data(experiment).dataset, 16)
    settings = {"enabled": True, "apply_during": "eval", "seed": 7, **config}
    faulty = fxfault.transform(model, settings)
    runner = FullRunner(faulty, batches)
    exposure = Exposure(faulty.faults, take_apart(next(iter(batches))), 24)
    assert None not in exposure.elements.values()
    faulty.faults.reset(trial=2)
    predictions, hits, elements = exposure.measured(runner.run)
    assert faulty.faults.statistics is None
    statistics = faulty.faults.new_statistics()
    again = runner.run()
    assert (hits, elements) == (statistics.total_injections, statistics.total_activations)
    assert elements > 0
    assert predictions.struck is not None
    assert torch.equal(predictions.top, again.top)
    assert bool(hits) == bool(predictions.struck.any())


def test_sites_that_a_container_calls_are_counted_by_statistics(
    branching: torch.nn.Module, faulty: Callable[..., Any]
) -> None:
    model = faulty(branching, probability=20.0, apply_during="eval").eval()
    data = torch.utils.data.TensorDataset(torch.randn(10, 12), torch.zeros(10, dtype=torch.int64))
    batches = Batches(data, 4)
    exposure = Exposure(model.faults, take_apart(next(iter(batches))), 10)
    assert None in exposure.elements.values()
    runner = FullRunner(model, batches)
    _, hits, elements = exposure.measured(runner.run)
    statistics = model.faults.new_statistics()
    runner.run()
    assert (hits, elements) == (statistics.total_injections, statistics.total_activations)
    assert hits > 0


# -- which trials ---------------------------------------------------------------------------


def row(cell: Cell, trial: int, **changes: Any) -> TrialRow:
    counts = {**dict.fromkeys(COUNTS[1:], 0), "samples": 100, "correct": 90, **changes}
    counts["sdc"] = 100 - counts["correct"]
    return TrialRow(cell=cell.key, trial=trial, **counts, seconds=0.1)


def nothing(key: str) -> list[TrialRow]:
    return []


@pytest.fixture
def cells() -> list[Cell]:
    return small_study().cells(["a", "b"])


def test_cells_get_their_trials_in_order(cells: list[Cell]) -> None:
    queue = TrialQueue(small_study(stop=None, trials=3), cells[:2], nothing)
    first, second = (cell.key for cell in cells[:2])
    assert queue.next(2) == Batch(first, (0, 1))
    assert queue.next(2) == Batch(first, (2,))
    assert queue.next(9) == Batch(second, (0, 1, 2))
    assert queue.next(1) is None
    assert (queue.running, queue.done, queue.wanted) == (6, False, 6)
    for cell in cells[:2]:
        for trial in (2, 0, 1):
            assert queue.take(row(cell, trial))
    assert (queue.running, queue.done, queue.finished_cells, queue.trials) == (0, True, 2, 6)


def test_a_row_that_comes_twice_or_uncalled_for_is_not_taken(cells: list[Cell]) -> None:
    queue = TrialQueue(small_study(stop=None, trials=2), cells[:1], nothing)
    queue.next(1)
    assert not queue.take(row(cells[0], 1))
    assert not queue.take(row(cells[1], 0))
    assert queue.take(row(cells[0], 0))
    assert not queue.take(row(cells[0], 0))
    assert queue.trials == 1


def test_a_cell_of_a_thousand_million_trials_takes_no_memory_for_them(cells: list[Cell]) -> None:
    """Neither for those that wait nor for the finished ones."""
    queue = TrialQueue(small_study(stop=None, trials=10**9), cells[:1], nothing)
    tracemalloc.start()
    try:
        for _ in range(200):
            batch = queue.next(50)
            assert batch is not None
            for trial in batch.trials:
                assert queue.take(row(cells[0], trial))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (queue.trials, queue.wanted) == (10_000, 10**9)
    assert peak < 200_000  # 20 bytes for each trial; a row has hundreds.


def test_gaps_between_stored_trials_come_first(cells: list[Cell]) -> None:
    stored = [row(cells[0], trial) for trial in (0, 3, 4, 7)]
    queue = TrialQueue(small_study(stop=None, trials=10), cells[:1], lambda key: stored)
    handed_out = [batch.trials for batch in iter(lambda: queue.next(3), None)]
    assert handed_out == [(1, 2, 5), (6, 8, 9)]
    fewer = TrialQueue(small_study(stop=None, trials=4), cells[:1], lambda key: stored)
    assert fewer.next(9) == Batch(cells[0].key, (1, 2))
    assert (fewer.next(9), fewer.wanted) == (None, 4)
    assert fewer.take(row(cells[0], 2))
    assert fewer.take(row(cells[0], 1))
    assert (fewer.done, fewer.wanted) == (True, 6)  # All that the store has.


def test_more_trials_are_asked_for_until_a_cell_is_sure(cells: list[Cell]) -> None:
    study = small_study(stop={"margin": 5.0, "min_trials": 2, "max_trials": 100})
    queue = TrialQueue(study, cells[:1], nothing)
    handed_out: list[int] = []
    while not queue.done:
        batch = queue.next(1)
        if batch is None:
            break
        (trial,) = batch.trials
        handed_out.append(trial)
        queue.take(row(cells[0], trial, correct=95 if trial % 2 else 80))
    assert queue.done
    assert handed_out == list(range(len(handed_out)))
    assert 2 < len(handed_out) < 100


@pytest.mark.parametrize("seed", range(5))
def test_the_order_in_which_rows_come_in_does_not_matter(cells: list[Cell], seed: int) -> None:
    """Also not which rows were there before, nor how many ran at a time."""
    study = small_study(stop={"margin": 5.0, "min_trials": 2, "max_trials": 40})
    draw = random.Random(seed)

    def accuracy(cell: Cell, trial: int) -> int:
        return random.Random(f"{cell.key}{trial}").randint(60, 99)

    def run(stored: dict[str, list[TrialRow]], workers: int) -> set[tuple[str, int]]:
        queue = TrialQueue(study, cells, lambda key: stored.get(key, []))
        done = {(key, row.trial) for key, rows in stored.items() for row in rows}
        running: list[tuple[str, int]] = []
        while not queue.done:
            while len(running) < workers and (batch := queue.next(draw.randint(1, 5))):
                running += [(batch.cell, trial) for trial in batch.trials]
            key, trial = running.pop(draw.randrange(len(running)))
            cell = Cell.from_key(key)
            assert queue.take(row(cell, trial, correct=accuracy(cell, trial)))
            done.add((key, trial))
            assert queue.wanted >= queue.trials == len(done)
        assert queue.wanted == len(done)
        return done

    whole = run({}, workers=1)
    assert run({}, workers=7) == whole
    kept = sorted(pair for pair in whole if draw.random() < 0.5)
    stored: dict[str, list[TrialRow]] = {}
    for key, trial in kept:
        cell = Cell.from_key(key)
        stored.setdefault(key, []).append(row(cell, trial, correct=accuracy(cell, trial)))
    assert run(stored, workers=3) == whole


# -- whole studies --------------------------------------------------------------------------


def test_a_study_ends_with_all_its_trials(undisturbed: Path) -> None:
    with Store.open(undisturbed) as store:
        counts = store.counts()
        rows = store.rows()
        assert store.study == small_study().to_dict()
    cells = small_study().cells(
        ["input_quant", "features.2", "features.5", "features.9", "classifier.2"],
    )
    assert len(counts) == len(cells) == 12
    assert min(counts.values()) < max(counts.values()) == 14  # Some were sure early, some never.
    assert len(set(counts.values())) > 2
    for key, count in counts.items():
        assert [r.trial for r in rows if r.cell == key] == list(range(count))
    assert any(r.sdc for r in rows)


def test_progress_is_told_as_rows_are_stored(tmp_path: Path, undisturbed: Path) -> None:
    told: list[Progress] = []
    last = run_study(small_study(), tmp_path / "study.sqlite", on_progress=told.append)
    assert (told[0].rows, told[0].trials, told[0].rate) == ((), 0, 0.0)
    rows = [row for progress in told for row in progress.rows]
    assert sorted(map(without_time, rows)) == sorted(outcome(undisturbed))
    assert last.is_finished
    assert last.trials == last.wanted == len(rows)
    assert last.finished_cells == len(last.cells) == 12
    assert [p.trials for p in told] == sorted({p.trials for p in told})
    assert last.rate > 0


def test_a_finished_study_is_not_run_again(tmp_path: Path, undisturbed: Path) -> None:
    path = tmp_path / "study.sqlite"
    path.write_bytes(undisturbed.read_bytes())
    told: list[Progress] = []
    last = run_study(small_study(), path, on_progress=told.append)
    assert (len(told), last.earlier, last.trials) == (1, last.trials, last.trials)
    assert outcome(path) == outcome(undisturbed)


class _Interrupted(LocalEngine):
    """Is interrupted after so many trials."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self.left = trials

    def receive(self, within: float | None = None) -> list[TrialRow]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().receive()


class _Slow(LocalEngine):
    """Waits before each trial, as long as it may."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.store, self.given = store, 0
        self.waits: list[float] = []
        self.unstored: list[int] = []

    def receive(self, within: float | None = None) -> list[TrialRow]:
        if within is not None:
            self.waits.append(within)
            assert len(self.waits) < 1000
            time.sleep(within)
            return []
        if self.given:
            with Store.open(self.store) as store:
                self.unstored.append(self.given - sum(store.counts().values()))
        self.given += 1
        return super().receive()


def test_finished_trials_do_not_wait_for_the_next_one(tmp_path: Path) -> None:
    """An engine may take an hour for the next one, and the driver may be killed meanwhile."""
    engine = _Slow(tmp_path / "study.sqlite")
    study = small_study(stop=None, trials=2)
    assert run_study(study, engine.store, engine=engine).is_finished
    assert engine.waits
    assert 0 <= min(engine.waits) <= max(engine.waits) <= 0.1
    assert set(engine.unstored) == {0}


def test_an_interrupted_study_is_gone_on_with_row_for_row(
    tmp_path: Path, undisturbed: Path
) -> None:
    path = tmp_path / "study.sqlite"
    for number in (1, 30, 40):
        before = len(outcome(path)) if path.exists() else 0
        with pytest.raises(KeyboardInterrupt):
            run_study(small_study(), path, engine=_Interrupted(number))
        assert len(outcome(path)) == before + number
    last = run_study(small_study(), path)
    assert last.earlier == 71
    assert outcome(path) == outcome(undisturbed)


def test_rows_do_not_depend_on_what_is_allowed_to_differ(tmp_path: Path, undisturbed: Path) -> None:
    path = tmp_path / "study.sqlite"
    study = small_study(optimizer={"learning_rate": 0.5}, stop=None, trials=3)
    run_study(study, path, incremental=False, freeze=False)
    known = {row[:2]: row for row in outcome(undisturbed)}
    assert len(outcome(path)) == 12 * 3
    assert all(known[row[:2]] == row for row in outcome(path))


def test_each_checkpoint_has_its_own_network(tmp_path: Path) -> None:
    names = ["bundled:digits", "bundled:digits_fat"]
    axes = {"checkpoint": names, "probability": [5.0], "layers": "all"}
    digits = {"name": "digits"}
    path = tmp_path / "study.sqlite"
    study = small_study(
        axes=axes, dataset=digits, training={"batch_size": 250}, stop=None, trials=2
    )
    run_study(study, path)
    with Store.open(path) as store:
        rows = store.rows()
        networks = store.fingerprint["networks"]
    assert [Cell.from_key(r.cell).checkpoint for r in rows] == [n for n in names for _ in range(2)]
    golden = {Cell.from_key(r.cell).checkpoint: r.golden_correct for r in rows}
    assert golden == {name: networks[name]["golden"]["correct"] for name in names}
    assert networks[names[0]]["state"] != networks[names[1]]["state"]
    fat = [r.correct for r in rows if "fat" in r.cell]
    assert min(fat) > max(r.correct for r in rows if "fat" not in r.cell)


def forked_run(path: Path) -> tuple[int, int]:
    """Run the study in a child; returns its number and where it writes a byte with each write."""
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run_study(small_study(), path, on_progress=lambda p: p.rows and os.write(telling, b"."))
        finally:
            os._exit(0)
    os.close(telling)
    return child, told


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_study_whose_driver_is_killed_again_and_again_ends_the_same(
    tmp_path: Path, undisturbed: Path
) -> None:
    """`python -m benchmarks.campaign_kills` does it with processes of their own."""
    path = tmp_path / "study.sqlite"
    moments, sizes, kills = random.Random(1), [0], 0
    for number in range(60):  # Six kills, and on a slow machine until a row is stored.
        if number >= 6 and sizes[-1] > 0:
            break
        child, told = forked_run(path)
        if number % 3:
            os.read(told, 1)  # The others are killed while they set themselves up.
        time.sleep(moments.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])  # On a fast one it may be done before.
        os.close(told)
        sizes.append(len(outcome(path)) if path.exists() and path.stat().st_size else 0)
    whole = outcome(undisturbed)
    assert kills >= 3
    assert sizes == sorted(sizes)
    assert any(0 < size < len(whole) for size in sizes)
    assert run_study(small_study(), path).earlier == sizes[-1]
    assert outcome(path) == whole


# -- numbers of faults, and several faults --------------------------------------------------

PLACES = ["features.2", "classifier.2"]
SEVERAL = [
    {"injection_type": "msb_flip", "probability": 3.0, "layers": "features.*"},
    {"injection_type": "bit_flip", "bit": 1, "num_faults": 2, "layers": "input_quant"},
]
OTHER_AXES = [
    {"layers": ["each", PLACES], "num_faults": [1, 5]},
    {"faults": {"both": SEVERAL, "second": SEVERAL[1:]}},
]


@pytest.mark.parametrize("axes", OTHER_AXES)
def test_rows_are_the_same_incrementally_and_in_full(tmp_path: Path, axes: dict[str, Any]) -> None:
    study = small_study(axes=axes, stop=None, trials=3)
    for name, options in {"a": {}, "b": {"incremental": False, "freeze": False}}.items():
        run_study(study, tmp_path / name, **options)
    rows = outcome(tmp_path / "a")
    assert rows == outcome(tmp_path / "b")
    assert any(row[5] for row in rows)  # SDCs


def test_every_sample_has_its_number_of_faults(tmp_path: Path) -> None:
    study = small_study(axes=OTHER_AXES[0], stop=None, trials=3)
    run_study(study, tmp_path / "study.sqlite")
    with Store.open(tmp_path / "study.sqlite") as store:
        rows = [(Cell.from_key(row.cell), row) for row in store.rows()]
    assert len(rows) == 6 * 2 * 3
    for cell, row in rows:
        assert (row.faults, row.struck) == (cell.num_faults * 24, 24)
    exposed = {cell.place: row.elements for cell, row in rows}
    assert exposed["features.2 classifier.2"] == sum(exposed[place] for place in PLACES)


def test_several_faults_are_those_that_one_would_set_by_hand(tmp_path: Path) -> None:
    study = small_study(axes={"faults": {"both": SEVERAL}}, stop=None, trials=2)
    run_study(study, tmp_path / "study.sqlite")
    experiment = small_study().experiment
    model, _ = load_model(experiment, "bundled:digits")
    batches = Batches(open_test_data(experiment).dataset, 5)
    settings = {"enabled": True, "apply_during": "eval", "seed": 7, "probability": 0.0}
    by_hand = fxfault.transform(model, settings)
    config = {**settings, "probability": 5.0, "faults": SEVERAL}
    by_hand.faults.set_faults(fxfault.FaultInjectionConfig.from_dict(config))
    with Store.open(tmp_path / "study.sqlite") as store:
        rows = store.rows()
    for row in rows:
        by_hand.faults.reset(trial=row.trial)
        statistics = by_hand.faults.new_statistics()
        assert row.correct == predict(by_hand, batches).correct
        assert row.faults == statistics.total_injections
        assert statistics.layer_stats[0].injected_count == 2 * 24
    assert rows[0].faults != rows[1].faults
    assert any(row.sdc for row in rows)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"num_faults": [1, 4000], "layers": "all"}, "num_faults: got 4000, allowed: up to the"),
        ({"num_faults": [1, 100], "layers": ["all", "classifier.2"]}, "up to the 64 elements"),
        ({"faults": {"a": [{"num_faults": 1, "layers": "none"}]}}, "'none' matches no site"),
        ({"injection_type": "bit_flip", "bit": [1, 7], "layers": "each"}, "at least 8 bits"),
    ],
)
def test_a_cell_that_cannot_be_run_is_found_before_any_trial(
    tmp_path: Path, axes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "study.sqlite"
    with pytest.raises(SiteError, match=message):
        run_study(small_study(axes=axes), path)
    assert not path.exists()


# -- what is known is found ----------------------------------------------------------------

FRAGILE = """
import torch
from brevitas.nn import QuantReLU
from torch import nn


class Net(nn.Module):
    # Two sites hold each value sixteen times and average; the one between holds it once.
    def __init__(self):
        super().__init__()
        for name in ("wide", "fragile", "wide_too"):
            site = QuantReLU(bit_width=4, scaling_impl_type="const", max_val=1.0)
            self.add_module(name, site)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.wide(x.repeat_interleave(16, 1)).reshape(-1, 10, 16).mean(2)
        x = self.fragile(x)
        x = self.wide_too(x.repeat_interleave(16, 1)).reshape(-1, 10, 16).mean(2)
        return x * self.scale


# Codes are 8 for the label and 2 for the others, whose order the highest bit alone turns round.
def data(split):
    labels = torch.arange(10).repeat(20)
    return torch.utils.data.TensorDataset(0.13 + 0.4 * nn.functional.one_hot(labels, 10), labels)
"""


def test_a_site_made_fragile_ranks_first_and_the_highest_bit_dominates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_fragile.py").write_text(FRAGILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import own_fragile  # type: ignore[import-not-found]

    torch.save(own_fragile.Net().state_dict(), "net.pt")
    study = small_study(
        dataset={"name": "own_fragile:data"},
        model={"name": "own_fragile:Net"},
        checkpoint={"path": "net.pt"},
        axes={"layers": "each", "injection_type": "bit_flip", "bit": "each", "num_faults": [2, 4]},
        stop=None,
        trials=12,
    )
    run_study(study, "study.sqlite")
    with Store.open("study.sqlite") as store:
        cells, table = [Cell.from_key(key) for key in store.cells()], store.table()
    summary = summarise(table, cells)
    first, second, _ = rank_sites(table, summary)
    assert first.name == "fragile"
    assert first.rank_high < second.rank_low
    assert first.fall_low > second.fall_high + 5
    found = heat_map(summary)
    assert found.faults == tuple(f"bit_flip {bit}" for bit in range(4))
    assert found.values.argmax(axis=1)[found.sites.index("fragile")] == 3
    weights = found.values.mean(axis=0)
    assert weights[3] > 2 * weights[:3].max()


# -- a study that grows ---------------------------------------------------------------------


def changed_stop(**changes: Any) -> Study:
    return small_study(stop={**SMALL["stop"], **changes})


def after(path: Path, *studies: Study) -> list[tuple[Any, ...]]:
    """The rows that a store has after some studies, one after the other."""
    for study in studies:
        assert run_study(study, path).is_finished
    with Store.open(path) as store:
        assert store.study == studies[-1].to_dict()
        assert store.fingerprint["study"] == fingerprint.of_study(studies[-1])
    return sorted(outcome(path))


MORE_AXES = {**SMALL["axes"], "injection_type": ["lsb_flip", *SMALL["axes"]["injection_type"]]}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (small_study(stop=None, trials=2), small_study(stop=None, trials=5)),
        (small_study(stop=None, trials=2), small_study()),
        (changed_stop(max_trials=6), small_study()),
        (changed_stop(margin=15.0), changed_stop(margin=4.0)),
        (changed_stop(confidence=80), changed_stop(confidence=99)),
        (small_study(stop=None, trials=3), small_study(stop=None, trials=4, axes=MORE_AXES)),
    ],
)
def test_a_study_that_grew_ends_as_if_it_had_always_been_so(
    tmp_path: Path, undisturbed: Path, first: Study, then: Study
) -> None:
    grown = after(tmp_path / "grown.sqlite", first, then)
    is_known = then.to_dict() == small_study().to_dict()
    at_once = outcome(undisturbed) if is_known else after(tmp_path / "at_once.sqlite", then)
    assert grown == sorted(at_once)
    with Store.open(tmp_path / "grown.sqlite") as store:
        cells, table = [Cell.from_key(key) for key in store.cells()], store.table()
    assert UNFINISHED not in states(then, table, cells)


def test_a_checkpoint_may_be_added(tmp_path: Path) -> None:
    axes = {"layers": "all", "checkpoint": ["bundled:digits"]}
    more = {**axes, "checkpoint": ["bundled:digits_fat", "bundled:digits"]}
    one, two = (small_study(axes=a, stop=None, trials=2) for a in (axes, more))
    assert after(tmp_path / "a.sqlite", one, two) == after(tmp_path / "b.sqlite", two)
    with Store.open(tmp_path / "a.sqlite") as store:
        assert set(store.fingerprint["networks"]) == set(more["checkpoint"])


def test_several_faults_may_be_added(tmp_path: Path) -> None:
    axes = {"faults": {"both": SEVERAL}}
    more = {"faults": {"second": SEVERAL[1:], "both": SEVERAL}}
    one, two = (small_study(axes=a, stop=None, trials=2) for a in (axes, more))
    assert after(tmp_path / "a.sqlite", one, two) == after(tmp_path / "b.sqlite", two)
    other = small_study(axes={"faults": {"both": SEVERAL[:1]}}, stop=None, trials=2)
    assert "study.axes.faults.both" in refusal_of(tmp_path / "a.sqlite", other)


def test_a_title_may_change_at_any_time(tmp_path: Path, undisturbed: Path) -> None:
    path = tmp_path / "study.sqlite"
    path.write_bytes(undisturbed.read_bytes())
    named = {**small_study().to_dict(), "title": "Digits", "notes": "Again."}

    progress = run_study(Study.from_dict(named), path)

    assert progress.trials == progress.earlier
    with Store.open(path) as store, Store.open(undisturbed) as old:
        assert (store.study["title"], store.study["notes"]) == ("Digits", "Again.")
        assert store.fingerprint == old.fingerprint
        assert store.rows() == old.rows()


def test_a_study_that_shrinks_keeps_its_trials(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    notes: list[str] = []
    run_study(small_study(stop=None, trials=9), path)
    rows = outcome(path)
    fewer = small_study(stop=None, trials=4)
    last = run_study(fewer, path, on_note=notes.append)
    assert (last.trials, last.wanted, last.is_finished) == (12 * 9, 12 * 9, True)
    assert outcome(path) == rows
    assert "no better than chance (10 classes)" in notes[0]  # Its weights are random.
    assert len(notes) == 2
    assert notes[-1].endswith(
        "1 difference: trials: 9 in the store, 4 now; all of its trials are kept"
    )
    # A rule by which cells are sure at a number of trials that they have passed.
    ruled = changed_stop(margin=15.0)
    assert run_study(ruled, path).trials == 12 * 9
    with Store.open(path) as store:
        cells, table = [Cell.from_key(key) for key in store.cells()], store.table()
    assert set(states(ruled, table, cells)) == {EARLY}


def test_a_study_that_lost_a_value_of_an_axis_is_refused(undisturbed: Path) -> None:
    axes = {**SMALL["axes"], "injection_type": ["random", "lsb_flip"]}
    message = refusal_of(undisturbed, small_study(axes=axes))
    assert 'study.axes.injection_type: ["random", "msb_flip"] in the store, ["random", ' in message
    assert "an axis may only gain values" in message
    for name, value in (("num_faults", 2), ("probability", [1.0])):
        axes = {"layers": ["each", "all"], "injection_type": ["random", "msb_flip"], name: value}
        assert "study.axes.probability" in refusal_of(undisturbed, small_study(axes=axes))


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_kill_just_after_a_study_grew_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.sqlite"
    small, large = (
        small_study(stop=None, trials=2),
        small_study(stop=None, trials=4, axes=MORE_AXES),
    )
    run_study(small, path)
    rows = outcome(path)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "register", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        child = os.fork()
        if child == 0:
            run_study(large, path)
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert outcome(path) == rows
    with Store.open(path) as store:
        resumed = Study.from_dict(store.study)
    assert resumed == large
    assert after(path, resumed) == after(tmp_path / "at_once.sqlite", large)


# -- what does not fit ----------------------------------------------------------------------


def refusal_of(path: Path, study: Study) -> str:
    before = outcome(path)
    with pytest.raises(StoreError) as caught:
        run_study(study, path)
    assert outcome(path) == before
    return str(caught.value)


def test_a_store_of_another_study_is_refused_before_anything_is_built(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_runner, "open_test_data", None)
    message = refusal_of(undisturbed, small_study(seed=8, stop=None, trials=3))
    assert "1 difference: study.fault_injection.seed: 7 in the store, 8 now; name" in message


def test_a_store_of_other_data_is_refused(
    undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "of_study", lambda study: {})
    other = {"name": "fake", "kwargs": {**SMALL["dataset"]["kwargs"], "seed": 2}}
    with Store.open(undisturbed) as store:
        stored = store.fingerprint
    now = TrialRunner(Plan(study=small_study(dataset=other).to_dict())).facts().fingerprint
    names = [line.rpartition(" in the")[0] for line in fingerprint.differences(stored, now)]
    names = [name.rpartition(": ")[0] for name in names]
    assert "data.inputs" in names
    assert "data.labels" not in names
    assert "networks.bundled:digits.golden.predictions" in names
    assert "networks.bundled:digits.state" not in names


def test_a_store_of_other_weights_is_refused(tmp_path: Path) -> None:
    model, _ = load_model(load_experiment("digits"), "bundled:digits")
    weights = tmp_path / "weights.pt"
    torch.save(model.state_dict(), weights)
    study = small_study(checkpoint={"path": str(weights)}, stop=None, trials=1)
    path = tmp_path / "study.sqlite"
    run_study(study, path)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    torch.save(model.state_dict(), weights)
    message = refusal_of(path, study)
    assert f"networks.{weights}.checkpoint: " in message
    assert f"networks.{weights}.state: " in message
    assert "..." in message


def test_a_store_of_another_version_is_refused(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.sqlite"
    path.write_bytes(undisturbed.read_bytes())
    versions = {**fingerprint.of_code(), "brevitas": "0.99"}
    monkeypatch.setattr(fingerprint, "of_code", lambda: versions)
    message = refusal_of(path, small_study())
    assert "1 difference: code.brevitas: 0.13" in message
    assert "0.99 now" in message


def test_the_same_is_the_same_to_a_fingerprint(undisturbed: Path) -> None:
    with Store.open(undisturbed) as store:
        stored = store.fingerprint
    plan = Plan(study=small_study().to_dict(), freeze=False, incremental=False)
    assert fingerprint.differences(stored, TrialRunner(plan).facts().fingerprint) == []


def test_a_large_data_set_is_hashed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Data:
        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            read.append(index)
            return torch.full((3,), float(index == self.odd)), 0

        odd = -1

    def of(odd: int, labels: torch.Tensor) -> dict[str, Any]:
        data = Data()
        data.odd = odd
        return fingerprint.of_data(data, [], Predictions(torch.zeros(100, 1), labels))

    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 0)
    monkeypatch.setattr(fingerprint, "SPOT_CHECKS", 10)
    labels = torch.zeros(100, dtype=torch.int64)
    plain = of(-1, labels)
    assert read == [0, *range(0, 100, 10)]
    assert plain["inputs_hashed"] == "1 of 10"
    assert of(30, labels)["inputs"] != plain["inputs"]
    assert of(31, labels) == plain  # What it does not see, and says so.
    labels[31] = 1
    assert of(-1, labels)["labels"] != plain["labels"]


def test_states_and_structures_tell_networks_apart(
    convnet: torch.nn.Module, faulty: Callable[..., Any]
) -> None:
    before = fingerprint.of_state(convnet)
    assert fingerprint.of_state(convnet) == before
    model = faulty(convnet)
    structure = fingerprint.of_structure(convnet, model.faults)
    with torch.no_grad():
        convnet[1].weight.add_(1e-3)
    assert fingerprint.of_state(convnet) != before
    other = faulty(torch.nn.Sequential(*list(convnet)[:-1]))
    assert fingerprint.of_structure(convnet, other.faults) == structure
    assert fingerprint.of_structure(other.faults.original, other.faults) != structure


# -- what cannot be run ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"checkpoint": {"path": "absent.pt"}}, DataError, "there is no such file"),
        ({"axes": {"layers": "conv9*"}}, SiteError, "matches no site"),
        ({"dataset": {"name": "fake", "kwargs": {"size": 4}}}, DataError, "takes images of 8 x 8"),
    ],
)
def test_what_cannot_be_run_leaves_no_store(
    tmp_path: Path, changes: dict[str, Any], error: type[FxFaultError], message: str
) -> None:
    path = tmp_path / "study.sqlite"
    with pytest.raises(error, match=message):
        run_study(small_study(**changes), path)
    assert not path.exists()


def test_a_store_that_cannot_be_written_is_found_out_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_runner, "open_test_data", None)
    with pytest.raises(StoreError, match="there is no folder"):
        run_study(small_study(), tmp_path / "absent" / "study.sqlite")
    (tmp_path / "notes.txt").write_text("not a store")
    with pytest.raises(StoreError, match="file is not a database"):
        run_study(small_study(), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "not a store"


def test_two_runs_on_one_store_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"

    def again(progress: Progress) -> None:
        with pytest.raises(StoreError, match="is being written by another process"):
            run_study(study, path)

    study = small_study(stop=None, trials=1)
    assert run_study(study, path, on_progress=again).is_finished


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path, undisturbed: Path) -> None:
    path = tmp_path / "study.sqlite"
    add, added = Store.add, []

    def full(self: Store, rows: Any) -> None:
        if len(added) > 2:
            self._connection.execute("PRAGMA max_page_count = 1")
            self._connection.execute("CREATE TEMP TABLE IF NOT EXISTS none (x)")
            raise StoreError("the disk is full")
        added.append(rows)
        add(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "add", full)
        with pytest.raises(StoreError, match="the disk is full"):
            run_study(small_study(), path)
    assert len(outcome(path)) == sum(map(len, added))
    run_study(small_study(), path)
    assert outcome(path) == outcome(undisturbed)


def test_data_of_one_sample_runs(tmp_path: Path) -> None:
    one = {"name": "fake", "kwargs": {"size": 1, "image_size": 8, "in_channels": 1}}
    study = small_study(dataset=one, trials=2, stop=None)
    assert run_study(study, tmp_path / "s.sqlite").is_finished


ENDS = """
import torch
from fxfault.models import build_model

class Ends(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.count = how, 0
        sizes = {"num_classes": 10, "in_channels": 1, "image_size": (8, 8)}
        self.net = build_model("quant_digits", weight_bit_width=4, act_bit_width=4, **sizes)

    def forward(self, images):
        self.__dict__["count"] += 1
        if self.count > 40:
            raise {"exit": SystemExit, "pipe": BrokenPipeError, "raise": KeyError}[self.how](0)
        return self.net(images)
"""


@pytest.mark.usefixtures("quick_servers")
@pytest.mark.parametrize("engine", ["local", "processes"])
@pytest.mark.parametrize("how", ["exit", "pipe", "raise"])
def test_a_network_that_ends_the_program_is_an_error_with_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ends_it.py").write_text(ENDS, encoding="utf-8")
    model, _ = load_model(load_experiment("digits"), "bundled:digits")
    torch.save({f"net.{key}": value for key, value in model.state_dict().items()}, "net.pt")
    study = small_study(
        model={"name": "ends_it:Ends", "kwargs": {"how": how}},
        checkpoint={"path": "net.pt"},
        trials=50,
        stop=None,
    )
    made = make_engine(engine, workers=1 if engine == "processes" else None)
    with pytest.raises(
        ForeignCodeError, match=r"^trial \d+ of net.*: (SystemExit|Broken|KeyError)"
    ):
        run_study(study, tmp_path / "s.sqlite", engine=made)
