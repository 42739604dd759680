"""Fault models: the registry, models of a user's own, and the specification's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas.nn import QuantReLU
from torch import Tensor, nn

import fxfault
from fxfault.errors import ConfigError, SiteError
from fxfault.faults import (
    FaultModel,
    Word,
    fault_model_names,
    fault_models,
    get_fault_model,
    register_fault_model,
)
from fxfault.faults.fault_models import (
    BitFlipStrategy,
    BurstStrategy,
    FullFlipStrategy,
    InjectionStrategy,
    LSBFlipStrategy,
    MSBFlipStrategy,
    RandomStrategy,
    get_strategy,
)
from fxfault.faults.random_numbers import stream_key, uniform_int63
from fxfault.strike import contracts

NAMES = ("random", "lsb_flip", "msb_flip", "full_flip")
BIT_NAMES = ("bit_flip", "stuck_at_0", "stuck_at_1", "burst")
FLIPS = NAMES[1:]


class StuckAtOne(FaultModel):
    """The least significant bit reads as 1."""

    name = "stuck_at_one"

    def corrupt(self, codes: Tensor, word: Word, draw: Any) -> Tensor:
        return word.from_pattern(word.to_pattern(codes) | 1)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register what it likes; the next one finds the registry as it was."""
    monkeypatch.setattr(fault_models, "_REGISTRY", dict(fault_models._REGISTRY))


# -- registry ----------------------------------------------------------------------------


def test_the_four_models_of_the_specification_are_known() -> None:
    assert fault_model_names()[:4] == NAMES


def test_the_models_of_single_bits_are_known() -> None:
    assert fault_model_names() == NAMES + BIT_NAMES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("random", RandomStrategy),
        ("lsb_flip", LSBFlipStrategy),
        ("msb_flip", MSBFlipStrategy),
        ("full_flip", FullFlipStrategy),
    ],
)
def test_specification_names(name: str, kind: type) -> None:
    assert type(get_strategy(name)) is kind
    assert issubclass(kind, InjectionStrategy)
    assert get_strategy(name).name == name
    assert get_fault_model(name) is get_strategy(name)


def test_names_are_exported() -> None:
    for name in ("InjectionStrategy", "RandomStrategy", "LSBFlipStrategy", "MSBFlipStrategy"):
        assert getattr(fxfault, name) is getattr(fault_models, name)
    assert fxfault.get_strategy is get_strategy
    assert fxfault.register_fault_model is register_fault_model


@pytest.mark.parametrize("name", BIT_NAMES[:3])
def test_a_bit_is_chosen_by_the_way(name: str) -> None:
    assert get_fault_model(name, bit=3) == type(get_fault_model(name))(bit=3)
    assert get_fault_model(name, bit=3).label == f"{name} 3"
    for drawn in (None, "random"):
        assert get_fault_model(name, bit=drawn) is get_fault_model(name)
    assert get_fault_model(name).label == name


def test_a_length_is_chosen_by_the_way() -> None:
    assert get_fault_model("burst", burst_length=5) == BurstStrategy(5)
    assert get_fault_model("burst", bit=3) == BurstStrategy(2)
    assert get_fault_model("burst").label == "burst 2"


def test_what_a_model_does_not_take_leaves_it_alone() -> None:
    for name in NAMES:
        assert get_fault_model(name, bit=1, burst_length=3) is get_fault_model(name)


@pytest.mark.parametrize("bit", [-1, 32, 1.0, True, "each"])
def test_there_are_bits_0_to_31(bit: Any) -> None:
    with pytest.raises(ConfigError, match=r"^bit: got .*, allowed: an integer from 0 to 31$"):
        BitFlipStrategy(bit)


@pytest.mark.parametrize("length", [0, 33, 2.0, None])
def test_bursts_have_1_to_32_bits(length: Any) -> None:
    with pytest.raises(ConfigError, match=r"^burst_length: got .*, allowed: an integer from 1"):
        BurstStrategy(length)


