"""`fxfault eval` as a user runs it: networks of one's own, progress, speed, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from cli_evaluate.tools import FAST, document, write_config
from commands import Run
from torch import nn

import fxfault
from fxfault import passes
from fxfault.cli import evaluate
from fxfault.cli.terminal import process_setup, progress
from fxfault.cli.terminal.arguments import OneLineParser
from fxfault.errors import DataError
from fxfault.evaluation.incremental import runner as incremental
from fxfault.experiment import parts as experiment_parts
from fxfault.faults.torch_versions import why_not_compiled
from fxfault.metrics.facts import ACCURACY
from fxfault.models import build_model
from fxfault.results.reports.text import percent

# -- a network and data of the user's own -------------------------------------------------


OWN = """
import torch
from brevitas.nn import QuantIdentity, QuantLinear
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.quant = QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.linear = QuantLinear(6, width, bias=True)

    def forward(self, x):
        return self.linear(self.quant(x)), "auxiliary"

def net(width):
    torch.manual_seed(0)
    made = Net(width).train()
    made(torch.randn(32, 6))
    return made

def data(split, size):
    g = torch.Generator().manual_seed(size)
    return torch.utils.data.TensorDataset(
        torch.randn(size, 6, generator=g), torch.randint(4, (size,), generator=g)
    )
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., str]:
    """Give a function that writes a configuration which names factories in the folder."""
    module = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(OWN, encoding="utf-8")

    def write(**faults: Any) -> str:
        content = {
            "dataset": {"name": f"{module}:data", "kwargs": {"size": 30}},
            "model": {"name": f"{module}:net", "kwargs": {"width": 4}},
            "fault_injection": {"probability": 50.0, "track_statistics": True, **faults},
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        made = build_model(
            f"{module}:net",
            num_classes=2,
            in_channels=1,
            image_size=(1, 1),
            weight_bit_width=8,
            act_bit_width=8,
            kwargs={"width": 4},
        )
        torch.save({"state_dict": made.state_dict()}, tmp_path / "own.pt")
        return "own.yaml"

    return write


def test_factories_in_the_current_folder(
    command: Callable[..., Run], own: Callable[..., str]
) -> None:
    run = command("--config", own(), "--checkpoint", "own.pt", "--plot", "own.png")
    assert run.status == 0, run.err
    found = document()
    assert found["dataset"]["num_classes"] is None  # and no chance level in the picture
    assert found["results"][0]["statistics"]["total_activations"] == 30 * 6
    assert [layer["name"] for layer in found["injection_layers"]] == ["quant"]


def test_the_seed_section_is_honoured(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "manual_seed", asked.append)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    config = write_config(seed={"value": 7, "deterministic": True})
    assert command("--config", config, "--batch-size", "250", "--probability", "1").status == 0
    assert asked == [7, ((True,), {"warn_only": True})]
    asked.clear()
    config = write_config(seed={"enabled": False, "deterministic": True})
    assert command("--config", config, "--batch-size", "250", "--probability", "1").status == 0
    assert asked == []


# -- progress -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "flags", "shown"),
    [(True, [], True), (True, ["--no-progress"], False), (False, [], False)],
)
def test_a_bar_is_shown_on_a_terminal_alone(
    command: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    flags: list[str],
    shown: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    run = command(*FAST, "--probability", "1", *flags)
    assert ("samples/s]" in run.err) is shown
    assert "samples/s]" not in run.out
    assert "Accuracy degradation" in run.out


def test_without_tqdm_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    made = progress.Progress(wanted=True)
    made.start(10)
    made.advance(5)
    made.say("line")
    made.close()
    assert capsys.readouterr() == ("line\n", "")


# -- incremental runs ---------------------------------------------------------------------


@pytest.fixture
def untracked(command: Callable[..., Run]) -> str:
    """A configuration without statistics, with which runs are incremental."""
    return write_config(fault_injection={"track_statistics": False})


@pytest.mark.parametrize("options", [("--cache-memory", "0"), ("--cache-memory", "64K")])
def test_results_do_not_depend_on_the_memory(
    command: Callable[..., Run], untracked: str, options: tuple[str, ...]
) -> None:
    flags = ("--config", untracked, "--batch-size", "250", "--probability", "0.05", "--per-layer")
    command(*flags)
    free = document()
    assert command(*flags, *options, "--verify", "100").status == 0
    small = document()
    for key in ("baseline", "results", "per_layer"):
        assert small[key] == free[key]


def test_why_batches_are_run_whole_is_said(
    command: Callable[..., Run], untracked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxfault.evaluation.incremental import golden_run

    why = golden_run.Independence("it is a test", mixing=True)
    monkeypatch.setattr(golden_run, "independence", lambda *_: why)
    run = command("--config", untracked, "--batch-size", "250")
    assert "Note: batches are run whole: it is a test\n" in run.out


def test_statistics_make_runs_full_which_is_said_where_it_matters(
    command: Callable[..., Run],
) -> None:
    assert "every run is a full one" not in command(*FAST).out
    assert "statistics are tracked" in command(*FAST, "--verify", "5").out


def test_a_prediction_that_is_not_verified_ends_the_command(
    command: Callable[..., Run], untracked: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    evaluate_rightly = incremental.Evaluation.run

    def wrong(self: Any) -> None:
        evaluate_rightly(self)
        self.revision.top[0] = self.revision.top[0].flip(0)

    monkeypatch.setattr(incremental.Evaluation, "run", wrong)
    run = command("--config", untracked, "--batch-size", "250", "--verify", "100")
    assert run.status == 2
    assert run.err.startswith("error: verify: batch 0, sample 0: ")


@pytest.mark.parametrize("options", [(), ("--verify", "50")])
def test_compiled_runs_give_the_same_results(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    flags = (*FAST, "--batch-size", "150")  # The last batch is smaller.
    command(*flags)
    plain = document()
    real = passes.compilation.compile

    def quickly(model: nn.Module, *inputs: Any, **options: Any) -> Any:
        return real(model, *inputs, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(fxfault, "compile", quickly)
    run = command(*flags, "--compile", *options)
    why_not = why_not_compiled()
    made = "compiled: without faults, the outputs for all data are bit for bit"
    assert f"Note: {f'not compiled: {why_not}' if why_not else made}" in run.out
    assert document()["results"] == plain["results"]


def test_why_nothing_is_compiled_is_said(
    command: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    run = command(*FAST, "--compile")
    assert run.status == 0
    why_not = why_not_compiled() or "torch.compile needs a C++ compiler"
    assert f"Note: not compiled: {why_not}" in run.out


def test_only_a_frozen_network_is_compiled(command: Callable[..., Run]) -> None:
    run = command(*FAST, "--compile", "--no-freeze")
    assert run.status == 2
    assert run.err.startswith("error: --compile needs a frozen network")


# -- Ctrl-C -------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_finished_probabilities(
    command: Callable[..., Run], interrupt_after: Callable[[int], None]
) -> None:
    interrupt_after(1 + 2 * 2 + 1)  # in the middle of the third probability
    argv = ["--sweep", "1,2,5,10", "--num-runs", "2", "--csv", "c.csv", "--plot", "c.png"]
    run = command(*FAST, *argv)
    assert run.status == 130
    assert (
        run.err
        == "interrupted: 2 of 4 probabilities done and kept; the JSON says complete: false\n"
    )
    assert document()["complete"] is False
    assert [entry["probability"] for entry in document()["results"]] == [1.0, 2.0]
    assert len(Path("c.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert Path("c.png").stat().st_size > 0


def test_ctrl_c_keeps_the_finished_layers(
    command: Callable[..., Run], interrupt_after: Callable[[int], None]
) -> None:
    interrupt_after(1 + 1 + 3)
    run = command(*FAST, "--per-layer", "--plot", "c.png")
    assert run.status == 130
    assert run.err == "interrupted: 3 of 5 layers done and kept; the JSON says complete: false\n"
    assert {entry["index"] for entry in document()["per_layer"]} == {0, 1, 2}


def test_ctrl_c_before_the_first_layer_draws_no_picture(
    command: Callable[..., Run], interrupt_after: Callable[[int], None], tmp_path: Path
) -> None:
    interrupt_after(2)
    assert command(*FAST, "--per-layer", "--plot", "c.png").status == 130
    assert document()["per_layer"] == []
    assert os.listdir(tmp_path) == ["fault_eval_random.json"]


@pytest.mark.parametrize("evaluations", [0, 1])
def test_ctrl_c_before_the_first_result_writes_nothing(
    command: Callable[..., Run],
    interrupt_after: Callable[[int], None],
    tmp_path: Path,
    evaluations: int,
) -> None:
    interrupt_after(evaluations)
    run = command(*FAST, "--sweep", "1,2")
    assert run == (130, run.out, "interrupted before the first result: nothing was written\n")
    assert os.listdir(tmp_path) == []


def test_a_real_interrupt(tmp_path: Path) -> None:
    argv = [*FAST, "--sweep", "0,1,2,5,10,20,50,100", "--num-runs", "8"]
    with forked.command("fxfault-eval", argv, folder=tmp_path) as process:
        for line in process.stdout:  # Lines come as they are printed, also in a pipe.
            if "probability 1%" in line:
                process.send_signal(signal.SIGINT)
                break
        assert process.wait() == 130
        err = process.stderr
    assert "1 of 8 probabilities done and kept" in err
    assert "Traceback" not in err
    assert len(document(str(tmp_path / "fault_eval_random.json"))["results"]) == 1


# -- parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (10.0, 1, "10.0%"),
        (0.05, 1, "0.05%"),
        (1e-7, 1, "1e-07%"),
        (100.0, 0, "100%"),
        (12.5, 0, "12.5%"),
    ],
)
def test_percentages_keep_all_their_digits(value: float, decimals: int, text: str) -> None:
    assert percent(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"), [(5.14, "+5.14"), (-0.4, "-0.40"), (-0.001, "+0.00"), (0.0, "+0.00")]
)
def test_differences_have_a_sign_and_no_negative_zero(value: float, text: str) -> None:
    assert ACCURACY.signed(value) == text


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_small_data_is_read_once(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    read: list[int] = []

    class Data:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            read.append(index)
            return torch.full((2,), float(index)), index

    monkeypatch.setattr(experiment_parts, "KEPT_BYTES", kept_bytes)
    batches = experiment_parts.Batches(Data(), 2)
    next(iter(batches))  # A pass that was not finished keeps nothing.
    read.clear()
    passes = [[batch.targets.tolist() for batch in batches] for _ in range(3)]
    assert passes == [[[0, 1], [2, 3], [4]]] * 3
    assert read == list(range(5)) * (1 if kept_bytes else 3)


def test_data_that_fails_is_an_error_that_quotes_it() -> None:
    class Data:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            raise ZeroDivisionError("no\nluck")

    with pytest.raises(DataError, match="cannot be read: ZeroDivisionError: no luck"):
        list(experiment_parts.Batches(Data(), 2))


@pytest.mark.parametrize(
    ("operations", "environment", "threads"),
    [(1e6, {}, [1]), (1e10, {}, []), (1e6, {"OMP_NUM_THREADS": "4"}, [])],
)
def test_small_networks_run_on_one_thread_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    operations: float,
    environment: dict[str, str],
    threads: list[int],
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process_setup.fit_threads(int(operations), torch.device("cpu"))
    assert asked == threads


@pytest.mark.parametrize(
    ("argv", "status"), [(["--help"], 0), (["--confg", "digits"], 2), (["--sweep", "x"], 2)]
)
def test_help_and_a_bad_flag_do_not_import_what_is_slow(argv: list[str], status: int) -> None:
    program = (
        "import sys; from fxfault.cli.evaluate import main\n"
        f"try: main({argv!r})\n"
        "except SystemExit as end: assert end.code == int(sys.argv[1]), end.code\n"
        "slow = {'torch', 'brevitas', 'numpy', 'matplotlib', 'tqdm', 'pydantic', 'yaml'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(status)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout) is (status == 0)


def test_help_names_every_option_of_the_specification() -> None:
    text = OneLineParser.of("fxfault eval", evaluate.add_options).format_help()
    for flag in "config checkpoint probability injection-type mode sweep num-runs output".split():
        assert f"--{flag}" in text
    assert "--no-progress" in text
