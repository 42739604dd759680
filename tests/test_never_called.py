"""A site that no forward reaches is named; it is not ranked, and exposes no element to faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from brevitas.nn import QuantReLU
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxfault.campaign import FaultEvaluation
from fxfault.campaign.fault_evaluation import with_num_faults
from fxfault.campaign.records.store import Store
from fxfault.cli import campaign, evaluate
from fxfault.data.batches import take_apart
from fxfault.errors import SiteError
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.evaluation.exposure import Exposure

LAYERS = ("first", "late", "never", "last")


def activation() -> QuantReLU:
    return QuantReLU(bit_width=4, scaling_impl_type="const", max_val=2.0)


class Choosy(nn.Module):
    """Calls `late` for batches with a large value alone, and `never` for none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.late, self.never, self.last = (activation() for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if bool((x > 1.9).any()):
            x = self.late(x)
        if bool((x < -1).any()):
            x = self.never(x)
        return self.head(self.last(x))


def data() -> TensorDataset:
    values = torch.rand(24, 8, generator=torch.Generator().manual_seed(2))
    values[20, 3] = 2.0  # In the third batch of eight.
    return TensorDataset(values, torch.arange(24) % 3)


def evaluation(
    faulty: Callable[..., Any], runner: Any = FullRunner, num_runs: int = 3, **settings: Any
) -> FaultEvaluation:
    torch.manual_seed(0)
    settings = {"apply_during": "eval", "seed": 3, "probability": 20.0, **settings}
    model = faulty(Choosy().eval(), **settings).eval()
    return FaultEvaluation(runner(model, DataLoader(data(), batch_size=8)), num_runs)


@pytest.mark.parametrize("runner", [FullRunner, IncrementalRunner])
def test_only_what_no_batch_reaches_is_never_called(
    faulty: Callable[..., Any], runner: Any
) -> None:
    made = evaluation(faulty, runner)
    configs = [made.faults.config]

    assert made.check(configs, each_alone=True) == ("never",)
    results = list(made.per_layer(configs[0]))

    assert [result.cell.place for result in results] == ["first", "late", "last"]
    assert all(result.total("elements") > 0 for result in results)
    (together,) = made.evaluate(configs)
    alone = [result.total("elements") for result in results]
    assert together.total("elements") >= sum(alone)  # Faults may make a value large.
    assert alone[0] == 3 * 24 * 8 > alone[1] == 3 * 8 * 8  # `late` has one batch of three.


def test_a_site_that_the_first_batch_reaches_asks_for_no_other(faulty: Callable[..., Any]) -> None:
    model = faulty(nn.Sequential(activation()), apply_during="eval", probability=1.0).eval()

    def others() -> Any:
        raise AssertionError("a batch was asked for")
        yield

    assert (
        Exposure(
            model.faults, take_apart((torch.rand(4, 8), torch.zeros(4))), 4, others()
        ).never_called
        == ()
    )


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"layers": "never"}, "never"),
        ({"layers": ["nev*"]}, "never"),
        ({"mode": "layer", "injection_layer": 2}, "never"),
    ],
)
def test_nothing_but_what_is_never_called_is_refused(
    faulty: Callable[..., Any], settings: dict[str, Any], names: str
) -> None:
    made = evaluation(faulty, **settings)
    config = made.faults.config
    message = f"never called in this evaluation: {names}; .* select others: first, late, last"
    with pytest.raises(SiteError, match=message):
        made.check([config])
    with pytest.raises(SiteError, match=message):
        next(made.evaluate([config]))
    with pytest.raises(SiteError, match="never called"):
        next(made.per_layer(config, [2]))


def test_a_drawn_layer_is_one_that_is_called(faulty: Callable[..., Any]) -> None:
    made = evaluation(faulty, num_runs=24, mode="layer")
    (result,) = made.evaluate([made.faults.config])
    assert result.run_layers is not None
    assert set(result.run_layers) == {0, 1, 3}


def test_counted_faults_go_to_what_is_called(faulty: Callable[..., Any]) -> None:
    made = evaluation(faulty, layers=["first", "never", "last"])
    (result,) = made.evaluate([with_num_faults(made.faults.config, 2)])
    assert result.total("faults") == 3 * 24 * 2


# -- as a user sees it ----------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    module = f"never_called_{tmp_path.name}"
    text = f"from {__name__} import Choosy as net, data as _data\n"
    Path(f"{module}.py").write_text(text + "data = lambda split: _data()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    torch.manual_seed(0)
    torch.save(Choosy().state_dict(), "w.pt")
    sections = {
        "dataset": {"name": f"{module}:data"},
        "model": {"name": f"{module}:net"},
        "training": {"batch_size": 8},
        "checkpoint": {"path": "w.pt"},
    }
    faults = {"enabled": True, "apply_during": "eval", "probability": 20, "seed": 1}
    Path("c.yaml").write_text(yaml.safe_dump({**sections, "fault_injection": faults}))
    axes = {"layers": ["each", "all"], "probability": [20]}
    Path("s.yaml").write_text(yaml.safe_dump({**sections, "axes": axes, "trials": 3}))
    axes["layers"] = ["never"]
    Path("n.yaml").write_text(yaml.safe_dump({**sections, "axes": axes, "trials": 3}))
    return tmp_path


def test_the_commands_name_it_and_rank_the_others(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = "ever called in this evaluation: never\n"

    options = ["--per-layer", "--num-runs", "2", "--output", "o.json", "--no-progress"]
    assert evaluate.main(["--config", "c.yaml", *options]) == 0
    out = capsys.readouterr().out
    assert f"Note: n{named}" in out
    assert "  3/3 last: " in out
    found = json.loads(Path("o.json").read_text())
    assert found["never_called"] == ["never"]
    assert {entry["name"] for entry in found["per_layer"]} == {"first", "late", "last"}

    assert campaign.main(["run", "s.yaml", "--store", "s.db", "--no-progress"]) == 0
    assert f"Note: n{named}" in capsys.readouterr().out
    with Store.open(Path("s.db")) as store:
        assert len(store.cells()) == 4
        assert "never" not in "".join(store.cells())
        assert store.table()["elements"].min() > 0
    assert campaign.main(["report", "--store", "s.db"]) == 0
    assert f"N{named}" in capsys.readouterr().out


def test_where_nothing_is_called_the_commands_end_with_one_line(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--config", "c.yaml", "--layers", "never", "--no-progress"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: never called in this evaluation: never; no fault can strike")
    assert err.count("\n") == 1

    assert campaign.main(["run", "n.yaml", "--store", "n.db", "--no-progress"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: never called in this evaluation: never; no fault can strike")
    assert err.count("\n") == 1
    assert not Path("n.db").exists()


def test_the_names_are_those_of_the_sites(faulty: Callable[..., Any]) -> None:
    assert tuple(evaluation(faulty).faults.names) == LAYERS
