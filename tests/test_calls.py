"""One call from Python: evaluate, sweep, rank_layers and run_study, and the results they give."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantLinear, QuantReLU
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fxfault
from fxfault.errors import ConfigError, DataError, FxFaultError, StoreError
from fxfault.experiment import load_experiment
from fxfault.experiment.parts import load_model, open_test_data
from fxfault.results.evaluation import Evaluated

FAULTS = {"injection_type": "random", "probability": 20.0, "seed": 3}
STUDY: dict[str, Any] = {
    "axes": {"layers": ["each", "all"], "probability": [1.0, 20.0], "injection_type": ["random"]},
    "trials": 3,
    "seed": 3,
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = QuantReLU(bit_width=4, scaling_impl_type="const", max_val=2.0)
        self.middle = QuantLinear(12, 12, bias=True, weight_bit_width=4)
        self.drop = nn.Dropout(0.5)
        self.last = QuantReLU(bit_width=4, scaling_impl_type="const", max_val=2.0)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.last(self.drop(self.middle(x))))


def batches(samples: int = 48, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    inputs = torch.rand(samples, 12, generator=made)
    with torch.no_grad():
        labels = Net().eval()(inputs).argmax(1)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Any]:
    experiment = load_experiment("digits")
    data = open_test_data(experiment)
    model, _ = load_model(experiment, experiment.checkpoint.path, data.facts)
    return model, data.dataset


@pytest.fixture(scope="module")
def found() -> fxfault.EvaluationResult:
    return fxfault.evaluate(Net(), batches(), FAULTS, runs=3)


@pytest.fixture(scope="module")
def ranking() -> fxfault.LayerRanking:
    return fxfault.rank_layers(Net(), batches(), FAULTS, runs=3)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> fxfault.StudyResult:
    store = tmp_path_factory.mktemp("study") / "a.sqlite"
    return fxfault.run_study(STUDY, store, model=Net(), loader=batches())


# -- the numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["evaluate", "sweep", "rank_layers"])
def test_the_numbers_are_those_of_the_command(
    way: str, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxfault.cli.evaluate import main

    monkeypatch.chdir(tmp_path)
    model, dataset = digits
    config = load_experiment("digits").fault_injection
    loader = DataLoader(dataset, batch_size=64)
    flags, result = {
        "evaluate": ([], lambda: fxfault.evaluate(model, loader, config, runs=2)),
        "sweep": (
            ["--sweep", "1,10"],
            lambda: fxfault.sweep(model, loader, config, rates=[1, 10], runs=2),
        ),
        "rank_layers": (
            ["--per-layer"],
            lambda: fxfault.rank_layers(model, loader, config, runs=2),
        ),
    }[way]
    command = ["--config", "digits", "--num-runs", "2", "--output", "a.json", *flags]
    assert main([*command, "--csv", "a.csv", "--plot", "a.svg", "--no-progress"]) == 0
    made: Evaluated = result()
    for ending in ("json", "csv", "svg"):
        made.save(f"b.{ending}")
    ours, theirs = (json.loads(Path(name).read_text()) for name in ("b.json", "a.json"))
    different = {key for key in theirs if theirs[key] != ours[key]}
    assert different == {"command", "config", "model", "dataset", "checkpoint"}
    assert ours["config"] == {"fault_injection": theirs["config"]["fault_injection"]}
    for ending in ("csv", "svg"):
        assert Path(f"a.{ending}").read_bytes() == Path(f"b.{ending}").read_bytes()


def test_a_study_of_objects_has_the_trials_of_one_that_names_them(
    digits: Any, tmp_path: Path
) -> None:
    model, dataset = digits
    named = load_experiment("digits").to_dict()
    own = {"axes": {"probability": [5.0], "injection_type": ["random"]}, "trials": 2, "seed": 42}
    names = {key: named[key] for key in ("dataset", "model", "quantization", "checkpoint")}
    loader = DataLoader(dataset, batch_size=64)
    of_objects = fxfault.run_study(own, tmp_path / "a.sqlite", model=model, loader=loader)
    of_names = fxfault.run_study({**own, **names}, tmp_path / "b.sqlite")
    counts = ["trial", "correct", "sdc", "faults", "elements", "struck", "masked"]
    tables = [made.to_pandas("trials")[counts].values.tolist() for made in (of_objects, of_names)]
    assert tables[0] == tables[1]


def test_a_study_goes_on_where_it_ended(tmp_path: Path) -> None:
    store, settings = tmp_path / "a.sqlite", {"model": Net(), "loader": batches()}
    first = fxfault.run_study(STUDY, store, **settings)
    more = fxfault.run_study({**STUDY, "trials": 5}, store, **settings)
    assert (first.findings.trials, more.findings.trials) == (18, 30)
    other = Net()
    nn.init.zeros_(other.head.weight)
    with pytest.raises(StoreError, match="holds trials of something else"):
        fxfault.run_study(STUDY, store, model=other, loader=batches())


def test_the_command_cannot_continue_a_study_of_objects(
    study: fxfault.StudyResult, capsys: pytest.CaptureFixture[str]
) -> None:
    from fxfault.cli.campaign import main

    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["resume", "--store", str(study.store)]))
    assert ended.value.code == 2
    assert "was an object of a Python script; continue the study there" in capsys.readouterr().err


def test_batches_may_come_from_any_iterable_that_can_be_read_again(found: Any) -> None:
    data = batches()
    inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(inputs, labels, strict=True))

    class Own:
        def __iter__(self) -> Iterator[Any]:
            return iter(data)

    for loader in (
        DataLoader(TensorDataset(inputs, labels), batch_size=7),
        DataLoader(Endless(), batch_size=5),
        Own(),
        [{"x": x, "y": y} for x, y in data],
    ):
        made = fxfault.evaluate(Net(), loader, FAULTS, runs=3)
        assert (made.runs, made.sdc_rate) == (found.runs, found.sdc_rate)
        assert made.setting.samples == 48


def test_a_transformed_or_frozen_model_is_evaluated_as_what_it_was_made_from(found: Any) -> None:
    model = Net()
    faulty = fxfault.transform(model, {**FAULTS, "enabled": True, "apply_during": "train"})
    faulty.faults.set_probability(77.0)
    frozen = fxfault.freeze(faulty.eval())
    for given in (faulty, frozen):
        assert fxfault.evaluate(given, batches(), runs=3).runs == found.runs
        other = fxfault.evaluate(given, batches(), {**FAULTS, "probability": 0.0})
        assert other.mean == other.baseline
    assert [site.probability for site in faulty.faults] == [77.0, 77.0]


# -- what a call leaves as it was -----------------------------------------------------------


def test_the_network_stays_as_it_was() -> None:
    model = Net().train()
    model.first.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [(type(m), m.training, sorted(m.__dict__)) for m in model.modules()]
    generator = torch.get_rng_state()
    fxfault.rank_layers(model, batches(), FAULTS, runs=2)
    assert [(type(m), m.training, sorted(m.__dict__)) for m in model.modules()] == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_modes_come_back_after_an_error() -> None:
    model = Net().train()
    with pytest.raises(DataError, match="fails on a batch"):
        fxfault.evaluate(model, [(torch.rand(4, 3), torch.zeros(4).long())], FAULTS)
    assert all(module.training for module in model.modules())


def test_a_result_does_not_keep_the_network_or_the_data() -> None:
    model, data = Net(), [(torch.rand(4, 12), torch.arange(4))]
    seen = weakref.ref(model), weakref.ref(data[0][0])
    made = fxfault.evaluate(model, data, FAULTS)
    del model, data
    gc.collect()
    assert [reference() for reference in seen] == [None, None]
    assert str(made)


def test_a_call_prints_nothing_and_shows_no_bar_without_a_terminal(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fxfault.sweep(Net(), batches(), FAULTS, rates=[1, 2])
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_shows_all_samples(progress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Bar] = []

    class Bar:
        def __init__(self, total: int, **look: Any) -> None:
            self.total, self.done, self.is_closed = total, 0, False
            bars.append(self)

        def update(self, units: int) -> None:
            self.done += units

        def close(self) -> None:
            self.is_closed = True

    monkeypatch.setattr("fxfault.results.calls.bar.can_show_bar", lambda: True)
    monkeypatch.setattr("fxfault.results.calls.bar.bar_type", lambda: Bar)
    fxfault.rank_layers(Net(), batches(), FAULTS, runs=2, progress=progress)
    assert [(bar.total, bar.done, bar.is_closed) for bar in bars] == [(336, 336, True)] * progress


# -- what results give ----------------------------------------------------------------------


def test_an_evaluation_has_the_figures_of_its_only_rate(found: Any) -> None:
    assert found.baseline == 100.0
    assert found.mean == pytest.approx(sum(found.runs) / 3)
    assert found.degradation == pytest.approx(100.0 - found.mean) != 0
    low, high = found.interval
    assert low < found.mean < high
    assert (found.seed, len(found.runs), found.metric.name) == (3, 3, "accuracy")
    assert found.std > 0
    assert 0 < found.sdc_rate <= 100


def test_what_is_printed_is_what_the_command_prints(found: Any, ranking: Any) -> None:
    assert "Fault accuracy" in str(found)
    assert "Layer Ranking" in str(ranking)
    swept = fxfault.sweep(Net(), batches(), FAULTS, num_faults=[0, 3], runs=2)
    assert "Sweep Summary" in str(swept)
    for made in (found, ranking, swept):
        assert "\n" not in repr(made)
        assert repr(made).startswith(type(made).__name__)


def test_a_ranking_without_a_weakest_site_says_so() -> None:
    made = fxfault.rank_layers(Net(), batches(), {**FAULTS, "probability": 0.0}, runs=2)
    assert "no site lost accuracy" in repr(made)


def test_tables_for_pandas_are_tidy(found: Any, ranking: Any, study: Any) -> None:
    pytest.importorskip("pandas")
    trials = found.to_pandas("trials")
    assert trials["value"].tolist() == list(found.runs)
    assert (trials["golden"] - trials["value"] == trials["degradation"]).all()
    cells = ranking.to_pandas()
    assert cells["layer"].tolist()[0] == "all"
    assert cells["site"].tolist()[1:] == list(ranking.names)
    assert len(ranking.to_pandas("trials")) == 9
    assert len(study.to_pandas()) == 6
    assert len(study.to_pandas("trials")) == 18
    by_place = study.to_pandas("trials").groupby(["layers", "probability"]).size()
    assert by_place.tolist() == [3] * 6
    with pytest.raises(ConfigError, match="what: got 'rows'"):
        found.to_pandas("rows")


def test_without_pandas_the_error_says_how_to_get_it(
    found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "pandas" else real(name)
    )
    with pytest.raises(ConfigError, match="pip install pandas"):
        found.to_pandas()


def test_a_plot_gives_axes_and_changes_nothing_else(found: Any, ranking: Any, study: Any) -> None:
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    before = dict(matplotlib.rcParams)
    for made in (found, ranking, study):
        axes = made.plot()
        assert axes.get_xlabel()
        own = Figure().subplots(1, 2)[1]
        assert made.plot(ax=own) is own
        assert own.get_xlabel() == axes.get_xlabel()
        with pytest.raises(ConfigError, match="ax: got Figure"):
            made.plot(ax=Figure())
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_sweeps_on_one_pair_of_axes_can_be_told_apart() -> None:
    swept = fxfault.sweep(Net(), batches(), FAULTS, rates=[1, 50], runs=2)
    axes = swept.plot(label="one")
    assert swept.plot(ax=axes, label="two") is axes
    names = [text.get_text().split(" (")[0] for text in axes.get_legend().get_texts()]
    assert [name for name in names if name in ("one", "two")] == ["one", "two"]
    assert sum(name.startswith("golden") for name in names) == 1
    assert len({line.get_color() for line in axes.lines if line.get_marker() == "o"}) == 2
    with pytest.raises(ConfigError, match="label: got"):
        fxfault.rank_layers(Net(), batches(), FAULTS).plot(label="one")


def test_notebooks_get_escaped_tables(found: Any, ranking: Any, study: Any) -> None:
    from html.parser import HTMLParser

    for made in (found, ranking, study):
        tags: list[str] = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attrs, tags=tags: tags.append(tag)  # type: ignore
        parser.feed(made._repr_html_())
        known = {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "b", "ul", "li"}
        assert set(tags) - {"details", "summary"} == known
        assert "<b>Verdict</b>" in made._repr_html_()
        assert (
            str(made).splitlines()[1 if made is study else 0 : 2][0].startswith(("- ", "Verdict"))
        )
    assert study._repr_html_().index("Rank") < study._repr_html_().index("Rate")  # Cells are last.
    faulty = fxfault.transform(nn.Sequential(QuantReLU()), {"enabled": True, "seed": 1})
    statistics = faulty.faults.new_statistics()
    statistics.layer_stats[0].name = "<script>"
    html = statistics._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


@pytest.mark.parametrize("ending", ["json", "csv", "png", "svg", "pdf", "html", "parquet"])
def test_results_are_saved_by_their_endings(
    ending: str, found: Any, study: Any, tmp_path: Path
) -> None:
    path = tmp_path / f"result.{ending.upper()}"
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    assert study.save(path) == path
    assert path.stat().st_size > 100
    if ending in ("html", "parquet"):
        with pytest.raises(ConfigError, match=r"does not end in one of \.json, \.csv, \.png"):
            found.save(path)
    else:
        assert found.save(str(path)) == path
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_result_is_not_saved_over_a_store(found: Any, study: Any, tmp_path: Path) -> None:
    store = tmp_path / "trials.json"
    store.write_bytes(study.store.read_bytes())
    with pytest.raises(ConfigError, match="name another file"):
        found.save(store)
    with sqlite3.connect(store) as connection:
        connection.execute("select * from sqlite_master").fetchall()
    with pytest.raises(ConfigError, match="does not exist"):
        found.save(tmp_path / "nowhere" / "a.json")


def test_sites_and_statistics_describe_themselves() -> None:
    faulty = fxfault.transform(Net().eval(), {**FAULTS, "enabled": True, "apply_during": "eval"})
    statistics = faulty.faults.new_statistics()
    faulty(batches()[0][0])
    assert str(statistics) == statistics.report()
    assert repr(statistics).startswith("FaultStatistics(2 sites, ")
    assert "first" in faulty.faults._repr_html_()
    assert "armed" in fxfault.inspect(faulty)._repr_html_()
    assert repr(statistics.layer_stats[0]).count("tensor") == 0


# -- metrics --------------------------------------------------------------------------------


def test_any_metric_can_be_measured() -> None:
    data = [(x, x[:, :4]) for x, _ in batches()]

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    error.higher_is_better = False  # type: ignore[attr-defined]

    class Largest:
        def __init__(self) -> None:
            self.largest = 0.0

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.largest = max(self.largest, float((outputs - targets).abs().max()))

        def compute(self) -> float:
            return self.largest

    own = fxfault.evaluate(Net(), data, FAULTS, metric=error, runs=2)
    assert (own.metric.name, own.metric.higher_is_better) == ("error", False)
    assert own.degradation == pytest.approx(own.mean - own.baseline)
    section = {"name": "test_calls:no_such", "unit": "dB"}
    with pytest.raises(DataError, match="no_such"):
        fxfault.evaluate(Net(), data, FAULTS, metric=section)
    assert fxfault.evaluate(Net(), data, FAULTS, metric=Largest()).metric.name == "Largest"
    assert fxfault.evaluate(Net(), data, FAULTS, metric="mse").metric.name == "mse"
    with pytest.raises(ConfigError, match="metric: got 5"):
        fxfault.evaluate(Net(), data, FAULTS, metric=5)


def test_a_study_of_objects_may_have_a_metric_of_ones_own(tmp_path: Path) -> None:
    data = [(x, x[:, :4]) for x, _ in batches()]

    def error(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    error.higher_is_better = False  # type: ignore[attr-defined]
    settings = {"model": Net(), "loader": data}
    values = []
    for name, metric in (("own", error), ("named", "mse"), ("section", {"name": "mse"})):
        made = fxfault.run_study(STUDY, tmp_path / f"{name}.sqlite", metric=metric, **settings)
        assert made.metric.name == ("error" if name == "own" else "mse")
        assert not made.metric.higher_is_better
        values.append(made.to_pandas("trials")["value"].tolist())
    assert values[0] == pytest.approx(values[1])
    assert values[1] == values[2]
    in_file = {**STUDY, "metric": "mse"}
    made = fxfault.run_study(in_file, tmp_path / "file.sqlite", **settings)
    assert made.to_pandas("trials")["value"].tolist() == values[1]


# -- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": TensorDataset(torch.zeros(2))}, "loader: got the data set TensorDataset"),
        ({"loader": iter([])}, "loader: got list_iterator, which can be read only once"),
        ({"loader": (torch.zeros(2, 12), torch.zeros(2))}, "loader: got a tuple of tensors"),
        ({"loader": torch.zeros(2, 12)}, "loader: got Tensor, allowed: batches"),
        ({"loader": 5}, "loader: got int, allowed: batches"),
        ({"loader": DataLoader(TensorDataset(torch.zeros(8)), shuffle=True)}, "it shuffles"),
        ({"model": 5}, "model: got int, allowed: a torch.nn.Module"),
        ({"config": None}, "config: missing; say which faults strike"),
        ({"config": 5}, r"config: got 5 \(int\)"),
        ({"config": {"probability": 101}}, r"fault_injection.probability: got 101"),
        ({"runs": 0}, r"runs: got 0 \(int\), allowed: an integer of at least 1"),
        ({"runs": True}, "runs: got True"),
        ({"device": "gpu"}, "device: got 'gpu'"),
        ({"device": 5}, "device: got 5"),
        ({"compile": True, "freeze": False}, "compile: only a frozen network is compiled"),
        ({"cache_memory": -1}, "cache_memory: got -1"),
        ({"cache_memory": "5"}, r"cache_memory: got '5' \(str\)"),
        ({"verify": "5"}, r"verify: got '5' \(str\)"),
        ({"verify": 101}, "verify: got 101"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    given = {"model": Net(), "loader": batches(), "config": FAULTS, **change}
    with pytest.raises(ConfigError, match=message):
        fxfault.evaluate(**given)


@pytest.mark.parametrize("loader", [[], [(torch.zeros(0, 12), torch.zeros(0).long())]])
def test_data_without_a_sample_are_refused(loader: Any) -> None:
    with pytest.raises(DataError, match="loader: list gives no sample"):
        fxfault.evaluate(Net(), loader, FAULTS)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({}, "rates, num_faults: got neither"),
        ({"rates": [1], "num_faults": [1]}, "rates, num_faults: got both"),
        ({"rates": 5}, r"rates: got 5 \(int\), allowed: a list such as \[1, 5, 10\]"),
        ({"rates": []}, "rates: got an empty list"),
        ({"rates": [1, 101]}, r"rates: got 101 \(int\), allowed: a number from 0 to 100"),
        ({"rates": [True]}, "rates: got True"),
        ({"num_faults": [0.5]}, "num_faults: got 0.5"),
    ],
)
def test_rates_that_cannot_be_are_refused(rates: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fxfault.sweep(Net(), batches(), FAULTS, **rates)


def test_several_faults_have_rates_and_layers_of_their_own() -> None:
    several = {"faults": [{"injection_type": "msb_flip", "probability": 1.0}], "seed": 1}
    made = fxfault.evaluate(Net(), batches(), several)
    assert made.results[0].cell.probability is None
    assert "with the faults of the configuration" in repr(made)
    for call in (lambda *a: fxfault.sweep(*a, rates=[1]), fxfault.rank_layers):
        with pytest.raises(ConfigError, match="it has `faults`, each with its own rate"):
            call(Net(), batches(), several)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": None}, "loader: missing"),
        ({"model": None}, "loader: given without `model`"),
        ({"workers": 2}, "model: other processes cannot have it"),
        ({"engine": "ray"}, "model: other processes cannot have it"),
        (
            {"study": {**STUDY, "model": {"name": "quant_digits"}}},
            "study: it has the section model",
        ),
        ({"study": 5}, r"study: got 5 \(int\)"),
        ({"study": {**STUDY, "trials": 0}}, "trials: got 0"),
        ({"study": "no_such_study"}, "no_such_study"),
        ({"store": 5}, r"store: got 5 \(int\)"),
    ],
)
def test_studies_that_cannot_be_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    given = {"study": STUDY, "store": tmp_path / "a.sqlite", "model": Net(), "loader": batches()}
    with pytest.raises(FxFaultError, match=message):
        fxfault.run_study(**{**given, **change})
    assert not list(tmp_path.iterdir())


# -- names ----------------------------------------------------------------------------------


def test_dir_has_the_public_names_and_no_other() -> None:
    names = dir(fxfault)
    assert set(fxfault.__all__) < set(names)
    assert not {"annotations", "importlib", "lazy_names", "TYPE_CHECKING", "Any"} & set(names)
    parts = set(names) - set(fxfault.__all__)
    assert parts == {
        *("campaign", "config", "data", "evaluation", "experiment", "functional", "lightning"),
        *("metrics", "models", "passes", "training"),
    }
    for name in set(names) - {"lightning"}:
        assert getattr(fxfault, name) is not None


def test_faults_may_be_fault_models_of_ones_own(tmp_path: Path) -> None:
    model = fxfault.BitFlipStrategy(bit=1)
    config = fxfault.FaultInjectionConfig(injection_type=model, probability=5.0, seed=1)
    made = fxfault.evaluate(Net(), batches(), config)
    assert made.save(tmp_path / "a.csv").stat().st_size > 100
    with pytest.raises(ConfigError, match="has no registered name to be written as; call"):
        made.save(tmp_path / "a.json")
