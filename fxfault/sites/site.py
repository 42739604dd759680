"""One place that faults can strike, and what strikes there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fxfault.errors import ConfigError, SiteError
from fxfault.faults.fault_models import FaultModel, label_of
from fxfault.faults.layouts import Arrangement, Layout
from fxfault.quantisers.quant_tensors import only_observes
from fxfault.sites.edges import is_struck_before
from fxfault.sites.settings import Setting, SiteFault

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fxfault.quantisers.quant_tensors import Quantiser
    from fxfault.sites.clock import FaultClock
    from fxfault.sites.edges import Edges, Sources
    from fxfault.sites.fault_recorder import FaultRecorder
    from fxfault.sites.statistics import FaultStatistics

logger = logging.getLogger(__name__)

# The attribute of an activation layer with the quantiser that makes its output.
OUTPUT = "act_quant"

NOT_CODES = (
    "are not integer codes of the quantiser (NaN, or not quantised: check the checkpoint's "
    "scales and `quant_delay_steps`)"
)
ONLY_OBSERVED = (
    "were not quantised: the quantiser of its {} only observes (`observer_only` is true, as "
    "calibration_mode of Brevitas leaves quantisers that several layers share); set it to False in "
    "all parts of `{}`, or give each layer a quantiser of its own before calibrating"
)


TOO_LARGE = (
    "are not integer codes of the quantiser, or are too large to tell which: of a {}-bit word, "
    "float32 tells the codes up to 2**22"
)


def why_no_codes(site: FaultSite) -> str:
    """Why the values of a site are not codes, as the end of a message."""
    layer = None if site.output is None else site.output.layer[0]
    if site.is_in_layer:
        layer = site.clock.model.get_submodule(site.module_path)
    if isinstance(site.seen.word_bits, int) and site.seen.word_bits > 24:
        return TOO_LARGE.format(site.seen.word_bits)
    if only_observes(layer, site.part):
        return ONLY_OBSERVED.format(site.module_type, site.part)
    return NOT_CODES


class Extent(NamedTuple):
    """How much there is to hit at a site.

    Attributes:
        elements: elements of one sample.
        bits: bits of the word.
        calls: calls of the site in one forward.
    """

    elements: int
    bits: int
    calls: int


class Stored(NamedTuple):
    """The tensor of a site that is a memory: a quantised weight or bias.

    Its faults are those of a whole forward; the whole tensor is one sample.

    Attributes:
        kind: `weights`, `biases` or `parameters`.
        shape: shape of the tensor.
        channel_dim: the dimension of the output channels.
    """

    kind: str
    shape: tuple[int, ...]
    channel_dim: int = 0

    @property
    def layout(self) -> Layout:
        """The layout of the tensor: one sample."""
        return Layout(1, 1, self.shape)


@dataclass
class Observed:
    """What forwards showed of a site; attributes are None before the first armed forward.

    Attributes:
        signed: whether the word of the last armed forward was two's complement.
        scale: scale of the last armed forward, detached.
        elements: elements of one sample in the last armed forward.
        word_bits: bits of the word in the last armed forward; a tensor if only a device knows.
        sound: whether all forwards on a device were sound so far (bool tensor); see
            `FaultSites.check`.
        extent: how much there is to hit; None if not measured.
        arrangement: how the samples of a batch lie in the activation; None if not measured.
        layout: samples and elements of the activation in the last armed forward.
        batch: samples of that forward.
        calls: samples and elements of each armed call of that forward, by the call's number.
        shape: shape of the words of the last call, armed or not; known inside layers only.
    """

    signed: bool | None = None
    scale: Tensor | None = None
    elements: int | None = None
    word_bits: int | Tensor | None = None
    sound: Tensor | None = None
    extent: Extent | None = None
    arrangement: Arrangement | None = None
    layout: Layout | None = None
    batch: int | None = None
    calls: dict[int, Layout] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None


class Handover(Protocol):
    """The last step of an activation layer, which hands its word over to the graph's strike.

    Attributes:
        layer: a list with the layer.
        sites: sites of the layer's calls, by the place of the call.
        kept: the word that was handed over and not taken yet.
    """

    layer: list[Any]
    sites: dict[tuple[int | None, bool], list[FaultSite]]
    kept: Any

    @property
    def returns_quant_tensor(self) -> bool:
        """Whether the layer returns a QuantTensor, and not a plain value."""

    @property
    def strikes_itself(self) -> bool:
        """Whether the layer strikes its own output, because of its hooks."""

    def hand_over(self, output: Any) -> None:
        """Keep a word for the graph's strike."""

    def take(self, value: Any) -> Any:
        """Return what to strike for a value; None if the layer has struck it."""

    def take_compiled(self, value: Any) -> tuple[Any, bool]:
        """Return what to strike for a value, and whether the layer has struck it."""

    def follow(self, layer: Any = None) -> None:
        """Note the input of each word; see `fxfault.sites.edges`."""

    def take_given(self) -> Any:
        """Return the input of the word that was made last, and forget it."""

    def forget(self) -> None:
        """Forget what an interrupted forward left."""


