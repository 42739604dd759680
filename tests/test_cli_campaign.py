"""`fxfault campaign` as a user runs it: what it prints, what it writes, and how it stops."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import Run

from fxfault.campaign import Cell, Study
from fxfault.campaign.driver import Progress as StudyProgress
from fxfault.campaign.estimates.intervals import student_t
from fxfault.campaign.records.store import Store
from fxfault.cli import campaign, campaign_progress
from fxfault.evaluation.rows import REALS, TrialRow
from fxfault.results.reports import campaign_export
from fxfault.results.reports.campaign_plan import Measured, plan_lines
from fxfault.results.reports.text import csv_text, duration

SITES = ("stem.act", "body.act", "head.act")
# Chance of a changed prediction at 5 %.
WEAKNESS = {"stem.act": 0.04, "body.act": 0.3, "head.act": 0.01}


@pytest.fixture
def command(run_command: Callable[..., Run]) -> Callable[..., Run]:
    """Give a function that runs the command in an empty folder."""
    return functools.partial(run_command, campaign.main)


def small(**changes: Any) -> dict[str, Any]:
    """A study of two cells and two trials."""
    base = {
        "dataset": {"name": "digits"},
        "model": {"name": "quant_digits"},
        "quantization": {"weight_bit_width": 4, "act_bit_width": 4},
        "training": {"batch_size": 250},
        "checkpoint": {"path": "bundled:digits"},
        "axes": {"layers": ["all"], "probability": [1, 5]},
        "trials": 2,
    }
    return {**base, **changes}


def write_study(name: str = "small.yaml", **changes: Any) -> str:
    Path(name).write_text(yaml.safe_dump(small(**changes)), encoding="utf-8")
    return name


def write_store(
    name: str = "study.sqlite",
    trials: int = 12,
    *,
    better: float = 0.0,
    seed: int = 42,
    checkpoints: Sequence[str] = ("a.pt",),
    stop: dict[str, Any] | None = None,
    axes: dict[str, Any] | None = None,
) -> list[TrialRow]:
    """A store of invented trials; in each, a sample changes at the same draw in every store."""
    axes = axes or {
        "layers": "each",
        "injection_type": ["random", "msb_flip"],
        "probability": [1, 5],
        "checkpoint": list(checkpoints),
    }
    end = {"trials": trials or 12} if stop is None else {"trials": None, "stop": stop}
    study = Study.from_dict(small(axes=axes, seed=seed, **end))
    cells = study.cells(SITES)
    rows = [row for cell in cells for row in invented(cell, trials, seed, better)]
    with Store.create(name, study.to_dict(), {"code": {"torch": "2.13"}}) as store:
        store.register(cell.key for cell in cells)
        store.add(rows)
    return rows


def invented(cell: Cell, trials: int, seed: int, better: float) -> list[TrialRow]:
    weak = [WEAKNESS[site] for site in cell.layers or SITES]
    twice = 2 if cell.injection_type == "msb_flip" else 1
    chance = (1 - better) * sum(weak) * twice * cell.probability / 5
    random = np.random.default_rng([seed, round(cell.probability), twice])
    found = []
    for number in range(trials):
        draws = random.random(500)
        sdc, critical = int((draws < chance).sum()), int((draws[:480] < chance).sum())
        struck = max(300, sdc)
        counts = (500, 480 - critical, 480, sdc, critical, 490, 50, 5000, struck, struck - sdc)
        found.append(TrialRow(cell.key, number, *counts, 0.25))
    return found


def tables(text: str) -> list[list[list[str]]]:
    """The tables of an output, each with its head; fails where columns do not line up."""
    found, lines = [], text.splitlines()
    for number, line in enumerate(lines):
        if set(line) != {"-"}:
            continue
        table = [lines[number - 1]]
        for row in lines[number + 1 :]:
            if " | " not in row:
                break
            table.append(row)
        edges = {tuple(i for i, sign in enumerate(row) if sign == "|") for row in table}
        assert len(edges) == 1, table
        found.append([[entry.strip() for entry in row.split("|")] for row in table])
    return found


# -- the command line -----------------------------------------------------------------------


def test_help_names_every_command_with_its_options_and_needs_no_torch() -> None:
    code = (
        "import sys, contextlib, fxfault.cli.campaign as c\n"
        "for words in (['--help'], *([name, '--help'] for name in c.COMMANDS)):\n"
        "    with contextlib.suppress(SystemExit): c.main(words)\n"
        "print([m for m in ('torch', 'brevitas', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.rstrip().endswith("[]")
    for name in campaign.COMMANDS:
        assert f"fxfault campaign {name} [-h]" in run.stdout
    for flag in ("--engine", "--gpus-per-trial", "--figures", "--parquet", "--margin"):
        assert flag in run.stdout


def test_without_a_command_the_help_is_shown(command: Callable[..., Run]) -> None:
    assert command().out == command("--help").out
    assert command().status == 0


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["rnu"], ["unknown command 'rnu' (did you mean 'run'?)"]),
        (["--store", "x"], ["unknown command '--store'", "commands: run, status"]),
        (["run", "digits_study"], ["--store"]),
        (["run", "--store", "x"], ["FILE"]),
        (["run", "digits_study", "--store", ""], ["--store", "''"]),
        (["run", "digit_study", "--store", "x"], ["did you mean 'digits_study'"]),
        (["run", "digits_study", "--store", "x", "--worker", "2"], ["did you mean '--workers'?"]),
        (["run", "digits_study", "--store", "x", "--workers", "0"], ["--workers", "'0'"]),
        (["run", "digits_study", "--store", "x", "--workers", "2"], ["'local' takes no workers"]),
        (["run", "digits_study", "--store", "x", "--engine", "dask"], ["'dask'", "processes"]),
        (["run", "digits_study", "--store", "x", "--gpus-per-trial", "-1"], ["'-1'", "from 0"]),
        (["run", "digits_study", "--store", "no/x"], ["no folder", "'no'"]),
        (["run", "digits_study", "--store", "x", "--cache-memory", "much"], ["'much'"]),
        (["run", "digits_study", "--store", "x", "--compile", "--no-freeze"], ["only a frozen"]),
        (
            ["run", "digits_study", "--store", "x", "--no-incremental", "--verify", "5"],
            ["verify: nothing is to be compared"],
        ),
        (["plan", "digits_study", "--no-incremental", "--cache-memory", "1G"], ["nothing is kept"]),
        (["status", "--store", "x"], ["x: there is no such store"]),
        (["resume", "--store", "x"], ["x: there is no such store"]),
        (["report", "--store", "text.txt"], ["text.txt"]),
        (["report", "--store", "x", "--confidence", "0.95"], ["--confidence", "from 50"]),
        (["report", "--store", "x", "--confidence", "100"], ["--confidence", "99.999"]),
        (["report", "--store", "x", "--figures", "text.txt"], ["--figures: text.txt"]),
        (["export", "--store", "x"], ["--csv, --json or --parquet"]),
        (["export", "--store", "x", "--csv", "x"], ["--csv: x is the store"]),
        (["export", "--store", "x", "--csv", "y", "--json", "y"], ["--json: y is the file of"]),
        (["export", "--store", "x", "--csv", "no/y"], ["--csv: no/y", "folder"]),
        (["compare", "x"], ["B"]),
        (["compare", "x", "y"], ["x: there is no such store"]),
        (["plan", "digits_study", "--margin", "0"], ["--margin", "'0'"]),
        (["plan", "digits_study", "--margin", "nan"], ["--margin", "'nan'"]),
        (["plan", "text.txt"], ["text.txt"]),
    ],
)
def test_a_bad_command_line_is_one_line(
    command: Callable[..., Run], argv: list[str], parts: list[str]
) -> None:
    Path("text.txt").write_text("no store\n" * 200, encoding="utf-8")

    run = command(*argv)

    assert run.status == 2
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    assert all(part in run.err for part in parts), run.err
    assert Path("text.txt").read_text(encoding="utf-8") == "no store\n" * 200
    assert {path.name for path in Path().iterdir()} <= {"text.txt", "x-lock"}


# -- run, resume and status -----------------------------------------------------------------


def test_a_study_is_run_once_and_for_all(command: Callable[..., Run]) -> None:
    run = command("run", write_study(), "--store", "s.sqlite", "--no-incremental")

    assert (run.status, run.err) == (0, "")
    first, second, third = run.out.splitlines()
    assert first == "2 cells, at least 4 trials"
    assert second.startswith("Finished: 2 cells, 4 trials, 4 of them in ")
    assert third == "See fxfault campaign report --store s.sqlite"
    again = command("run", "small.yaml", "--store", "s.sqlite", "--no-incremental")
    assert again.out.splitlines()[:2] == [
        "2 cells, at least 4 trials, 4 of them there",
        "Finished: 2 cells, 4 trials, all there before",
    ]
    status = command("status", "--store", "s.sqlite")
    assert "Cells: 2 of 2 finished\nTrials: 4\n2 of 2 cells have their 2 trials.\n" in status.out


def test_an_interrupted_study_says_what_is_kept_and_how_to_go_on(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = campaign_progress.CampaignProgress.follow

    def interrupted(self: campaign_progress.CampaignProgress, study: StudyProgress) -> None:
        follow(self, study)
        if study.trials:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(campaign_progress.CampaignProgress, "follow", interrupted)
        patch.setattr("fxfault.campaign.driver._WRITE_EVERY", 0.0)
        run = command("run", write_study(), "--store", "s.sqlite", "--no-incremental")
    assert run.status == 130
    kept = sum(1 for _ in Store.open("s.sqlite").rows())
    assert 0 < kept < 4
    are = "1 trial is" if kept == 1 else f"{kept} trials are"
    assert run.err == (
        f"interrupted: {are} kept in s.sqlite; continue with: "
        "fxfault campaign resume --store s.sqlite\n"
    )
    status = command("status", "--store", "s.sqlite").out
    assert f"Missing: at least {4 - kept} trials, about " in status
    assert "Continue with: fxfault campaign resume --store s.sqlite" in status

    resumed = command("resume", "--store", "s.sqlite", "--no-incremental")

    assert f"4 trials, {4 - kept} of them in" in resumed.out
    command("run", "small.yaml", "--store", "whole.sqlite", "--no-incremental")
    stores = [Store.open(name).rows() for name in ("s.sqlite", "whole.sqlite")]
    assert all(a.same_counts(b) for a, b in zip(*stores, strict=True))


def test_an_interrupt_before_the_first_trial(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxfault.campaign.driver.run_study", interrupted)

    run = command("run", write_study(), "--store", "s.sqlite")

    assert (run.status, run.err) == (130, "interrupted before the first trial was finished\n")


def test_options_of_the_engine_reach_it(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def run_study(study: Study, store: Path, **settings: Any) -> StudyProgress:
        seen.update(settings, store=store)
        return StudyProgress((), 0, 0, 0, 0, 1.0)

    monkeypatch.setattr("fxfault.campaign.driver.run_study", run_study)
    monkeypatch.setattr(
        "fxfault.campaign.workers.engines.make_engine", lambda name, **given: (name, given)
    )
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    options = ["--engine", "ray", "--workers", "3", "--address", "auto", "--gpus-per-trial", "0.5"]
    options += ["--trial-timeout", "90"]
    speed = ["--cache-memory", "1K", "--verify", "5", "--compile", "--no-freeze"]

    command(
        *("run", "digits_study", "--store", "s", *options, *speed),
        *("--threads", "2", "--device", "cpu"),
    )

    assert threads == [2]  # The local engine runs in this process.
    assert (seen["cache_memory"], seen["verify"]) == (1024, 5.0)
    assert (seen["compile"], seen["freeze"]) == (True, False)
    given = {"workers": 3, "address": "auto", "gpus_per_trial": 0.5, "trial_timeout": 90.0}
    assert seen["engine"] == ("ray", given)
    assert (seen["threads"], seen["device"], seen["incremental"]) == (2, "cpu", True)
    assert seen["store"] == Path("s")


def study_progress(rows: Sequence[TrialRow], cell: Cell, **changes: Any) -> StudyProgress:
    progress = StudyProgress((cell,), 0, 10 + len(rows), 40, 10, 2.0, tuple(rows))
    return dataclasses.replace(progress, **changes)


def test_without_a_terminal_a_line_comes_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell.of(injection_type="random", probability=5, layers=["head.act"])
    shown = campaign_progress.CampaignProgress(wanted=True)
    shown.follow(study_progress([], cell))
    assert capsys.readouterr().out == "1 cell, at least 40 trials, 10 of them there\n"
    shown.follow(study_progress(invented(cell, 2, 1, 0.0), cell))
    assert capsys.readouterr().out == ""

    monkeypatch.setattr(campaign_progress, "_LINE_EVERY", 0.0)
    shown.follow(study_progress(invented(cell, 2, 1, 0.0), cell))

    line = "0 of 1 cell, 12 of at least 40 trials, 1.0 trials/s, at least 28.0 s left; "
    out = capsys.readouterr().out
    assert out.startswith(f"{line}head.act random 5%: accuracy 9")
    assert out.count("\n") == 1


def test_a_terminal_shows_a_bar_with_the_estimate_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    cell = Cell.of(injection_type="random", probability=5, layers=["head.act"])
    shown = campaign_progress.CampaignProgress(wanted=True)
    shown.follow(study_progress([], cell))
    rows = invented(cell, 2, 1, 0.0)
    shown.follow(study_progress(rows, cell))
    shown._bar.refresh()
    shown.close()

    err = capsys.readouterr().err
    right = sum(row.correct for row in rows) / 10
    _, high = student_t(right, np.var([row.correct / 5 for row in rows], ddof=1), 2)
    estimate = f"head.act random 5%: accuracy {right:.1f} ± {float(high) - right:.1f}%; "
    assert estimate in err
    assert f"most lost so far: {96 - right:.1f} points at head.act random 5%" in err
    assert "12/40" in err
    assert "0/1 cells" in err
    assert "trial" in err.partition("12/40")[2].partition("]")[0]  # Rate and time left.


def test_the_estimate_is_cut_to_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    cell = Cell.of(injection_type="random", probability=5, layers=["head.act"])
    shown = campaign_progress.CampaignProgress(wanted=True)
    shown.follow(study_progress([], cell))
    shown.follow(study_progress(invented(cell, 2, 1, 0.0), cell))
    text = shown._below.desc
    shown.close()

    assert text.startswith("head.act random 5%: accuracy ")
    assert len(text) == 29
    assert "most lost" not in capsys.readouterr().err


# -- the report -----------------------------------------------------------------------------


def test_the_report_has_estimates_ranking_and_heat_map(command: Callable[..., Run]) -> None:
    rows = write_store()

    run = command("report", "--store", "study.sqlite", "--cells")

    assert (run.status, run.err) == (0, "")
    assert "Cells: 12, trials: 144, 36.0 s of computing" in run.out
    assert "Golden accuracy: 96.00% (a.pt)" in run.out
    assert "Intervals: 95%, for other draws of faults on the same data" in run.out
    ranking, heat, drawn, cells = tables(run.out)
    assert len(cells) == 13
    first = dict(zip(cells[0], cells[1], strict=True))
    mine = [row for row in rows if row.cell == rows[0].cell]
    assert first["Site"] == "stem.act"
    assert first["Trials"] == "12"
    assert first["Accuracy"].split(" ")[0] == f"{sum(r.correct for r in mine) / 60:.2f}"
    assert first["Hit"] == "1"
    assert first["State"] == "done"
    assert [row[2] for row in ranking[1:]] == ["body.act", "stem.act", "head.act"]
    assert [row[1] for row in ranking[1:]] == ["1-1", "2-2", "3-3"]
    assert heat[0] == ["Site", "random", "msb_flip"]
    assert all(float(row[2]) > float(row[1]) for row in heat[1:])
    assert drawn[0][:2] == ["Struck", "Fault"]
    short = command("report", "--store", "study.sqlite").out
    assert tables(short) == [ranking, heat, drawn]
    assert "All 12 cells with their intervals: report --cells, or export." in short


def test_another_confidence_gives_wider_intervals(command: Callable[..., Run]) -> None:
    write_store()

    def widths(*options: str) -> list[float]:
        run = command("report", "--store", "study.sqlite", "--cells", *options)
        entries = [row[4] for row in tables(run.out)[-1][1:]]
        ends = [entry[entry.index("[") + 1 : -1].split(", ") for entry in entries]
        return [float(high) - float(low) for low, high in ends]

    assert all(a < b for a, b in zip(widths(), widths("--confidence", "99.9"), strict=True))


def test_the_report_says_which_cells_stopped_early_and_which_never_got_there(
    command: Callable[..., Run],
) -> None:
    stop = {"margin": 1.0, "min_trials": 2, "max_trials": 12}
    write_store(stop=stop)

    run = command("report", "--store", "study.sqlite", "--cells")

    states = [row[-1] for row in tables(run.out)[-1][1:]]
    assert set(states) == {"done", "not sure"}
    unsure = states.count("not sure")
    assert "Stop rule (±1 points at 95%, 2 to 12 trials): 0 of 12 cells stopped early." in run.out
    assert f"{unsure} never got within ±1 points at 95%: " in run.out
    assert "body.act msb_flip 5%" in run.out
    write_store("early.sqlite", 2, stop={**stop, "margin": 50.0})
    assert "12 of 12 cells stopped early." in command("report", "--store", "early.sqlite").out


def test_cells_of_one_trial_say_that_they_have_no_interval(command: Callable[..., Run]) -> None:
    write_store(trials=1)
    out = command("report", "--store", "study.sqlite", "--cells").out
    assert "12 cells of one trial: no interval of the accuracy." in out


def test_checkpoints_have_a_column_where_there_are_several(command: Callable[..., Run]) -> None:
    write_store(checkpoints=("a.pt", "b.pt"))

    cells = tables(command("report", "--store", "study.sqlite", "--cells").out)[-1]

    assert cells[0][3] == "Checkpoint"
    assert {row[3] for row in cells[1:]} == {"a.pt", "b.pt"}


def test_sites_struck_together_have_no_ranking(command: Callable[..., Run]) -> None:
    write_store(axes={"layers": "all", "probability": [1, 5]})

    run = command("report", "--store", "study.sqlite", "--figures", "pictures")

    assert len(tables(run.out)) == 1
    assert "ranking" not in run.out
    assert {path.name for path in Path("pictures").iterdir()} == {"accuracy.png", "accuracy.svg"}


def test_a_store_without_trials_has_no_report(command: Callable[..., Run]) -> None:
    write_store(trials=0)

    run = command("report", "--store", "study.sqlite")

    assert run.status == 2
    assert "no finished trial yet; continue with: fxfault campaign resume" in run.err
    status = command("status", "--store", "study.sqlite")
    assert status.status == 0
    assert "Cells: 0 of 12 finished" in status.out


def test_pictures_are_written_and_the_same_each_time(command: Callable[..., Run]) -> None:
    write_store()

    run = command("report", "--store", "study.sqlite", "--figures", "new/pictures")
    pictures = {path.name: path.read_bytes() for path in Path("new/pictures").iterdir()}
    command("report", "--store", "study.sqlite", "--figures", "again")

    names = ("accuracy", "ranking", "heat_map")
    assert set(pictures) == {f"{name}.{end}" for name in names for end in ("png", "svg")}
    assert all(f"Picture saved to: new/pictures/{name}" in run.out for name in pictures)
    assert {path.name: path.read_bytes() for path in Path("again").iterdir()} == pictures
    assert pictures["accuracy.png"].startswith(b"\x89PNG")
    for name, words in {
        "accuracy": ("random", "msb_flip", "golden, no faults", "each site alone, mean"),
        "ranking": ("body.act", "rank 1", "95% interval"),
        "heat_map": ("stem.act", "msb_flip", "SDC rate (%)"),
    }.items():
        text = pictures[f"{name}.svg"].decode()
        assert all(word in text for word in words), name


@pytest.mark.parametrize(
    "axes",
    [
        {"layers": "each", "probability": 5},
        {"layers": ["all", "each", ["stem.act", "head.act"]], "probability": [0, 1, 5]},
        {
            "layers": "each",
            "probability": [1, 5],
            "checkpoint": ["a.pt", "b.pt", "c.pt"],
            "injection_type": ["random", "msb_flip", "lsb_flip", "full_flip"],
        },
    ],
)
def test_pictures_of_unusual_studies_are_drawn(
    command: Callable[..., Run], axes: dict[str, Any]
) -> None:
    write_store(axes=axes, trials=3)

    run = command("report", "--store", "study.sqlite", "--figures", "pictures")

    assert run.status == 0
    assert len(list(Path("pictures").iterdir())) == 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0.000 s"), (59.94, "59.9 s"), (3599, "59 min 59 s"), (86_400 * 3, "3 days 0 h")],
)
def test_times_are_written_in_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- export ---------------------------------------------------------------------------------


def test_trials_are_exported_as_they_are(command: Callable[..., Run]) -> None:
    rows = write_store()

    run = command("export", "--store", "study.sqlite", "--csv", "t.csv", "--json", "t.json")

    assert run.out == "Trials saved to: t.csv\nTrials saved to: t.json\n"
    table = list(csv.DictReader(Path("t.csv").read_text(encoding="utf-8").splitlines()))
    document = json.loads(Path("t.json").read_text(encoding="utf-8"))
    assert document["schema"] == "fxfault-campaign/1"
    assert document["fingerprint"] == {"code": {"torch": "2.13"}}
    assert Study.from_dict(document["study"]).trials == 12
    assert len(table) == len(document["rows"]) == len(rows)
    for row, line, entry in zip(rows, table, document["rows"], strict=True):
        cell = Cell.from_key(row.cell)
        counts = dataclasses.asdict(row)
        assert counts.pop("due") == 0  # Then it is left out.
        assert {counts.pop(name) for name in REALS} == {None}  # Only a metric has them.
        assert {**cell.settings, **counts} == {**entry, "cell": row.cell}
        assert line["layers"] == cell.place
        assert (line["bit"], float(line["probability"])) == ("", cell.probability)
        assert [int(line[name]) for name in ("trial", "correct", "sdc", "top5")] == [
            row.trial,
            row.correct,
            row.sdc,
            row.top5,
        ]


def test_cells_are_exported_with_every_interval(command: Callable[..., Run]) -> None:
    write_store(axes={"layers": [["stem.act", "head.act"], "all"], "probability": 5})

    command("export", "--store", "study.sqlite", "--what", "cells", "--csv", "c.csv")

    first, second = csv.DictReader(Path("c.csv").read_text(encoding="utf-8").splitlines())
    assert (first["layers"], second["layers"]) == ("stem.act;head.act", "")
    assert first["state"] == "done"
    for name in ("accuracy", "fall", "sdc", "critical_sdc", "masked", "fault_rate", "top5"):
        low, value, high = (float(first[f"{name}{end}"]) for end in ("_low", "", "_high"))
        assert low <= value <= high
        assert int(first[f"{name}_n"]) > 0


def test_fewer_than_five_classes_have_no_top_five(command: Callable[..., Run]) -> None:
    study = Study.from_dict(small())
    rows = [dataclasses.replace(row, top5=None) for row in invented(study.cells(SITES)[0], 2, 1, 0)]
    with Store.create("study.sqlite", study.to_dict(), {}) as store:
        store.add(rows)

    command("export", "--store", "study.sqlite", "--json", "t.json")

    document = json.loads(Path("t.json").read_text(encoding="utf-8"))
    assert [row["top5"] for row in document["rows"]] == [None, None]
    assert "Top 5" not in command("report", "--store", "study.sqlite", "--cells").out


def test_parquet_without_pyarrow_is_one_clear_line(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        campaign_export.importlib.util,
        "find_spec",
        lambda name: None if name == "pyarrow" else find(name),
    )

    run = command("export", "--store", "study.sqlite", "--csv", "t.csv", "--parquet", "t.parquet")

    assert run.status == 2
    assert 'pyarrow is not installed; pip install "fxfault[parquet]"' in run.err
    assert not Path("t.csv").exists()


@pytest.mark.parametrize("at_once", [100_000, 1])
def test_parquet_holds_the_same_as_json(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """However many rows are put into columns at once."""
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(campaign_export, "_AT_ONCE", at_once)
    write_store()

    command("export", "--store", "study.sqlite", "--parquet", "t.parquet", "--json", "t.json")

    rows = json.loads(Path("t.json").read_text(encoding="utf-8"))["rows"]
    assert parquet.read_table("t.parquet").to_pylist() == rows


# -- compare and plan -----------------------------------------------------------------------


def test_a_hardened_network_is_found_to_be_better(command: Callable[..., Run]) -> None:
    write_store("plain.sqlite")
    write_store("hard.sqlite", better=0.3, checkpoints=("hardened.pt",))

    run = command("compare", "plain.sqlite", "hard.sqlite")

    assert (run.status, run.err) == (0, "")
    (table,) = tables(run.out)
    assert len(table) == 13
    weakest = next(row for row in table if row[:3] == ["body.act", "msb_flip", "5%"])
    assert weakest[3] == "12 pairs"
    assert weakest[-1] == "100.0%"
    assert float(weakest[5]) > float(weakest[4])
    assert "Mean over 12 cells: B - A = " in run.out
    assert "A in 0 of 12 cells." in run.out
    assert "Not in pairs" not in run.out


def test_studies_of_other_seeds_are_compared_without_pairs(command: Callable[..., Run]) -> None:
    write_store("a.sqlite", 5)
    write_store("b.sqlite", 7, seed=43)

    run = command("compare", "a.sqlite", "b.sqlite")

    assert tables(run.out)[0][1][3] == "5, 7"
    assert "Not in pairs" in run.out


def test_studies_without_a_common_cell_cannot_be_compared(command: Callable[..., Run]) -> None:
    write_store("a.sqlite", axes={"layers": "all", "probability": 5})
    write_store("b.sqlite", axes={"layers": "all", "probability": 7})

    run = command("compare", "a.sqlite", "b.sqlite")

    assert run.status == 2
    assert "no cell in common: A has random at 5% on all, B has random at 7% on all" in run.err


def test_the_plan_measures_two_trials_and_writes_nothing(command: Callable[..., Run]) -> None:
    study = write_study(axes={"layers": "each", "probability": [1, 5]}, trials=20)

    run = command("plan", study, "--margin", "5", "--workers", "2")

    assert (run.status, run.err) == (0, "")
    assert run.out.startswith("10 cells, 500 samples in a trial\n")
    assert "For a rate within ±5 points at 95% (Leveugle et al. 2009):" in run.out
    assert "input_quant: 384 samples of 256,000 possible faults, 1 trial for each cell" in run.out
    assert "as the file says: 200 trials, " in run.out
    assert [path.name for path in Path().iterdir()] == ["small.yaml"]


def test_why_nothing_is_compiled_is_said(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    study = write_study(trials=1)
    note = "Note: not compiled: torch.compile needs a C++ compiler, and there is no no-such-compi"
    for argv in (["plan", study], ["run", study, "--store", "x"]):
        assert note in command(*argv, "--compile").out


def test_the_plan_adds_up() -> None:
    bundled = Study.from_yaml("digits_study").to_dict()
    models = ["random", "msb_flip", "lsb_flip", "full_flip"]
    axes = {"layers": "each", "injection_type": models, "probability": [1.0, 5.0, 20.0]}
    study = Study.from_dict({**bundled, "axes": axes})
    cells = study.cells(SITES)
    row = invented(cells[0], 1, 1, 0.0)[0]
    rows = [row, dataclasses.replace(row, cell=cells[-1].key, seconds=0.75)]

    lines = plan_lines(study, Measured(cells, rows, {"stem.act": 4, "head.act": 8}), 1.0, 95.0, 4)

    text = "\n".join(lines)
    assert "stem.act: 6,489 samples of 20,000 possible faults, 13 trials for each cell" in text
    assert "head.act: 7,745 samples of 40,000 possible faults, 16 trials for each cell" in text
    assert "Time (0.500 s a trial, measured on two; 4 workers):" in text
    assert "at least, if every cell stops at once: 360 trials, 45.0 s" in text
    assert "at most, if none stops early: 3,600 trials, 7 min 30 s" in text
    assert "by this sample size: 576 trials, 1 min 12 s" in text


def test_no_spreadsheet_takes_a_name_for_a_formula() -> None:
    rows = [{"layers": ["@SUM(A1)", "b"], "faults": "=cmd|'/c calc'!A1", "fall": -1.5, "n": 3}]
    made = list(csv.reader(csv_text(rows).splitlines()))
    assert made[1] == ["'@SUM(A1);b", "'=cmd|'/c calc'!A1", "-1.5", "3"]
