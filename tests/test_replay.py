"""A list of faults strikes again, bit for bit, and a list that does not fit is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_draws import act, data, net
from test_fault_listing import KINDS
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxfault
from fxfault.campaign import FaultEvaluation
from fxfault.config import FaultInjectionConfig
from fxfault.errors import ConfigError, FxFaultError, InvalidConfigError, SiteError
from fxfault.evaluation import FullRunner, IncrementalRunner
from fxfault.faults.layouts import Layout
from fxfault.sites import replay_lists
from fxfault.strike.draws import elements_hit, samples_hit

Faulty = Callable[..., Any]
OURS = "site,sample,element,mask\n"
OTHERS = "Injection,Layer,TensorIndex,Bit\n"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """Give a function that writes a list and returns its file."""

    def write(text: str) -> str:
        path = tmp_path / "list.csv"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def replaying(faulty: Faulty, replay: Any, **settings: Any) -> Any:
    return faulty(net(), faults={"replay": replay}, seed=99, **settings)


def in_batches(model: Any, batch: int) -> Tensor:
    model.faults.reset()
    return torch.cat([model(part).value for part in data().split(batch)])


# -- the same faults --------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_is_bit_for_bit_the_trial(
    faulty: Faulty, kind: str, batch: int, tmp_path: Path
) -> None:
    model = faulty(net(), **KINDS[kind])
    model.faults.measure(data())
    found = model.faults.listing(data(), trial=17)
    model.faults.reset(trial=17)
    expected = model(data()).value
    assert torch.equal(in_batches(replaying(faulty, found), batch), expected)
    found.to_csv(tmp_path / "list.csv")
    again = replaying(faulty, tmp_path / "list.csv")
    assert torch.equal(in_batches(again, batch), expected)
    again.faults.reset()
    assert list(again.faults.listing(data()).rows()) or not len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_of_a_replay_changes_the_same_bits(faulty: Faulty, kind: str) -> None:
    found = faulty(net(), **KINDS[kind]).faults.listing(data())
    again = replaying(faulty, found).faults.listing(data())
    masks: list[dict[Any, int]] = [{}, {}]
    for table, listing in zip(masks, (found, again), strict=True):
        for row in listing.rows():
            place = row["site"], row["sample"], row["element"]
            table[place] = table.get(place, 0) ^ row["mask"]
    assert masks[0] == masks[1]
    assert len(again) == len(masks[1])


@pytest.mark.parametrize("device_dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_replay(faulty: Faulty, device_dtype: torch.dtype) -> None:
    x = data().to(device_dtype)
    model = faulty(net().to(device_dtype), injection_type="random", probability=30.0)
    found = model.faults.listing(x)
    model.faults.reset()
    again = faulty(net().to(device_dtype), faults=[{"replay": found}])
    assert torch.equal(again(x).value, model(x).value)


def test_a_parquet_file_replays(faulty: Faulty, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    model = faulty(net(), **KINDS["several"])
    model.faults.listing(data()).to_parquet(tmp_path / "list.parquet")
    model.faults.reset()
    assert torch.equal(
        replaying(faulty, tmp_path / "list.parquet")(data()).value, model(data()).value
    )


def test_samples_may_run_in_any_order(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["random"])
    again = replaying(faulty, model.faults.listing(data()))
    model.faults.reset()
    whole, chosen = model(data()).value, torch.tensor([31, 4, 4, 12])
    with again.faults.samples(chosen):
        assert torch.equal(again(data()[chosen]).value, whole[chosen])


def test_a_copy_of_the_model_replays(faulty: Faulty) -> None:
    model = faulty(net(), **KINDS["random"])
    again = copy.deepcopy(replaying(faulty, model.faults.listing(data())))
    model.faults.reset()
    assert torch.equal(again(data()).value, model(data()).value)


def test_calls_of_a_container_replay(faulty: Faulty) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = act(4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(x.abs().max() > 0) + 2):
                x = self.act(x).value
            return x

    def outer() -> nn.Module:
        return nn.Sequential(Steps()).eval()

    model = faulty(outer(), injection_type="random", probability=30.0)
    found = model.faults.listing(data())
    assert {row["call"] for row in found.rows()} == {1, 2, 3}
    model.faults.reset()
    again = faulty(outer(), faults={"replay": found})
    assert torch.equal(again(data()), model(data()))


def test_a_list_joins_drawn_faults(faulty: Faulty, written: Callable[[str], str]) -> None:
    file = written(OURS + "0,,0,8\n")
    drawn = {"injection_type": "lsb_flip", "probability": 100.0, "layers": "5"}
    both = faulty(net(), faults=[{"replay": file}, drawn])
    rows = list(both.faults.listing(data()).rows())
    assert [row["site"] for row in rows] == ["0"] * 40 + ["5"] * 240


@pytest.mark.parametrize("mode", ["ste", "zero_faulty"])
def test_gradients_know_replayed_hits(
    faulty: Faulty, written: Callable[[str], str], mode: str
) -> None:
    file = written(OURS + "0,1,3,8\n")
    model = faulty(nn.Sequential(act(4)), faults={"replay": file}, gradient_mode=mode)
    x = torch.zeros(2, 5, requires_grad=True)
    model(x).value.sum().backward()
    expected = torch.ones(2, 5)
    expected[1, 3] = 0.0 if mode == "zero_faulty" else 1.0
    assert torch.equal(x.grad, expected)


# -- what is known ahead ----------------------------------------------------------------


def test_hits_are_known_ahead(faulty: Faulty, written: Callable[[str], str]) -> None:
    model = replaying(faulty, written(OURS + "0,3,7,2\n0,3,7,1\n0,5,8,0\n3,5,1,1\n"))
    model(data())
    layout, numbers = Layout(1, 1, (48,)), range(40)
    assert samples_hit(model.faults["0"], numbers, layout).nonzero().flatten().tolist() == [3, 5]
    assert elements_hit(model.faults["0"], numbers, layout) == 2
    assert not samples_hit(model.faults["5"], numbers, layout).any()
    statistics = model.faults.new_statistics()
    model.faults.reset()
    model(data())
    assert statistics.total_injections == 3
    assert [(row["element"], row["mask"]) for row in model.faults.listing(samples=4).rows()] == [
        (7, 3)
    ]


@pytest.mark.parametrize("runner", ["full", "incremental", "frozen and verified"])
def test_an_evaluation_replays(faulty: Faulty, runner: str, tmp_path: Path) -> None:
    def evaluated(model: Any) -> Any:
        if runner == "frozen and verified":
            made: Any = IncrementalRunner(fxfault.freeze(model), loader, verify=100.0)
        else:
            made = (FullRunner if runner == "full" else IncrementalRunner)(model, loader)
        (result,) = FaultEvaluation(made).evaluate([model.faults.config])
        return result.rows[0]

    def network() -> nn.Module:
        class Logits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = net()

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x).value

        return Logits().eval()

    loader = DataLoader(TensorDataset(data(), torch.arange(40) % 6), batch_size=16)
    settings = {"injection_type": "random", "probability": 3.0}
    drawn = faulty(network(), apply_during="eval", **settings)
    expected = evaluated(drawn)
    found = drawn.faults.listing(data(), trial=0)
    found.to_csv(tmp_path / "list.csv")
    again = faulty(network(), apply_during="eval", faults={"replay": str(tmp_path / "list.csv")})
    result = evaluated(again)
    counts = ("correct", "sdc", "critical_sdc", "faults", "struck", "masked", "top5")
    for name in counts:
        assert getattr(result, name) == getattr(expected, name)
    assert result.sdc > 0


# -- lists of other tools ---------------------------------------------------------------


def rows_of(model: Any) -> list[tuple[Any, ...]]:
    names = ("site", "sample", "coordinates", "mask")
    return [tuple(row[name] for name in names) for row in model.faults.listing(data()[:3]).rows()]


def test_other_tools_lists_are_read(faulty: Faulty, written: Callable[[str], str]) -> None:
    first = '0,0,"(1, 2, 0, 3)",1\n0,5,"(2, 4)",0\n'
    file = written(f'{OTHERS}{first}0,3,7,2\n0,3,7,1\n0,0,"[-1 0 0 1]",3\n')
    every = [("0", sample, "0,0,1", 8) for sample in range(3)]
    one = [("0", 1, "2,0,3", 2)]
    three = [("3", sample, "7", 6) for sample in range(3)]
    assert rows_of(replaying(faulty, file)) == sorted(every + one) + three + [("5", 2, "4", 1)]


def test_a_name_goes_before_an_index(faulty: Faulty, written: Callable[[str], str]) -> None:
    # The sites are called 0, 3 and 5, and have the indices 0, 1 and 2.
    file = written("Layer,TensorIndex,Bit\n2,1,0\n3,1,0\n")
    found = {row[0] for row in rows_of(replaying(faulty, file))}
    assert found == {"3", "5"}


def test_each_injection_is_a_trial(faulty: Faulty, written: Callable[[str], str]) -> None:
    model = replaying(faulty, written(OTHERS + "10,0,1,0\n7,0,2,0\n10,0,3,0\n"))
    struck = []
    for trial in range(3):
        rows = model.faults.listing(data()[:1], trial=trial).rows()
        struck.append([row["element"] for row in rows])
    assert struck == [[2], [1, 3], []]


def test_a_list_may_be_written_in_other_ways(faulty: Faulty, written: Callable[[str], str]) -> None:
    plain = rows_of(replaying(faulty, written(OURS + "0,1,7,12\n3,,2,3\n")))
    other = ',Mask, element ,"site",sample\n0,0xC,7.0,0,1\n1,0b11,2,3,-1\n\n'
    assert rows_of(replaying(faulty, written("\ufeff" + other.replace("\n", "\r\n")))) == plain
    by_place = 'site,coordinates,sample,mask\n0,"0,1,3",1,12\n3,(2),,3\n'
    assert rows_of(replaying(faulty, written(by_place))) == plain


def test_a_site_that_looks_like_a_formula_is_found(faulty: Faulty, tmp_path: Path) -> None:
    def odd() -> Any:
        model = nn.Sequential()
        model.add_module("=sum", act(4))
        return model.eval()

    found = faulty(odd(), injection_type="msb_flip", probability=10.0).faults.listing(data())
    found.to_csv(tmp_path / "list.csv")
    assert "'=sum," in (tmp_path / "list.csv").read_text()
    again = faulty(odd(), faults={"replay": str(tmp_path / "list.csv")})
    assert len(again.faults.listing(data())) == len(found) > 0


def test_an_empty_list_strikes_nothing(faulty: Faulty, written: Callable[[str], str]) -> None:
    model = replaying(faulty, written(OURS))
    assert torch.equal(model(data()).value, net()(data()).value)


# -- lists that do not fit --------------------------------------------------------------

BAD = {
    "": "line 1: got the columns none; allowed: site, sample, element or coordinates, and mask",
    "site,mask\n0,1\n": "line 1: got the columns site, mask; allowed: ",
    "site,element,mask,mask\n": "line 1: has the column mask twice",
    "site,sampel,element,mask\n": "line 1: got the column 'sampel', allowed: site, memory, call,",
    "Layer,TensorIndex,Bit,inject\n": "line 1: got the column 'inject', allowed: Layer, TensorIn",
    OURS + "0,1,7\n": "line 2: got 3 fields, allowed: 4, one for each column",
    OURS + '0,1,7,1\n0,1,"7,1\n': "line 3: is no CSV: unexpected end of data",
    OURS + "1,1,7,1\n": "line 2, column site: no site '1'",
    OURS + ",1,7,1\n": "line 2, column site: got nothing, allowed: the name of a site",
    OURS + "0,one,7,1\n": "line 2, column sample: got 'one', allowed: a whole number from -1 up",
    OURS + "0,-2,7,1\n": "line 2, column sample: got '-2', allowed: a whole number from -1 up",
    OURS + "0,1,7,1\n0,1,,1\n": "line 3, column element: got nothing, allowed: the element",
    OURS + "0,1,1.5,1\n": "line 2, column element: got '1.5', allowed: a whole number",
    OURS + "0,1,99999999999999999999,1\n": "line 2, column element: got '9999",
    OURS + "0,1,7,\n": "line 2, column mask: got nothing, allowed: the bits that changed",
    OURS + "0,1,7,-1\n": "line 2, column mask: got '-1', allowed: a whole number from 0 to 42949",
    OURS + "0,1,7,16\n": "line 2, column mask: got 16, allowed: 0 to 15, as the words of site 0",
    OURS + "0,1,48,1\n": "line 2, column element: got 48, allowed: 0 to 47, as a sample of site 0",
    "site,call,element,mask\n0,0,1,1\n": "line 2, column call: got '0', allowed: a whole number",
    'site,coordinates,mask\n0,"(0, 1)",1\n': "line 2, column coordinates: got (0, 1), allowed: 3",
    'site,coordinates,mask\n0,"0,4,0",1\n': "line 2, column coordinates: got (0, 4, 0), allowed",
    'site,coordinates,mask\n0,"0,x,0",1\n': "line 2, column coordinates: got '0,x,0', allowed: c",
    'site,coordinates,mask\n0,"-1,0,0",1\n': "line 2, column coordinates: got '-1,0,0', allowed",
    'site,element,coordinates,mask\n0,1,"0,1,0",1\n': "got (0, 1, 0), which is element 4, not 1",
    "site,memory,element,mask\n0,weights,1,1\n": "line 2, column memory: got 'weights', allowed",
    OTHERS + "x,0,1,1\n": "line 2, column Injection: got 'x', allowed: a whole number from 0 up",
    OTHERS + "0,9,1,1\n": "line 2, column Layer: no site '9'",
    OTHERS + "0,,1,1\n": "line 2, column Layer: got nothing, allowed: the name or the index",
    OTHERS + "0,0,,1\n": "line 2, column TensorIndex: got nothing, allowed: the number of an elem",
    OTHERS + "0,0,48,1\n": "line 2, column TensorIndex: got 48, allowed: 0 to 47",
    OTHERS + '0,0,"(0, 0, 0, 9)",1\n': "column TensorIndex: got (0, 0, 9), allowed: 3 coordinat",
    OTHERS + '0,0,"(1, 1)",1\n': "column TensorIndex: got (1, 1), allowed: 3 coordinates, with t",
    OTHERS + "0,0,1,4\n": "line 2, column Bit: got 4, allowed: 0 to 3, as the words of site 0 hav",
    OTHERS + "0,0,1,32\n": "line 2, column Bit: got '32', allowed: a whole number from 0 to 31",
    OTHERS + "0,0,1,\n": "line 2, column Bit: got nothing, allowed: a whole number from 0 to 31",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_list_is_one_clear_line(
    faulty: Faulty, written: Callable[[str], str], text: str
) -> None:
    file = written(text)
    with pytest.raises(FxFaultError) as caught:
        replaying(faulty, file)(data())
    message = str(caught.value)
    assert message.startswith(file)
    assert BAD[text] in message
    assert "\n" not in message


def test_files_that_are_no_lists_are_refused(faulty: Faulty, tmp_path: Path) -> None:
    for name, content, problem in (
        ("binary", b"site,element,mask\n\xff\xfe", "line 2: is no text in UTF-8"),
        ("parquet", b"PAR1nonsense", "is no Parquet file"),
    ):
        (tmp_path / name).write_bytes(content)
        if name == "parquet":
            pytest.importorskip("pyarrow")
        with pytest.raises(ConfigError, match=problem):
            replaying(faulty, str(tmp_path / name))
    with pytest.raises(ConfigError, match="no such file"):
        replaying(faulty, str(tmp_path / "missing.csv"))
    with pytest.raises(ConfigError, match="Is a directory"):
        replaying(faulty, str(tmp_path))


def test_parquet_without_pyarrow_is_one_clear_line(
    faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list").write_bytes(b"PAR1")
    monkeypatch.setattr(replay_lists, "check_parquet", _refuse)
    with pytest.raises(ConfigError, match="pyarrow is missing"):
        replaying(faulty, str(tmp_path / "list"))


def _refuse(flag: str) -> None:
    raise ConfigError("pyarrow is missing")


def test_a_list_without_masks_is_refused(faulty: Faulty, tmp_path: Path) -> None:
    model = faulty(net(), injection_type="random", probability=5.0)
    model.faults.measure(data())
    ahead = model.faults.listing(samples=3)
    ahead.to_csv(tmp_path / "list.csv")
    for source, place in ((ahead, "list of faults, row 1"), (tmp_path / "list.csv", "line 2")):
        expected = f"{place}, column mask: got nothing, .*; those of random are known after"
        with pytest.raises(ConfigError, match=expected):
            replaying(faulty, source)


def test_a_mended_file_is_read_again(faulty: Faulty, written: Callable[[str], str]) -> None:
    with pytest.raises(SiteError):
        replaying(faulty, written(OURS + "1,1,7,1\n"))
    replaying(faulty, written(OURS + "0,1,7,11\n"))


def test_learned_widths_are_checked_by_the_forward(
    faulty: Faulty, written: Callable[[str], str]
) -> None:
    import brevitas.nn as qnn
    from brevitas.inject.enum import BitWidthImplType

    learned = qnn.QuantIdentity(
        bit_width=4,
        bit_width_impl_type=BitWidthImplType.PARAMETER,
        return_quant_tensor=True,
        scaling_impl_type="const",
        scaling_init=2.0,
    )
    model = faulty(nn.Sequential(learned).eval(), faults={"replay": written(OURS + "0,0,0,16\n")})
    with pytest.raises(SiteError, match=r"replay of .*list\.csv needs a word of at least 5 bits"):
        model(data())


# -- configurations ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"faults": {"replay": "x", "bit": 3}}, r"faults\[0\]\.bit: given beside replay"),
        (
            {"faults": {"replay": "x", "probability": 3.0}},
            r"faults\[0\]\.probability: given beside",
        ),
        ({"faults": [{"replay": "x", "layers": "0"}]}, r"faults\[0\]\.layers: given beside replay"),
        ({"faults": {"replay": "x"}, "mode": "layer"}, "mode: got 'layer' .str. beside replay"),
        ({"faults": {"replay": "x"}, "layers": "0"}, "layers: got '0' .str. beside faults"),
        ({"faults": {"replay": 7}}, r"faults\[0\]\.replay: got 7 \(int\), allowed: the file of a"),
        ({"faults": {"replay": ""}}, r"faults\[0\]\.replay: got '' \(str\), allowed: the file of"),
        ({"faults": {"bit": 7}}, r"faults: got .*, allowed: .*`\{replay: FILE\}`"),
        ({"replay": "x"}, "replay: unknown key"),
    ],
)
def test_a_replay_says_all(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidConfigError, match=problem):
        FaultInjectionConfig.from_dict(settings)


def test_a_replay_is_written_as_it_was_read(faulty: Faulty) -> None:
    config = FaultInjectionConfig.from_dict({"faults": {"replay": "list.csv"}})
    assert config.to_dict()["faults"] == [{"replay": "list.csv"}]
    assert FaultInjectionConfig.from_dict(config.to_dict()) == config
    assert [str(entry) for entry in config.entries()] == ["replay of list.csv"]
    assert FaultInjectionConfig(faults={"replay": "a"}).entries()[0].replay == "a"
    found = faulty(net(), probability=1.0).faults.listing(data())
    with pytest.raises(ConfigError, match=r"faults\[0\]\.replay: FaultList.* is no file; save it"):
        FaultInjectionConfig(faults=[{"replay": found}]).to_dict()


def test_a_replay_is_shown_as_such(
    faulty: Faulty, written: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    file = written(OURS + "0,1,7,8\n")
    with caplog.at_level("INFO", logger="fxfault"):
        model = replaying(faulty, file, verbose=True)
    assert f"Faults: replay of {file}" in caplog.text
    row, other, _ = fxfault.inspect(model).sites
    assert (row.fault_model, row.probability) == (f"replay of {file}", None)
    assert other.fault_model == "-"
    assert "replay of" in repr(model.faults[0])