def test_which_models_are_the_same_in_every_sample() -> None:
    same = [n for n in fault_model_names() if get_fault_model(n).same_in_every_sample]
    assert same == ["stuck_at_0", "stuck_at_1"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("bit_flip", {1, 2, 4, 8}), ("burst", {3, 6, 12}), ("stuck_at_1", {0, 1, 2, 4, 8})],
)
def test_the_dense_form_knows_single_bits_too(name: str, allowed: set[int]) -> None:
    codes = torch.arange(16).repeat(100)
    mask = torch.ones(1600, dtype=torch.bool)
    struck = get_strategy(name).inject(codes, mask, 4, False, codes.device)
    assert set((struck ^ codes).tolist()) == allowed


def test_unknown_name_tells_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match="msb_flip") as caught:
        get_fault_model("msb_flp")
    assert "did you mean 'msb_flip'" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize(
    "wrong", [3, None, object(), RandomStrategy], ids=["number", "None", "object", "class"]
)
def test_what_is_no_fault_model_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        get_fault_model(wrong)


@pytest.mark.usefixtures("registry")
def test_registering_makes_a_model_known_by_name() -> None:
    model = StuckAtOne()
    assert register_fault_model(model) is model
    assert get_fault_model("stuck_at_one") is model
    assert fault_model_names()[-1] == "stuck_at_one"


@pytest.mark.usefixtures("registry")
def test_a_name_is_not_taken_over() -> None:
    class Other(StuckAtOne):
        name = "random"

    with pytest.raises(ConfigError, match="random"):
        register_fault_model(Other())
    assert type(get_fault_model("random")) is RandomStrategy


@pytest.mark.parametrize("name", ["", None, 5])
@pytest.mark.usefixtures("registry")
def test_a_model_needs_a_name(name: Any) -> None:
    model = StuckAtOne()
    model.name = name
    with pytest.raises(ConfigError, match="name"):
        register_fault_model(model)
    assert fault_model_names() == NAMES + BIT_NAMES


@pytest.mark.usefixtures("registry")
def test_a_model_without_any_name_is_refused() -> None:
    class Nameless(FaultModel):
        def corrupt(self, codes: Tensor, word: Word, draw: Any) -> Tensor:
            return codes

    with pytest.raises(ConfigError, match="name"):
        register_fault_model(Nameless())


def test_corrupt_is_abstract() -> None:
    with pytest.raises(TypeError):
        FaultModel()  # type: ignore[abstract]


# -- a user's own model ------------------------------------------------------------------


def struck_codes(convnet: nn.Module, faulty: Callable[..., Any], model: Any) -> Tensor:
    net = faulty(convnet[:1], injection_type=model)
    torch.manual_seed(1)
    return net(torch.randn(4, 3, 6, 6)).int().long()


def clean_codes(convnet: nn.Module) -> Tensor:
    torch.manual_seed(1)
    return convnet[0](torch.randn(4, 3, 6, 6)).int().long()


@pytest.mark.usefixtures("registry")
def test_own_model_by_name(convnet: nn.Module, faulty: Callable[..., Any]) -> None:
    register_fault_model(StuckAtOne())
    expected = clean_codes(convnet) | 1
    assert torch.equal(struck_codes(convnet, faulty, "stuck_at_one"), expected)


def test_own_model_as_an_object(convnet: nn.Module, faulty: Callable[..., Any]) -> None:
    expected = clean_codes(convnet) | 1
    assert torch.equal(struck_codes(convnet, faulty, StuckAtOne()), expected)


def test_own_model_without_our_base_class(convnet: nn.Module, faulty: Callable[..., Any]) -> None:
    class Zero:
        name = "zero"

        def corrupt(self, codes: Tensor, word: Word, draw: Any) -> Tensor:
            return codes * 0

    assert not struck_codes(convnet, faulty, Zero()).any()


def test_own_random_model_draws_independently_of_the_batch(
    convnet: nn.Module, faulty: Callable[..., Any]
) -> None:
    class FlipOneOfAllBits(FaultModel):
        name = "flip_one_of_all_bits"

        def corrupt(self, codes: Tensor, word: Word, draw: Any) -> Tensor:
            bit = draw(0) % word.bit_width
            return word.from_pattern(word.to_pattern(codes) ^ (1 << bit))

    net = faulty(convnet[:1], injection_type=FlipOneOfAllBits(), probability=50.0)
    x = torch.randn(6, 3, 6, 6)
    whole = net(x).value
    net.faults.reset()
    parts = torch.cat([net(part).value for part in x.split([1, 3, 2])])
    assert torch.equal(whole, parts)
    flipped = (whole / convnet[0](x).scale).round().long() ^ convnet[0](x).int().long()
    patterns = flipped & 0xFF
    assert set(patterns.unique().tolist()) == {0, *(1 << bit for bit in range(8))}