@dataclass(eq=False)
class FaultSite:
    """One place in the network that faults can strike.

    Attributes:
        name: the path of the layer, with `@2` for its second call and so on; for a weight or
            bias, its name in `state_dict`; for another quantiser inside a layer, the path of that.
        index: place in the order of execution.
        module_path: path of the layer.
        module_type: class name of the layer.
        quantiser: constants of the quantiser.
        clock: the clock that the sites of a model share.
        gradient_mode: `ste` or `zero_faulty`.
        peers: all sites of the model, with this one.
        setting: what strikes here.
        stored: the tensor of a site that is a weight or bias; None for an activation.
        part: the attribute of the layer that has the quantiser.
        is_in_layer: whether a layer strikes the words where it asks for them: they are not its
            output, or it is groupwise.
        selected: whether the configuration selects the site.
        output: the last step of the layer; see `fxfault.passes.layer_outputs`.
        layer: the layer that makes the activation, if no other node of the graph uses it; else
            None. See `makes_private_tensor`.
        counts_calls: whether one forward of the model may reach the site more than once, because
            Python code calls the layer or its container is called again.
        statistics: the record of armed forwards, or None.
        recorder: the list of every hit, while one is made; else None.
        seen: what forwards showed.
        observer: while layouts are measured, gets each activation and returns the values that the
            forward continues with.
        caches: results that strikes reuse; they may be emptied at any time.
        edges: the words of the present forward; None if no quantiser inside a layer is a site.
        before: the sites that the words of each call have passed; see `fxfault.sites.edges`.
    """

    name: str
    index: int
    module_path: str
    module_type: str
    quantiser: Quantiser
    clock: FaultClock
    gradient_mode: str
    peers: Sequence[FaultSite]
    setting: Setting
    stored: Stored | None = None
    part: str = OUTPUT
    selected: bool = True
    output: Handover | None = None
    layer: nn.Module | None = None
    counts_calls: bool = False
    statistics: FaultStatistics | None = None
    recorder: FaultRecorder | None = None
    seen: Observed = field(default_factory=Observed)
    observer: Callable[[Any], Tensor] | None = None
    caches: dict[Any, Any] = field(default_factory=dict)
    edges: Edges | None = None
    before: dict[int, Sources] = field(default_factory=dict)
    is_in_layer: bool = field(init=False)
    _calls: tuple[tuple[int, bool], int] = ((0, False), 0)

    def __post_init__(self) -> None:
        self.is_in_layer = self.part != OUTPUT or self.quantiser.group is not None

    @property
    def bit_width(self) -> int | None:
        """The constant bit width; None if it is learned."""
        return self.quantiser.bit_width

    @property
    def memory(self) -> str:
        """What is struck: `activations`, `weights`, `biases` or `parameters`."""
        return "activations" if self.stored is None else self.stored.kind

    @property
    def is_inner(self) -> bool:
        """Whether a layer makes the words inside: they are no output and no weight or bias."""
        return self.is_in_layer and self.stored is None

    @property
    def faults(self) -> tuple[SiteFault, ...]:
        """The faults that strike here, in this order."""
        return self.setting.faults

    @property
    def probability(self) -> float:
        """The probability of a hit by the first fault in percent, for each element or bit."""
        return self.faults[0].probability if self.faults else 0.0

    @property
    def fault_model(self) -> FaultModel:
        """The model of the first fault.

        Raises:
            SiteError: nothing strikes here.
        """
        if not self.faults:
            raise SiteError(f"site {self.name}: no fault strikes here, so it has no fault model")
        return self.faults[0].model

    @property
    def signed(self) -> bool | None:
        """Whether the word of the last armed forward was two's complement; None before any."""
        return self.seen.signed

    @property
    def scale(self) -> Tensor | None:
        """The scale of the last armed forward, detached; None before any."""
        return self.seen.scale

    @property
    def elements(self) -> int | None:
        """Elements of one sample in the last armed forward; None before any."""
        return self.seen.elements

    @property
    def armed(self) -> bool:
        """Whether faults strike here in the current forward, even if only at 0 %."""
        # Like `why_unarmed`, but faster, because each strike asks.
        return (
            self.selected
            and bool(self.setting.faults)
            and self.clock.why_quiet is None
            and not (self.before and self.passes_on)
        )

    @property
    def why_unarmed(self) -> str | None:
        """Why the site is not armed; None if it is."""
        if not (self.selected and self.setting.faults):
            return "not selected"
        if self.clock.why_quiet is None and self.before and self.passes_on:
            names = [s.name for sources in self.before.values() for s in sources[0] if s.is_struck]
            return f"its words are struck at {names[0]}"
        return self.clock.why_quiet

    @property
    def passes_on(self) -> bool:
        """Whether all its words are struck before they reach it, and leave it as they are."""
        return bool(self.before) and all(is_struck_before(self, call) for call in self.before)

    @property
    def is_struck(self) -> bool:
        """Whether the configuration has faults for the site."""
        return self.selected and bool(self.setting.faults)

    @property
    def is_beside_floats(self) -> bool:
        """Whether the model has other sites whose words can be infinite or NaN."""
        return any(site.quantiser.word != "integer" for site in self.peers if site is not self)

    @property
    def follows_floats(self) -> bool:
        """Whether faults elsewhere may make its values infinite or NaN."""
        others = (site for site in self.peers if site is not self and site.is_struck)
        return any(site.quantiser.word != "integer" for site in others)

    @property
    def strikes(self) -> bool:
        """Whether any fault here hits anything at its rate."""
        return any(fault.strikes for fault in self.setting.faults)

    def layout_of(self, shape: tuple[int, ...], batch: int) -> Layout:
        """Return how the elements of this activation belong to samples.

        Without a measurement (`FaultSites.measure`) the shape decides; if that is a guess, the
        first strike warns.

        Args:
            shape: shape of the activation.
            batch: number of samples of the forward.
        """
        if self.stored is not None:
            return Layout(1, 1, shape)
        if self.seen.arrangement is not None:
            return self.seen.arrangement.over(shape, batch)
        if shape[:1] != (batch,) and not self.clock.warned and self.strikes:
            self.clock.warned = True
            logger.warning(
                "site %s: which of its rows belong to which sample was not measured; its "
                "activation of shape %s for a batch of %d is taken as its shape suggests, and "
                "faults may depend on the batch size; call model.faults.measure(inputs) first",
                *(self.name, shape, batch),
            )
        return Layout.of(shape, batch)

    def check_word(self, model: FaultModel, width: int | None) -> None:
        """Check that a word has the bits that a fault model strikes.

        Raises:
            SiteError: the word has too few bits.
        """
        fewest = getattr(model, "fewest_bits", 1)
        if width is not None and width < fewest:
            raise SiteError(
                f"site {self.name}: {label_of(model)} needs a word of at least {fewest} bits, its "
                f"word has {width}; choose other bits, or leave the site out by `layers`"
            )

    def set_probability(self, probability: float) -> None:
        """Set the probability of a hit, in percent.

        Raises:
            ConfigError: it is not a number from 0 to 100, or the site has no single probability.
        """
        counts = [f.num_faults for f in self.faults if f.num_faults is not None]
        if self.setting.listed or counts:
            key = "faults" if self.setting.listed else f"num_faults: {counts[0]}"
            raise ConfigError(
                f"probability of {self.name}: got {probability!r}, but `{key}` says how often "
                "faults strike; set another configuration by `model.faults.set_faults`"
            )
        valid = isinstance(probability, (int, float)) and not isinstance(probability, bool)
        if not valid or not 0 <= probability <= 100:
            raise ConfigError(
                f"probability of {self.name}: got {probability!r}, allowed: a number from 0 to 100"
            )
        self.setting = self.setting.with_probability(probability)

    def set_fault_model(self, fault_model: str | FaultModel) -> None:
        """Set the fault model, by name or by instance.

        A named model gets the `bit` or `burst_length` of the configuration.

        Raises:
            ConfigError: there is no such fault model, or several faults strike here.
        """
        if self.setting.listed:
            raise ConfigError(
                f"fault model of {self.name}: got {fault_model!r}, but `faults` has several; set "
                "another configuration by `model.faults.set_faults`"
            )
        self.setting = self.setting.with_fault_model(fault_model)

    def first_stream(self) -> int:
        """Return the key of the random numbers of the first call in a forward."""
        if self.stored is not None:
            return self.clock.stored_stream(self.name)
        return self.clock.stream(self.name)

    def stream(self, again: bool = False, extra: int = 0) -> int:
        """Return the key of the random numbers of this call of the site.

        A forward calls a site of the graph once. Python code may call a site again (time steps);
        each call has its own faults.

        Args:
            again: whether a backward repeats the call.
            extra: number of calls since the one that the graph makes.
        """
        if self.stored is not None:
            return self.clock.stored_stream(self.name)
        if not self.counts_calls and not self.is_in_layer:
            return self.clock.stream(f"{self.name}#{1 + extra}" if extra else self.name)
        now = (self.clock.forward, again)
        before, calls = self._calls
        calls = calls + 1 if before == now else 1
        self._calls = (now, calls)
        return self.clock.stream(self.name if calls == 1 else f"{self.name}#{calls}")

    def pass_over(self, calls: int) -> None:
        """Count the first calls of the present forward, which are not made.

        Args:
            calls: number of calls that the site would have had by now.
        """
        # A call whose words were struck before it has no number; see `moment_of`.
        made = sum(
            not (call in self.before and is_struck_before(self, call)) for call in range(calls)
        )
        self._calls = ((self.clock.forward, False), made)
        if self.edges is not None:
            self.edges.pass_over(self, calls)

    def __repr__(self) -> str:
        state = self.why_unarmed or "armed"
        faults = "; ".join(map(str, self.faults)).replace(" at ", " ") or "no fault"
        return f"FaultSite({self.index}, {self.name!r}, {faults}, {state})"
