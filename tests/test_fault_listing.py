"""The list of every fault: what it says is what a forward changed."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantLinear
from test_draws import act, data, net, seen
from torch import Tensor, nn

import fxfault
from fxfault.errors import ConfigError, FxFaultError, SiteError
from fxfault.sites import fault_list
from fxfault.sites.fault_list import COLUMNS, FaultList
from fxfault.sites.fault_recorder import FaultRecorder
from fxfault.strike import draws

Faulty = Callable[..., Any]
WIDTHS = {"0": 4, "3": 3, "5": 5}
MODELS = ("random", "lsb_flip", "msb_flip", "full_flip", "bit_flip", "stuck_at_0", "stuck_at_1")
KINDS: dict[str, dict[str, Any]] = {
    **{model: {"injection_type": model, "probability": 20.0} for model in MODELS},
    "one bit": {"injection_type": "bit_flip", "bit": 2, "probability": 20.0},
    "one stuck bit": {"injection_type": "stuck_at_1", "bit": 1, "probability": 20.0},
    "burst": {"injection_type": "burst", "burst_length": 2, "probability": 20.0},
    "bits": {"injection_type": "bit_flip", "rate_unit": "bit", "probability": 10.0},
    "stuck bits": {"injection_type": "stuck_at_0", "rate_unit": "bit", "probability": 10.0},
    "counted": {"injection_type": "random", "num_faults": 7},
    "counted bits": {"injection_type": "bit_flip", "rate_unit": "bit", "num_faults": 9},
    "units": {"injection_type": "random", "hw_mask": True, "frequency_value": 7},
    "all": {"injection_type": "full_flip", "probability": 100.0},
    "rare": {"injection_type": "bit_flip", "probability": 0.05},
    "several": {
        "faults": [
            {"injection_type": "random", "probability": 30.0},
            {"injection_type": "stuck_at_1", "bit": 0, "probability": 30.0, "layers": ["0", "5"]},
            {"injection_type": "bit_flip", "num_faults": 20},
        ]
    },
}


def changed(found: FaultList, samples: int) -> dict[str, Tensor]:
    """What a list says about each site: the XOR of all masks of each element."""
    sizes = {"0": 48, "3": 10, "5": 6}
    masks = {name: torch.zeros(samples, size, dtype=torch.int64) for name, size in sizes.items()}
    for row in found.rows():
        masks[row["site"]][row["sample"], row["element"]] ^= row["mask"]
    return masks


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_is_what_a_forward_changed(faulty: Faulty, kind: str) -> None:
    model = faulty(net(), **KINDS[kind])
    found = model.faults.listing(data(), trial=3)
    model.faults.reset(trial=3)
    codes = seen(model, data())
    for name, mask in changed(found, 40).items():
        before, after = codes[name]
        assert torch.equal(mask, (before ^ after) & ((1 << WIDTHS[name]) - 1))
    last = {}
    for row in found.rows():
        place = row["site"], row["sample"], row["element"]
        before, after = (int(c[row["sample"], row["element"]]) for c in codes[row["site"]])
        assert row["code_before"] == last.get(place, before)
        last[place] = row["code_after"]
        assert row["value_before"] == row["code_before"] * float(model.faults[row["site"]].scale)
        assert row["value_after"] == row["code_after"] * float(model.faults[row["site"]].scale)
    for (name, sample, element), code in last.items():
        assert code == int(codes[name][1][sample, element])
    assert last or kind == "rare"


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_has_every_hit_that_statistics_count(faulty: Faulty, kind: str) -> None:
    model = faulty(net(), **KINDS[kind])
    statistics = model.faults.new_statistics()
    with model.faults.recording() as recorder:
        model(data())
    rows = list(recorder.listing().rows())
    places = {(row["site"], row["sample"], row["element"]) for row in rows}
    assert len(places) == statistics.total_injections
    assert len(rows) >= len(places)


@pytest.mark.parametrize("kind", KINDS)
def test_recording_changes_no_fault(faulty: Faulty, kind: str) -> None:
    model = faulty(net(), **KINDS[kind])
    plain = model(data()).value
    model.faults.reset()
    with model.faults.recording():
        assert torch.equal(model(data()).value, plain)


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_list_does_not_depend_on_the_batch(faulty: Faulty, kind: str, batch: int) -> None:
    model = faulty(net(), **KINDS[kind])
    model.faults.measure(data())
    whole = list(model.faults.listing(data()).rows())
    model.faults.reset()
    with model.faults.recording() as recorder:
        for part in data().split(batch):
            model(part)
    assert list(recorder.listing().rows()) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_without_a_forward_says_the_same(faulty: Faulty, kind: str) -> None:
    model = faulty(net(), **KINDS[kind])
    model.faults.measure(data()[:3])
    ahead = model.faults.listing(trial=2, samples=40)
    recorded = model.faults.listing(data(), trial=2)
    for known, row in zip(ahead.rows(), recorded.rows(), strict=True):
        drawn = {"random", "stuck_at_0", "stuck_at_1", "stuck_at_1 1", "stuck_at_1 0"}
        if row["fault"] in drawn:
            assert known.pop("mask") is None
            row.pop("mask")
        for name in fault_list.CODES:
            assert known.pop(name) is None
            row.pop(name)
        assert known == row


def test_struck_bits_of_a_stuck_cell_are_listed(faulty: Faulty) -> None:
    found = faulty(net(), **KINDS["one stuck bit"]).faults.listing(data())
    masks = {row["mask"] for row in found.rows()}
    assert {row["bits"] for row in found.rows()} == {0b10}
    assert masks == {0, 0b10}
    drawn = faulty(net(), **KINDS["random"]).faults.listing(data())
    assert {row["bits"] for row in drawn.rows()} == {None}


def test_samples_may_be_chosen(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["bit_flip"])
    model.faults.measure(data())
    whole = model.faults.listing(samples=40)
    chosen = [31, 4]
    part = list(model.faults.listing(samples=chosen).rows())
    assert part == [row for row in whole.rows() if row["sample"] in chosen]
    assert part == list(model.faults.listing(samples=torch.tensor(chosen)).rows())
    assert {row["sample"] for row in model.faults.listing(data()[:2], samples=chosen).rows()} == {
        4,
        31,
    }


def test_by_default_the_evaluated_samples_are_listed(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["bit_flip"])
    with pytest.raises(SiteError, match="no sample was evaluated since the last reset"):
        model.faults.listing(trial=17)
    model(data())
    assert {row["sample"] for row in model.faults.listing(trial=17).rows()} == set(range(40))


def test_listing_changes_nothing(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["bit_flip"], mode="layer", seed=3).train()
    model[1].eval()
    statistics = model.faults.new_statistics()
    model.faults.measure(data())
    state = model.faults.clock.state(), [(s.setting, s.selected) for s in model.faults]
    model.faults.listing(data(), trial=5)
    model.faults.listing(samples=3, trial=5)
    assert state == (
        model.faults.clock.state(),
        [(s.setting, s.selected) for s in model.faults],
    )
    assert model.training
    assert not model[1].training
    assert model.faults.statistics is statistics
    assert statistics.total_activations == 0
    assert all(site.recorder is None for site in model.faults)


@pytest.mark.parametrize("settings", [{"apply_during": "train"}, {"apply_during": "both"}])
def test_a_listing_without_faults_is_refused(faulty: Faulty, settings: dict[str, Any]) -> None:
    model = faulty(net(), **settings)
    if settings["apply_during"] == "both":
        model.faults.enabled = False
    with pytest.raises(SiteError, match="no fault strikes in an evaluation: "):
        model.faults.listing(data())


def test_what_there_is_to_hit_must_be_known(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["bit_flip"])
    with pytest.raises(SiteError, match=r"site 0: no forward .*measure\(inputs\) first"):
        model.faults.listing(samples=4)


def test_every_call_of_a_site_is_listed(faulty: Faulty) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = act(4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(x.abs().max() > 0) + 2):  # Not traced: it looks at values.
                x = self.act(x).value
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = Steps()

        def forward(self, x: Tensor) -> Tensor:
            return self.steps(x)

    model = faulty(Outer().eval(), injection_type="msb_flip", probability=30.0)
    found = list(model.faults.listing(data()).rows())
    assert {row["call"] for row in found} == {1, 2, 3}
    statistics = model.faults.new_statistics()
    model(data())
    assert len(found) == statistics.total_injections
    with pytest.raises(SiteError, match="a container calls it, so its faults are not known ahead"):
        model.faults.listing(samples=4)


def test_views_that_cat_joins_are_one_sample(faulty: Faulty) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = act(4)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.act(torch.cat([x, x + 1])).value.chunk(2)
            return first + second

    model = faulty(Views().eval(), injection_type="msb_flip", probability=10.0)
    model.faults.measure(data(5)[:, 0])
    found = model.faults.listing(data(5)[:, 0])
    assert {place.shape for place in found.places} == {(2, 4, 4)}
    coordinates = {row["coordinates"][0] for row in found.rows()}
    assert coordinates == {"0", "1"}
    ahead = model.faults.listing(samples=5)
    shown = [[(r["sample"], r["coordinates"], r["mask"]) for r in x.rows()] for x in (found, ahead)]
    assert shown[0] == shown[1]
    clean = model.faults.listing(data(5)[:, 0])
    assert [r["code_before"] for r in clean.rows()] == [r["code_before"] for r in found.rows()]


def test_binary_words_and_channel_scales(faulty: Faulty) -> None:
    from brevitas.quant import Int8ActPerTensorFloat, SignedBinaryActPerTensorConst

    class PerChannel(Int8ActPerTensorFloat):
        scaling_per_output_channel = True

    binary = QuantIdentity(act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True)
    model = faulty(nn.Sequential(binary).eval(), injection_type="bit_flip", probability=40.0)
    rows = list(model.faults.listing(data()).rows())
    assert {(r["mask"], r["code_before"], r["code_after"]) for r in rows} == {
        (1, -1, 1),
        (1, 1, -1),
    }
    channels = QuantIdentity(
        act_quant=PerChannel,
        per_channel_broadcastable_shape=(1, 3, 1, 1),
        scaling_stats_permute_dims=(1, 0, 2, 3),
        return_quant_tensor=True,
    )
    scaled = data() * torch.tensor([1.0, 4.0, 16.0]).view(1, 3, 1, 1)
    channels.train()(scaled)
    model = faulty(nn.Sequential(channels).eval(), injection_type="bit_flip", probability=40.0)
    clean = channels(scaled)
    values, codes = clean.value.flatten(1), (clean.value / clean.scale).round().flatten(1)
    rows = list(model.faults.listing(scaled).rows())
    assert rows
    for row in rows:
        place = row["sample"], row["element"]
        assert row["value_before"] == float(values[place])
        assert row["code_before"] == int(codes[place])


def test_a_list_of_too_many_hits_is_refused(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["all"])
    for site in model.faults:
        site.recorder = FaultRecorder(most=10)
    with pytest.raises(SiteError, match="more than 10 hits"):
        model(data())


@pytest.mark.parametrize("kind", ["bit_flip", "stuck_at_0", "bits"])
def test_fillers_of_a_device_are_no_hits(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # No loop strikes bfloat16, so torch writes the hits, as on a device.
    model, x = faulty(net().bfloat16(), **KINDS[kind]), data().bfloat16()
    expected = list(model.faults.listing(x).rows())
    for name in ("random_hits", "random_upsets"):
        drawn = getattr(draws, name)
        monkeypatch.setattr(draws, name, functools.partial(drawn, fixed_size=True))
    assert list(model.faults.listing(x).rows()) == expected


def test_a_weight_is_listed_once_a_trial(faulty: Faulty) -> None:
    layer = QuantLinear(6, 6, bias=False, weight_bit_width=4)
    model = faulty(nn.Sequential(layer).eval(), probability=50.0, memory="weights")
    with model.faults.recording() as recorder, torch.no_grad():
        for numbers in ([5], [0], [7, 8]):
            with model.faults.samples(torch.tensor(numbers)):
                model(torch.ones(len(numbers), 6))
        model.faults.reset()  # Even a new pass meets the same fault.
        model(torch.ones(5, 6))
    rows = list(recorder.listing().rows())
    elements = [row["element"] for row in rows]
    assert sorted(set(elements)) == elements
    assert elements == [row["element"] for row in model.faults.listing(samples=9).rows()]
    assert {(row["sample"], row["memory"]) for row in rows} == {(0, "weights")}


# -- files ------------------------------------------------------------------------------


def test_csv_has_the_rows(faulty: Faulty, tmp_path: Path) -> None:
    found = faulty(net(), **KINDS["several"]).faults.listing(data())
    found.to_csv(tmp_path / "faults.csv")
    text = (tmp_path / "faults.csv").read_text()
    assert text == found.csv_text()
    read = list(csv.DictReader(io.StringIO(text)))
    assert len(read) == len(found)
    for row, line in zip(found.rows(), read, strict=True):
        assert list(line) == list(COLUMNS)
        assert {k: "" if v is None else str(v) for k, v in row.items()} == line
    first = read[0]["coordinates"].split(",")
    assert len(first) == 3
    assert int(read[0]["element"]) == (int(first[0]) * 4 + int(first[1])) * 4 + int(first[2])


def test_an_empty_list_is_written(faulty: Faulty) -> None:
    found = faulty(net(), probability=0.0).faults.listing(data())
    assert len(found) == 0
    assert found.csv_text() == ",".join(COLUMNS) + "\n"
    assert list(found.rows()) == []


def test_a_site_that_looks_like_a_formula_is_inert() -> None:
    found = FaultList(
        (fault_list.Place("=1+1", "activations", (2,), 4),),
        ("random",),
        {name: torch.zeros(1, dtype=torch.int64).numpy() for name in fault_list.HIT},
    )
    assert found.csv_text().splitlines()[1].startswith("'=1+1,")


def test_files_that_cannot_be_written_are_named(faulty: Faulty, tmp_path: Path) -> None:
    found = faulty(net(), probability=1.0).faults.listing(data())
    missing = tmp_path / "no" / "faults.csv"
    with pytest.raises(FxFaultError, match=r"faults\.csv: cannot write the list of faults"):
        found.to_csv(missing)


def test_missing_libraries_are_named(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    found = faulty(net(), probability=1.0).faults.listing(data())
    monkeypatch.setattr(fault_list.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pandas is not installed"):
        found.to_pandas()
    with pytest.raises(ConfigError, match="to_parquet: pyarrow is not installed"):
        found.parquet_bytes()


def test_pandas_has_the_rows(faulty: Faulty) -> None:
    pandas = pytest.importorskip("pandas")
    for found in (
        faulty(net(), **KINDS["several"]).faults.listing(data()),
        faulty(net(), probability=0.0).faults.listing(data()),
    ):
        table = found.to_pandas()
        assert list(table.columns) == list(COLUMNS)
        assert str(table["mask"].dtype) == "Int64"
        for (_, line), row in zip(table.iterrows(), found.rows(), strict=True):
            assert {k: None if v is pandas.NA else v for k, v in line.items()} == row


def test_parquet_has_the_rows(faulty: Faulty, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    found = faulty(net(), **KINDS["several"]).faults.listing(data())
    found.to_parquet(tmp_path / "faults.parquet")
    assert parquet.read_table(tmp_path / "faults.parquet").to_pylist() == list(found.rows())


def test_a_compiled_model_is_recorded(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["bit_flip"])
    expected = list(model.faults.listing(data()).rows())
    compiled = torch.compile(fxfault.freeze(model), backend="eager")
    faults = fxfault.sites.fault_sites.faults_of(compiled._orig_mod)
    with torch.no_grad(), faults.recording() as recorder:
        compiled(data())
    assert list(recorder.listing().rows()) == expected