def test_two_streams_of_draws_differ_and_one_repeats(
    convnet: nn.Module, faulty: Callable[..., Any]
) -> None:
    seen: list[Tensor] = []

    class Looking(FaultModel):
        name = "looking"

        def corrupt(self, codes: Tensor, word: Word, draw: Any) -> Tensor:
            seen.extend([codes, draw(0), draw(1), draw(0)])
            return codes

    struck_codes(convnet, faulty, Looking())
    codes, first, second, again = seen
    assert codes.dtype == first.dtype == torch.int64
    assert codes.dim() == 1
    assert first.shape == codes.shape
    assert torch.equal(first, again)
    assert not (first == second).any()
    assert int(first.min()) >= 0


def test_model_is_changed_without_tracing_again(
    convnet: nn.Module, faulty: Callable[..., Any]
) -> None:
    net = faulty(convnet[:1], injection_type="lsb_flip")
    code = net.code
    net.faults.set_fault_model(StuckAtOne())
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(net(x).int().long(), convnet[0](x).int().long() | 1)
    net.faults[0].set_fault_model("full_flip")
    net.faults.reset()
    assert torch.equal(net(x).int().long(), ~convnet[0](x).int().long())
    assert net.code == code
    with pytest.raises(ConfigError, match="lsb_flip"):
        net.faults[0].set_fault_model("lsb_flop")


# -- the specification's dense form ------------------------------------------------------


@pytest.mark.parametrize("name", FLIPS)
@pytest.mark.parametrize("signed", [True, False])
def test_inject_strikes_where_the_mask_says(name: str, signed: bool) -> None:
    low = -8 if signed else 0
    codes = torch.arange(low, low + 16, dtype=torch.int32).reshape(4, 4)
    before = codes.clone()
    mask = torch.arange(16).reshape(4, 4) % 3 == 0
    result = get_strategy(name).inject(codes, mask, 4, signed, torch.device("cpu"))
    assert result.dtype == torch.int32
    assert result.shape == codes.shape
    assert torch.equal(codes, before)
    assert torch.equal(result[~mask], codes[~mask])
    bits = {"lsb_flip": 0b0001, "msb_flip": 0b1000, "full_flip": 0b1111}[name]
    assert torch.equal((result[mask] ^ codes[mask]) & 0b1111, torch.full((6,), bits).int())
    assert int(result.min()) >= low
    assert int(result.max()) <= low + 15


