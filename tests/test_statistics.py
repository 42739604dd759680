"""Statistics: what was hit and how far it moved, against whole tensors in float64."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from brevitas.nn import QuantIdentity, QuantReLU
from brevitas.quant import ShiftedUint8ActPerTensorFloat
from brevitas.quant.binary import SignedBinaryActPerTensorConst
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fxfault
from fxfault.errors import FxFaultError
from fxfault.faults import FaultModel
from fxfault.sites.statistics import FaultStatistics

Faulty = Callable[..., Any]
Calibrated = Callable[..., nn.Module]
MODELS = ("random", "lsb_flip", "msb_flip", "full_flip")


def data(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -- the oracle --------------------------------------------------------------------------


class Oracle:
    """The definitions of the design, on whole tensors."""

    def __init__(self) -> None:
        self.injected = self.total = 0
        self.rmses: list[float] = []
        self.cosines: list[float] = []

    def record(self, clean: Tensor, faulty: Tensor, mask: Tensor) -> None:
        clean, faulty = clean.double().flatten(), faulty.double().flatten()
        mask = mask.flatten()
        self.total += clean.numel()
        self.injected += int(mask.sum())
        if bool(mask.any()):
            self.rmses.append(math.sqrt(float((faulty - clean)[mask].square().mean())))
        lengths = float(clean.norm()), float(faulty.norm())
        if all(lengths):
            self.cosines.append(float(clean @ faulty) / (lengths[0] * lengths[1]))
        else:  # Two vectors of zeros are alike; one of them and any other are not.
            self.cosines.append(float(lengths == (0.0, 0.0)))

    def check(self, layer: Any, accuracy: float = 1e-6) -> None:
        assert layer.injected_count == self.injected
        assert layer.total_activations == self.total
        assert layer.injection_rate == pytest.approx(100 * self.injected / self.total)
        assert layer.sample_count == len(self.cosines)
        assert layer.rmse_count == len(self.rmses)
        rmse = sum(self.rmses) / len(self.rmses) if self.rmses else 0.0
        cosine = sum(self.cosines) / len(self.cosines)
        assert layer.avg_rmse == pytest.approx(rmse, rel=1e-9)
        assert layer.avg_cosine_similarity == pytest.approx(cosine, abs=accuracy)


def random_case(seed: int, shape: tuple[int, ...] = (5, 6)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(-8, 8, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.3
    other = torch.randint(-8, 8, shape, generator=generator)
    return clean, torch.where(mask, other, clean), mask


# -- record ------------------------------------------------------------------------------


def test_record_counts_and_measures() -> None:
    statistics, oracle = FaultStatistics(2), Oracle()
    for seed in range(5):
        case = random_case(seed)
        statistics.record(*case, layer_id=1)
        oracle.record(*case)
    oracle.check(statistics.layer_stats[1], accuracy=1e-12)
    assert statistics.layer_stats[0].total_activations == 0


def test_a_hit_that_leaves_its_code_counts() -> None:
    statistics, codes = FaultStatistics(1), torch.tensor([1, 2, 3, 4])
    statistics.record(codes, codes, torch.tensor([True, True, False, False]), layer_id=0)
    layer = statistics.layer_stats[0]
    assert (layer.injected_count, layer.rmse_count, layer.avg_rmse) == (2, 1, 0.0)
    assert layer.injection_rate == 50.0
    assert layer.avg_cosine_similarity == pytest.approx(1.0)


def test_rmse_is_over_hits_and_averaged_over_forwards_that_had_any() -> None:
    statistics = FaultStatistics(1)
    clean, none = torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.bool)
    statistics.record(clean, clean, none, layer_id=0)
    faulty, mask = torch.tensor([1, 2, 3, 10]), torch.tensor([False, False, False, True])
    statistics.record(clean, faulty, mask, layer_id=0)
    faulty, mask = torch.tensor([3, 4, 3, 4]), torch.tensor([True, True, False, False])
    statistics.record(clean, faulty, mask, layer_id=0)
    statistics.record(clean, clean, none, layer_id=0)
    layer = statistics.layer_stats[0]
    assert layer.avg_rmse == pytest.approx((6 + 2) / 2)
    assert (layer.rmse_count, layer.sample_count) == (2, 4)
    assert (layer.injected_count, layer.total_activations) == (3, 16)


def test_cosine_is_averaged_over_all_armed_forwards() -> None:
    statistics = FaultStatistics(1)
    clean, none = torch.tensor([3, 4]), torch.zeros(2, dtype=torch.bool)
    for _ in range(3):
        statistics.record(clean, clean, none, layer_id=0)
    statistics.record(clean, torch.tensor([3, -4]), torch.tensor([False, True]), layer_id=0)
    assert statistics.layer_stats[0].avg_cosine_similarity == pytest.approx((3 - 7 / 25) / 4)


@pytest.mark.parametrize(
    ("clean", "faulty", "cosine"),
    [([0, 0], [0, 0], 1.0), ([0, 0], [0, 5], 0.0), ([5, 0], [0, 0], 0.0), ([5, 0], [-5, 0], -1.0)],
)
def test_cosine_of_vectors_of_zeros(clean: list[int], faulty: list[int], cosine: float) -> None:
    statistics = FaultStatistics(1)
    codes = torch.tensor(clean), torch.tensor(faulty)
    statistics.record(*codes, codes[0] != codes[1], layer_id=0)
    assert statistics.layer_stats[0].avg_cosine_similarity == pytest.approx(cosine)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float32])
def test_record_takes_any_dtype_and_shape(dtype: torch.dtype) -> None:
    clean, faulty, mask = random_case(0, (2, 3, 4, 5))
    statistics, oracle = FaultStatistics(1), Oracle()
    statistics.record(clean.to(dtype), faulty.to(dtype), mask, layer_id=0)
    oracle.record(clean, faulty, mask)
    oracle.check(statistics.layer_stats[0], accuracy=1e-12)


def test_wide_codes_do_not_overflow() -> None:
    clean = torch.tensor([2**31 - 1, -(2**31), 2**31 - 1])
    faulty, mask = clean.clone(), torch.tensor([True, False, False])
    faulty[0] = -(2**31)
    statistics, oracle = FaultStatistics(1), Oracle()
    statistics.record(clean, faulty, mask, layer_id=0)
    oracle.record(clean, faulty, mask)
    oracle.check(statistics.layer_stats[0], accuracy=1e-12)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(FxFaultError, match=r"no layer 3.*2 layers"):
        FaultStatistics(2).record(*random_case(0), layer_id=3)


def test_nothing_is_read_from_the_device_while_recording() -> None:
    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            assert "local_scalar_dense" not in str(func)
            assert "nonzero" not in str(func)
            return func(*args, **(kwargs or {}))

    statistics, case = FaultStatistics(1), random_case(0)
    with NoReads():
        statistics.record(*case, layer_id=0)
        statistics.record(*case, layer_id=0)
    assert statistics.layer_stats[0].sample_count == 2


# -- in a model --------------------------------------------------------------------------

_PER_CHANNEL = {
    "scaling_per_output_channel": True,
    "per_channel_broadcastable_shape": (1, 3, 1),
    "scaling_stats_permute_dims": (1, 0, 2),
}
QUANTISERS: dict[str, Callable[[], nn.Module]] = {
    "signed": lambda: QuantIdentity(bit_width=4, return_quant_tensor=True),
    "narrow": lambda: QuantIdentity(bit_width=3, narrow_range=True, return_quant_tensor=True),
    "unsigned": lambda: QuantReLU(bit_width=2, return_quant_tensor=True),
    "zero point": lambda: QuantIdentity(
        act_quant=ShiftedUint8ActPerTensorFloat, return_quant_tensor=True
    ),
    "binary": lambda: QuantIdentity(
        act_quant=SignedBinaryActPerTensorConst, return_quant_tensor=True
    ),
    "per channel": lambda: QuantIdentity(bit_width=4, return_quant_tensor=True, **_PER_CHANNEL),
    "zero point per channel": lambda: QuantIdentity(
        act_quant=ShiftedUint8ActPerTensorFloat, return_quant_tensor=True, **_PER_CHANNEL
    ),
    "learned bits": lambda: QuantReLU(
        bit_width=4, bit_width_impl_type="parameter", return_quant_tensor=True
    ),
}


def codes_of(x: Any) -> Tensor:
    exact = x.value.detach().double() / x.scale.detach().double() + x.zero_point.detach().double()
    return exact.round()


class Always(FaultModel):
    """Every hit changes its code: shows where the hits of a seed are."""

    name = "always"

    def corrupt(self, codes: Tensor, word: Any, draw: Any) -> Tensor:
        return word.from_pattern(word.to_pattern(codes) ^ 1)


def compare_with_oracle(
    faulty: Faulty, activation: nn.Module, inputs: list[Tensor], accuracy: float, **settings: Any
) -> None:
    net = faulty(nn.Sequential(activation).eval(), **settings)
    shown = faulty(nn.Sequential(activation).eval(), **{**settings, "injection_type": Always()})
    record_and_compare(net, shown, activation, inputs, accuracy)


def record_and_compare(
    net: Any, shown: Any, activation: nn.Module, inputs: list[Tensor], accuracy: float
) -> None:
    """Compare; `shown` changes each word that a fault of `net` hits."""
    statistics, oracle, dense = net.faults.new_statistics(), Oracle(), FaultStatistics(1)
    for x in inputs:
        clean = codes_of(activation(x))
        mask = codes_of(shown(x)) != clean
        case = clean, codes_of(net(x)), mask
        oracle.record(*case)
        dense.record(*case, layer_id=0)
    oracle.check(statistics.layer_stats[0], accuracy)
    oracle.check(dense.layer_stats[0], 1e-12)


@pytest.mark.parametrize("probability", [0.3, 10.0, 100.0])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", QUANTISERS)
def test_statistics_of_a_model_are_those_of_whole_tensors(
    faulty: Faulty, calibrated: Calibrated, kind: str, model: str, probability: float
) -> None:
    activation = calibrated(QUANTISERS[kind](), data(30, 3, 20))
    net = faulty(nn.Sequential(activation), injection_type=model, probability=probability)
    shown = faulty(nn.Sequential(activation), injection_type=Always(), probability=probability)
    for grad in (False, True):
        inputs = [data(8, 3, 20, seed=seed).requires_grad_(grad) for seed in range(2, 6)]
        for each in (net, shown):
            each.faults.reset()
        with torch.set_grad_enabled(grad):
            record_and_compare(net, shown, activation, inputs, 1e-6)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *itertools.product(
            ["signed", "unsigned", "per channel"], [torch.float64, torch.bfloat16, torch.float16]
        ),
        # In 16 bits, eight-bit codes share values: there is no oracle.
        ("zero point per channel", torch.float64),
    ],
)
def test_statistics_in_other_dtypes(
    faulty: Faulty, calibrated: Calibrated, kind: str, dtype: torch.dtype
) -> None:
    activation = calibrated(QUANTISERS[kind]().to(dtype), data(30, 3, 20, dtype=dtype))
    inputs = [data(8, 3, 20, seed=seed, dtype=dtype) for seed in range(2, 5)]
    compare_with_oracle(faulty, activation, inputs, 1e-6, probability=10.0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gradient_mode", ["ste", "zero_faulty"])
def test_statistics_with_faulty_units(
    faulty: Faulty, calibrated: Calibrated, model: str, gradient_mode: str
) -> None:
    activation = calibrated(QUANTISERS["signed"](), data(30, 3, 20))
    settings = {"hw_mask": True, "frequency_value": 7, "gradient_mode": gradient_mode}
    inputs = [data(4, 3, 20, seed=seed) for seed in range(2, 5)]
    compare_with_oracle(
        faulty, activation, inputs, 1e-6, injection_type=model, probability=30.0, **settings
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["signed", "zero point"])
@pytest.mark.parametrize("probability", [0.0, 10.0])
def test_a_tensor_of_zero_codes(
    faulty: Faulty, calibrated: Calibrated, kind: str, probability: float, dtype: torch.dtype
) -> None:
    """With a zero point, the code 0 is a value far from 0."""
    activation = calibrated(QUANTISERS[kind]().to(dtype), data(30, 3, 20, dtype=dtype))
    lowest = -100.0 if kind == "zero point" else 0.0
    x = torch.full((4, 3, 20), lowest, dtype=dtype)
    assert not codes_of(activation(x)).any()
    compare_with_oracle(faulty, activation, [x], 1e-6, probability=probability)


@pytest.mark.parametrize("kind", ["unsigned", "zero point"])
@pytest.mark.parametrize("scale", [0.3, 0.7, 1.1, 1.9])
def test_a_tensor_that_becomes_zero(
    faulty: Faulty, calibrated: Calibrated, kind: str, scale: float
) -> None:
    """All codes are the highest, and all bits of all of them flip."""
    activation = calibrated(QUANTISERS[kind](), scale * data(30, 3, 20))
    x = torch.full((4, 3, 20), 100.0)
    assert codes_of(activation(x)).unique().numel() == 1
    compare_with_oracle(faulty, activation, [x], 1e-6, injection_type="full_flip")


def test_forwards_without_faults_are_not_recorded(convnet: nn.Module, faulty: Faulty) -> None:
    net = faulty(convnet, apply_during="eval", track_statistics=True)
    statistics = net.faults.statistics
    x = data(4, 3, 6, 6)
    net.train()(x)
    net.eval().faults.enabled = False
    net(x)
    assert statistics.total_activations == 0
    net.faults.enabled = True
    net.faults.select(1)
    net(x)
    totals = [layer.total_activations for layer in statistics.layer_stats.values()]
    assert totals == [0, 4 * 4 * 4 * 4, 0]
    assert statistics.total_injections == totals[1]


def test_no_probability_is_recorded_as_armed(convnet: nn.Module, faulty: Faulty) -> None:
    net = faulty(convnet, probability=0.0, track_statistics=True)
    net(data(4, 3, 6, 6))
    layer = net.faults.statistics.layer_stats[0]
    assert (layer.total_activations, layer.injected_count, layer.avg_rmse) == (432, 0, 0.0)
    assert layer.avg_cosine_similarity == pytest.approx(1.0)


def test_statistics_are_switched_on_and_off(convnet: nn.Module, faulty: Faulty) -> None:
    net, x = faulty(convnet), data(2, 3, 6, 6)
    assert net.faults.statistics is None
    statistics = FaultStatistics(num_layers=3)
    fxfault.FaultInjector().set_statistics(net, statistics)
    net(x)
    once = statistics.total_activations
    assert once > 0
    net.faults.set_statistics(None)
    net(x)
    assert statistics.total_activations == once
    assert [layer.name for layer in statistics.layer_stats.values()] == ["0", "3", "6"]


def test_recording_changes_no_fault(convnet: nn.Module, faulty: Faulty) -> None:
    x = data(4, 3, 6, 6)
    results = [faulty(convnet, probability=5.0, track_statistics=on)(x) for on in (False, True)]
    assert torch.equal(*results)


def test_recording_changes_no_gradient(convnet: nn.Module, faulty: Faulty) -> None:
    gradients = []
    for on in (False, True):
        x = data(4, 3, 6, 6).requires_grad_()
        faulty(convnet, probability=5.0, track_statistics=on)(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_an_empty_batch_leaves_no_nan(convnet: nn.Module, faulty: Faulty) -> None:
    net = faulty(convnet[:1], track_statistics=True)
    net(torch.empty(0, 3, 6, 6))
    net(data(2, 3, 6, 6))
    layer = net.faults.statistics.layer_stats[0]
    assert layer.injection_rate == 100.0
    assert math.isfinite(layer.avg_cosine_similarity)
    assert math.isfinite(layer.avg_rmse)


# -- totals, merging, resetting ----------------------------------------------------------


def filled(layers: int = 3, first: int = 0, times: int = 4) -> FaultStatistics:
    statistics = FaultStatistics(layers, names=("a", "b.c")[:layers])
    for layer in range(layers - 1):  # the last one never struck
        for seed in range(first, first + times):
            statistics.record(*random_case(100 * layer + seed), layer_id=layer)
    return statistics


def test_totals() -> None:
    statistics = filled()
    layers = statistics.layer_stats.values()
    assert statistics.total_injections == sum(layer.injected_count for layer in layers) > 0
    assert statistics.total_activations == 2 * 4 * 30
    rate = 100 * statistics.total_injections / (2 * 4 * 30)
    assert statistics.overall_injection_rate == pytest.approx(rate)


def test_empty_statistics_have_no_rate_and_no_cosine() -> None:
    statistics = FaultStatistics(2)
    assert list(statistics.layer_stats) == [0, 1]
    assert statistics.overall_injection_rate == 0.0
    layer = statistics.layer_stats[0]
    assert (layer.injection_rate, layer.avg_rmse, layer.sample_count) == (0.0, 0.0, 0)
    assert math.isnan(layer.avg_cosine_similarity)


def test_merging_equals_recording_jointly() -> None:
    parts, joint = [filled(first=0), filled(first=4), filled(first=8)], filled(times=12)
    merged = parts[0]
    for part in parts[1:]:
        before = copy.deepcopy(part.to_dict())
        assert merged.merge(part) is merged
        assert part.to_dict() == before
    for index, layer in joint.layer_stats.items():
        expected = {k: v for k, v in layer.to_dict().items() if k != "name"}
        have = {k: v for k, v in merged.layer_stats[index].to_dict().items() if k != "name"}
        assert have == {
            key: pytest.approx(number, rel=1e-12) if isinstance(number, float) else number
            for key, number in expected.items()
        }
    assert merged.report() == joint.report()


def test_merging_loaded_statistics(tmp_path: Path) -> None:
    filled(first=4).save_to_file(tmp_path / "worker.json")
    merged = filled(first=0).merge(FaultStatistics.load_from_file(tmp_path / "worker.json"))
    assert merged.report() == filled(times=8).report()


def test_merging_statistics_of_another_model() -> None:
    with pytest.raises(FxFaultError, match=r"2 layers.*3 layers|3 layers.*2 layers"):
        filled(3).merge(filled(2))


def test_reset_forgets_everything_but_the_sites() -> None:
    statistics = filled()
    statistics.reset()
    assert statistics.to_dict() == FaultStatistics(3, names=("a", "b.c")).to_dict()
    statistics.record(*random_case(0), layer_id=0)
    assert statistics.layer_stats[0].sample_count == 1


def test_reset_while_a_model_records(convnet: nn.Module, faulty: Faulty) -> None:
    net = faulty(convnet, track_statistics=True)
    x = data(2, 3, 6, 6)
    net(x)
    once = net.faults.statistics.total_activations
    net.faults.statistics.reset()
    net(x)
    assert net.faults.statistics.total_activations == once


# -- files -------------------------------------------------------------------------------


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_file_has_the_form_of_the_specification(tmp_path: Path) -> None:
    statistics = filled()
    statistics.save_to_file(tmp_path / "stats.json")
    content = strict_json((tmp_path / "stats.json").read_text(encoding="utf-8"))
    assert content == statistics.to_dict()
    assert content["num_layers"] == 3
    for key in ("total_injections", "total_activations", "overall_injection_rate"):
        assert content[key] == getattr(statistics, key)
    assert list(content["layers"]) == ["0", "1", "2"]
    layer = content["layers"]["1"]
    assert layer["layer_id"] == 1
    for key in (
        "total_activations",
        "injected_count",
        "injection_rate",
        "avg_rmse",
        "avg_cosine_similarity",
        "sample_count",
    ):
        assert layer[key] == getattr(statistics.layer_stats[1], key)


def test_loading_loses_nothing_that_the_report_shows(tmp_path: Path) -> None:
    statistics = filled()
    statistics.save_to_file(str(tmp_path / "stats.json"))
    loaded = FaultStatistics.load_from_file(str(tmp_path / "stats.json"))
    assert loaded.report() == statistics.report()
    for index, layer in statistics.layer_stats.items():
        again = loaded.layer_stats[index].to_dict()
        assert again == {
            key: pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
            for key, value in layer.to_dict().items()
        }


def test_loaded_statistics_go_on(tmp_path: Path) -> None:
    filled(times=4).save_to_file(tmp_path / "stats.json")
    loaded = FaultStatistics.load_from_file(tmp_path / "stats.json")
    for layer in range(2):
        for seed in range(4, 8):
            loaded.record(*random_case(100 * layer + seed), layer_id=layer)
    assert loaded.report() == filled(times=8).report()


def test_saving_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    filled().save_to_file(path)
    filled(times=2).save_to_file(path)
    assert FaultStatistics.load_from_file(path).report() == filled(times=2).report()
    assert list(tmp_path.iterdir()) == [path]


def _without(key: str) -> dict[str, Any]:
    content = filled().to_dict()
    del content["layers"]["0"][key]
    return content


def _with(key: str, value: Any) -> dict[str, Any]:
    content = filled().to_dict()
    content["layers"]["0"][key] = value
    return content


BAD_FILES: dict[str, str] = {
    "empty": "",
    "not JSON": "{'layers': 1}",
    "cut off": json.dumps(filled().to_dict())[:100],
    "a list": "[1, 2]",
    "a number": "3",
    "no layers": json.dumps({"num_layers": 3}),
    "layers is a list": json.dumps({**filled().to_dict(), "layers": [1]}),
    "a layer is a number": json.dumps({**filled().to_dict(), "layers": {"0": 5}}),
    "no sample_count": json.dumps(_without("sample_count")),
    "no injected_count": json.dumps(_without("injected_count")),
    "text for a count": json.dumps(_with("injected_count", "many")),
    "text for a measure": json.dumps(_with("avg_rmse", "large")),
    "null for a measure": json.dumps(_with("avg_rmse", None)),
    "a list for a count": json.dumps(_with("total_activations", [1])),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_an_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "stats.json"
    path.write_text(BAD_FILES[kind], encoding="utf-8")
    with pytest.raises(FxFaultError, match=r"stats\.json"):
        FaultStatistics.load_from_file(path)


def test_a_missing_file_and_bytes_are_errors_that_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(FxFaultError, match=r"nowhere\.json"):
        FaultStatistics.load_from_file(tmp_path / "nowhere.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FxFaultError, match=r"bytes\.json"):
        FaultStatistics.load_from_file(tmp_path / "bytes.json")
    with pytest.raises(FxFaultError):
        FaultStatistics.load_from_file(tmp_path)


# -- report ------------------------------------------------------------------------------

# Section "Console Report" of the specification, without the spaces at the ends of its lines.
SPECIFIED = """\
==========================================================================================
FAULT INJECTION STATISTICS
==========================================================================================
Layer    Injected     Total          Rate (%)     RMSE         Cos Sim (%)
------------------------------------------------------------------------------------------
0        12543        125430         10.0000      2.3451       97.8234
1        8721         87210          10.0000      1.9876       98.1234
------------------------------------------------------------------------------------------
TOTAL    21264        212640         10.0000
==========================================================================================
"""


def specified() -> FaultStatistics:
    rows = [(125430, 12543, 2.3451, 0.978234), (87210, 8721, 1.9876, 0.981234)]
    layers = {
        str(i): {
            "layer_id": i,
            "name": "",
            "total_activations": total,
            "injected_count": injected,
            "injection_rate": 10.0,
            "avg_rmse": rmse,
            "avg_cosine_similarity": cosine,
            "sample_count": 157,
            "rmse_count": 157,
        }
        for i, (total, injected, rmse, cosine) in enumerate(rows)
    }
    return FaultStatistics.from_dict({"num_layers": 2, "layers": layers})


def test_print_report_is_the_table_of_the_specification(capsys: pytest.CaptureFixture[str]) -> None:
    specified().print_report()
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    assert printed == SPECIFIED


def test_names_stand_in_the_report_where_they_are_known() -> None:
    lines = filled().report().splitlines()
    assert lines[5].split()[0] == "0"
    assert lines[5].split()[-1] == "a"
    assert lines[6].split()[-1] == "b.c"


def test_report_of_a_site_that_never_struck() -> None:
    row = filled().report().splitlines()[7]
    assert row.split()[:3] == ["2", "0", "0"]
    assert "nan" not in row.lower()


def test_low_rates_do_not_read_as_zero() -> None:
    statistics = FaultStatistics(1)
    clean = torch.ones(10**6, dtype=torch.int8)
    faulty, mask = clean.clone(), torch.zeros(10**6, dtype=torch.bool)
    faulty[7], mask[7] = 2, True
    statistics.record(clean, faulty, mask, layer_id=0)
    rate = statistics.report().splitlines()[5].split()[3]
    assert float(rate) == pytest.approx(1e-4)


# -- without cosine similarity -----------------------------------------------------------


def test_cosine_similarity_is_left_out_where_it_is_not_wanted(
    convnet: nn.Module, faulty: Faulty
) -> None:
    results = []
    for cosine in (True, False):
        net = faulty(convnet, probability=20.0)
        statistics = FaultStatistics(len(net.faults), net.faults.names, cosine=cosine)
        net.faults.set_statistics(statistics)
        for _ in range(2):
            net(torch.ones(4, 3, 6, 6))
        results.append(statistics)
    full, short = (statistics.to_dict()["layers"] for statistics in results)
    for index, layer in full.items():
        assert layer.pop("avg_cosine_similarity") is not None
        assert short[index].pop("avg_cosine_similarity") is None
        assert short[index] == layer
    merged = FaultStatistics.from_dict(results[1].to_dict()).merge(results[1])
    assert merged.to_dict()["layers"]["0"]["avg_cosine_similarity"] is None
    assert " - " in results[1].report()


# -- files -------------------------------------------------------------------------------


def test_the_specifications_own_file_loads(tmp_path: Path) -> None:
    entry = {
        "layer_id": 0,
        "total_activations": 125430,
        "injected_count": 12543,
        "injection_rate": 10.0,
        "avg_rmse": 2.3451,
        "avg_cosine_similarity": 0.978234,
        "sample_count": 157,
    }
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"num_layers": 1, "layers": {"0": entry}}))
    layer = FaultStatistics.load_from_file(path).layer_stats[0]
    assert (layer.injected_count, layer.injection_rate) == (12543, 10.0)
    assert layer.avg_rmse == pytest.approx(2.3451)
    assert layer.avg_cosine_similarity == pytest.approx(0.978234)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FxFaultError, match="absent"):
        FaultStatistics(1).save_to_file(tmp_path / "absent" / "stats.json")