@pytest.mark.parametrize("name", FLIPS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_inject_twice_gives_the_codes_back(name: str, dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128).to(dtype)
    mask = torch.ones(256, dtype=torch.bool)
    strategy, device = get_strategy(name), codes.device
    once = strategy.inject(codes, mask, 8, True, device)
    assert once.dtype == dtype
    assert bool((once != codes).all())
    assert torch.equal(strategy.inject(once, mask, 8, True, device), codes)


def test_inject_of_unsigned_bytes() -> None:
    codes = torch.arange(256).to(torch.uint8)
    mask = torch.ones(256, dtype=torch.bool)
    result = get_strategy("full_flip").inject(codes, mask, 8, False, codes.device)
    assert torch.equal(result, 255 - codes)


@pytest.mark.parametrize("signed", [True, False])
def test_inject_random_stays_in_range_and_reaches_every_code(signed: bool) -> None:
    codes = torch.zeros(4000, dtype=torch.int64)
    mask = torch.ones(4000, dtype=torch.bool)
    result = get_strategy("random").inject(codes, mask, 3, signed, codes.device)
    assert result.unique().tolist() == (list(range(-4, 4)) if signed else list(range(8)))


def test_inject_random_depends_on_its_seed_only() -> None:
    codes = torch.arange(64) % 16
    mask = torch.ones(64, dtype=torch.bool)
    state = torch.get_rng_state()
    strategy = get_strategy("random")
    first = strategy.inject(codes, mask, 4, False, codes.device, seed=1)
    assert torch.equal(first, strategy.inject(codes, mask, 4, False, codes.device, seed=1))
    assert not torch.equal(first, strategy.inject(codes, mask, 4, False, codes.device, seed=2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", NAMES)
def test_inject_with_no_hit_or_no_element(name: str) -> None:
    codes = torch.arange(4)
    none = torch.zeros(4, dtype=torch.bool)
    strategy = get_strategy(name)
    assert torch.equal(strategy.inject(codes, none, 4, False, codes.device), codes)
    assert strategy.inject(codes[:0], none[:0], 4, False, codes.device).shape == (0,)


@pytest.mark.parametrize("name", [*NAMES, *BIT_NAMES])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
def test_inject_gives_in_parts_what_it_gives_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, share: float
) -> None:
    codes = (torch.arange(600) % 16 - 8).to(torch.int8).view(20, 30).t()
    mask = (torch.rand(600, generator=torch.Generator().manual_seed(1)) < share).view(30, 20)
    strategy = get_strategy(name)
    at_once = strategy.inject(codes, mask, 4, True, seed=5)
    monkeypatch.setattr("fxfault.faults.fault_model._PART", 7)
    assert torch.equal(strategy.inject(codes, mask, 4, True, seed=5), at_once)
    # As the specification has it: the codes of the mask, one after the other.
    elements = torch.arange(int(mask.sum()))
    expected = codes.clone()
    expected[mask] = strategy.corrupt(
        codes[mask].long(),
        Word(4, signed=True),
        lambda stream: uniform_int63(stream_key(5, name, stream), elements),
    ).to(torch.int8)
    assert torch.equal(at_once, expected)
    assert not torch.equal(at_once, codes)


def test_inject_refuses_a_mask_of_another_shape() -> None:
    with pytest.raises(ConfigError, match=r"mask: got shape \(2,\) for codes of shape \(4,\)"):
        get_strategy("lsb_flip").inject(torch.arange(4), torch.ones(2, dtype=torch.bool), 4, False)


RULES: dict[str, Callable[[torch.Tensor], Any]] = {
    r"returned shape \(1,\) for codes of shape \(\d+,\)": lambda codes: codes[:1],
    "returned float32 codes; `corrupt` must return int64": lambda codes: codes.float() + 0.3,
    r"returned the code 10\d+, which a word of 4 bits cannot hold; allowed: 0 to 15": (
        lambda codes: codes + 10**6
    ),
    "returned a list": lambda codes: codes.tolist(),
    "changed the codes that it was given": lambda codes: codes.bitwise_xor_(1),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_a_fault_model_breaks_is_named_at_the_first_strike(rule: str) -> None:
    class Mine(FaultModel):
        name = "mine"

        def corrupt(self, codes: torch.Tensor, word: Word, draw: Any) -> Any:
            return RULES[rule](codes)

    config = {"enabled": True, "apply_during": "eval", "seed": 1, "probability": 50.0}
    net = nn.Sequential(QuantReLU(bit_width=4)).eval()
    faulty = fxfault.transform(net, {**config, "injection_type": Mine()})
    with pytest.raises(SiteError, match=f"site 0: fault model 'mine' .*Mine.* {rule}"):
        faulty(torch.rand(4, 64))


def test_a_fault_model_that_keeps_the_rules_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(FaultModel):
        name = "mine"

        def corrupt(self, codes: torch.Tensor, word: Word, draw: Any) -> torch.Tensor:
            return word.from_pattern(word.to_pattern(codes) ^ 1)

    looked: list[Any] = []
    own = contracts._why_wrong
    monkeypatch.setattr(contracts, "_why_wrong", lambda *args: looked.append(args) or own(*args))
    config = {"enabled": True, "apply_during": "eval", "seed": 1, "probability": 50.0}
    net = nn.Sequential(QuantReLU(bit_width=4), QuantReLU(bit_width=4)).eval()
    faulty = fxfault.transform(net, {**config, "injection_type": Mine()})
    for _ in range(3):
        faulty(torch.rand(4, 64))
    assert len(looked) == 2  # Once at each site.
