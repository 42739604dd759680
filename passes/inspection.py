"""What was done to a model: its sites, its containers, and its code before and after.

>>> import fxfault
>>> from brevitas.nn import QuantReLU
>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(4, 4), QuantReLU(bit_width=4)).eval()
>>> faulty = fxfault.transform(
...     model, {"enabled": True, "probability": 5.0, "apply_during": "eval", "seed": 7}
... )
>>> probe(faulty, torch.zeros(1, 4))
>>> print(inspect(faulty))
Sequential: 1 site, 1 armed in eval mode (seed 7)
<BLANKLINE>
  #  site  module  type       bits  signed   scale  words  % bits  fault model  prob %  state
  0  1     1       QuantReLU     4  no      0.0667      4   100.0  random            5  armed
<BLANKLINE>
Samples: not measured (model.faults.measure(inputs) does it)
Containers: 1 traced
Skipped targets: none
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from fxfault.faults.fault_models import label_of
from fxfault.messages import aligned, counted, html_table
from fxfault.passes.tracing.containers import Container, containers_of
from fxfault.quantisers.inner_quantisers import quantisers_inside
from fxfault.quantisers.quant_tensors import learned_bit_width, settled_scale
from fxfault.quantisers.stored_words import peeked_weight
from fxfault.sites.fault_sites import faults_of
from fxfault.sites.measuring import run_without_faults
from fxfault.sites.site import FaultSite

UNMEASURED = "not measured"


@dataclass(frozen=True)
class Scale:
    """The scales of a quantiser: the smallest, the largest, their number, and what has one.

    >>> str(Scale(0.03125, 0.03125, 1)), str(Scale(0.01, 0.2, 64))
    ('0.0312', 'per channel 0.01..0.2 (64)')
    """

    low: float
    high: float
    count: int
    each: str = "channel"

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.low:.3g}"
        return f"per {self.each} {self.low:.3g}..{self.high:.3g} ({self.count})"


@dataclass(frozen=True)
class SiteRow:
    """The state of one site.

    Attributes:
        index: place in the order of execution.
        name: name of the site.
        memory: what is struck: `activations`, `weights`, `biases` or `parameters`.
        module_path: path of its layer.
        module_type: class name of that layer.
        bit_width: bits of the word; None if the width is learned and cannot be read.
        bit_width_learned: whether the width is learned, and so may change.
        signed: whether the codes are signed; None if unknown before the first forward.
        scale: scale of the quantiser; None if unknown before the first forward.
        elements: number of words: of one sample, or of the weight or bias; None before the first
            armed forward.
        share: share of these bits among those of all sites, in percent; None before the first
            armed forward.
        fault_model: the fault model; also how often it strikes, if there are several faults, or
            if faults are counted or strike single bits.
        probability: probability of a hit, in percent; None if `fault_model` has the rate.
        why_unarmed: why no fault strikes here in the model's present mode; None if it is armed.
        samples: how the samples of a batch lie in the activation: `consecutive`, `every N-th row
            (outer=2)`, `belong to the batch: ...`, `not measured`; see `FaultSites.measure`. Empty
            for a weight or bias.
    """

    index: int
    name: str
    memory: str
    module_path: str
    module_type: str
    bit_width: int | None
    bit_width_learned: bool
    signed: bool | None
    scale: Scale | None
    elements: int | None
    share: float | None
    fault_model: str
    probability: float | None
    why_unarmed: str | None
    samples: str = UNMEASURED

    @property
    def armed(self) -> bool:
        """Whether faults strike here in the model's present mode."""
        return self.why_unarmed is None


@dataclass(frozen=True)
class SkippedTarget:
    """A target that faults cannot strike: path and class name of the layer, and the reason."""

    path: str
    type: str
    reason: str


@dataclass(frozen=True, repr=False)
class Inspection:
    """The state of a transformed model; printing it gives tables.

    Attributes:
        model: class name of the model.
        training: whether the model was in training mode.
        seed: seed of the faults.
        sites: the fault sites, in the order of execution.
        containers: how each module that holds a target was handled.
        skipped: targets that faults cannot strike.
        checked: the findings of `fxfault.check`; empty if the model was not checked.
    """

    model: str
    training: bool
    seed: int
    sites: tuple[SiteRow, ...]
    containers: tuple[Container, ...]
    skipped: tuple[SkippedTarget, ...]
    checked: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; a scale that is not finite is null."""
        plain = asdict(self)
        for site in plain["sites"]:
            site["armed"] = site["why_unarmed"] is None
            scale = site["scale"] or {}
            scale.update(
                (key, None) for key in ("low", "high") if not math.isfinite(scale.get(key, 0))
            )
        return {**plain, **{key: list(plain[key]) for key in ("sites", "containers", "skipped")}}

    def __str__(self) -> str:
        table = _indented([_SITE_HEAD, *map(_site_cells, self.sites)], right=_SITE_NUMBERS)
        skipped = [(target.path, target.type, target.reason) for target in self.skipped]
        lines = [self.headline, "", *table, "", *self._sample_lines(), *self._container_lines()]
        lines += [f"Skipped targets: {len(skipped) or 'none'}", *_indented(skipped)]
        return "\n".join([*lines, f"Checked: {self.checked}"] if self.checked else lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The sites as a table, for a notebook."""
        return html_table(_SITE_HEAD, list(map(_site_cells, self.sites)), self.headline)

    @property
    def headline(self) -> str:
        """The class of the model, and the numbers of its sites and armed sites."""
        armed = sum(site.armed for site in self.sites)
        count = counted(len(self.sites), "site")
        mode = "train" if self.training else "eval"
        return f"{self.model}: {count}, {armed} armed in {mode} mode (seed {self.seed})"

    def _sample_lines(self) -> list[str]:
        """How samples lie; sites whose samples are consecutive have no line of their own."""
        sites = [site for site in self.sites if site.memory == "activations"]
        texts = [site.samples for site in sites]
        if not texts:
            return ["Samples: have no faults of their own, as none of their values is a site"]
        if all(text == UNMEASURED for text in texts):
            return [f"Samples: {UNMEASURED} (model.faults.measure(inputs) does it)"]
        rows = [(site.name, site.samples) for site in sites if site.samples != "consecutive"]
        same = len(texts) - len(rows)
        if not rows:
            return [f"Samples: consecutive at {'the site' if same == 1 else f'all {same} sites'}"]
        return [f"Samples: consecutive at {same or 'no'} of {len(texts)} sites", *_indented(rows)]

    def _container_lines(self) -> list[str]:
        words = {
            "traced": "traced",
            "own graph": "with own graph",
            "kept": "kept with own forward",
        }
        handlings = [container.handling for container in self.containers]
        counts = [f"{handlings.count(h)} {text}" for h, text in words.items() if h in handlings]
        rows = [
            (c.path or "(model)", c.type, c.handling, c.reason)
            for c in self.containers
            if c.handling != "traced" or c.reason
        ]
        return [f"Containers: {', '.join(counts) or 'none'}", *_indented(rows)]


# -- looking ----------------------------------------------------------------------------


def inspect(model: nn.Module) -> Inspection:
    """Show how a model was transformed, and the state of its sites.

    Nothing is run and nothing is changed. Elements and measured scales are unknown before the
    first armed forward; `probe` runs one.

    Args:
        model: the result of `fxfault.transform`.

    Raises:
        SiteError: the model was not transformed.
    """
    sites = faults_of(model)
    bits = sum(map(_bits_of, sites))
    return Inspection(
        model=type(model).__name__,
        training=sites.clock.training,
        seed=sites.seed,
        sites=tuple(
            _look_at(site, _layer(model, site.module_path), sites.why_unmeasured, bits)
            for site in sites
        ),
        containers=tuple(_as_it_runs(model, container) for container in containers_of(model)),
        skipped=tuple(
            SkippedTarget(path, type(_layer_of_target(model, path)).__name__, why)
            for path, why in sites.skipped.items()
        ),
        checked=sites.checked,
    )


def _as_it_runs(model: nn.Module, container: Container) -> Container:
    """A container; if its last call did not run its graph, with the reason for that."""
    why = _layer(model, container.path).__dict__.get("_ran_own_forward")
    if not why or container.handling == "kept":
        return container
    return dataclasses.replace(container, reason=f"its last call ran its own forward: {why}")


def _bits_of(site: FaultSite) -> float:
    """Bits of all words that faults may strike here; not a number before that is known."""
    if site.passes_on:
        return 0.0
    elements, bits = _elements_of(site), site.bit_width
    return math.nan if elements is None or bits is None else float(elements * bits)


def _elements_of(site: FaultSite) -> int | None:
    return site.elements if site.stored is None else site.stored.layout.elements


def _look_at(
    site: FaultSite, layer: nn.Module, why_unmeasured: str | None, all_bits: float
) -> SiteRow:
    units = "" if site.setting.hw_units is None else f" (hw_mask {site.setting.hw_units})"
    signed = site.seen.signed
    scales: tuple[Tensor | None, ...] = (settled_scale(layer, site.part), site.seen.scale)
    if site.quantiser.group == "scales":
        scales, signed = (), False
    elif site.memory == "weights":
        words = peeked_weight(layer)
        if words is not None:
            scales, signed = (words.scale,), bool(words.signed)
    if signed is None:
        signed = getattr(getattr(layer, site.part, None), "is_signed", None)
    samples = UNMEASURED if why_unmeasured is None else f"{UNMEASURED}: {why_unmeasured}"
    if site.stored is not None:
        samples = ""
    elif site.seen.arrangement is not None:
        samples = str(site.seen.arrangement)
    return SiteRow(
        index=site.index,
        name=site.name,
        memory=site.memory,
        module_path=site.module_path,
        module_type=site.module_type,
        bit_width=learned_bit_width(layer, site.part) if site.bit_width is None else site.bit_width,
        bit_width_learned=site.bit_width is None,
        signed=signed,
        scale=_summary("channel" if site.quantiser.group is None else "element", *scales),
        elements=_elements_of(site),
        share=None if math.isnan(all_bits) else 100 * _bits_of(site) / all_bits,
        fault_model=f"{_what_strikes(site)}{units}",
        probability=site.probability if _is_plain(site) else None,
        why_unarmed=site.why_unarmed,
        samples=samples,
    )


def _is_plain(site: FaultSite) -> bool:
    """Whether a site has one fault that strikes whole elements with a probability."""
    drawn = [f for f in site.faults if f.num_faults is None and f.given is None]
    plain = [f in drawn and f.rate_unit == "element" for f in site.faults]
    return plain == [True]


def _what_strikes(site: FaultSite) -> str:
    if _is_plain(site):
        return label_of(site.fault_model)
    return "; ".join(map(str, site.faults)) or "-"


def _layer_of_target(model: nn.Module, path: str) -> nn.Module:
    """The layer of a skipped target, which may be a weight, bias or quantiser of the layer."""
    last = path.rpartition(".")[2]
    ends = last in ("weight", "bias") or last in quantisers_inside(
        _layer(model, path.rpartition(".")[0])
    )
    return _layer(model, path.rpartition(".")[0] if ends else path)


def _layer(model: nn.Module, path: str) -> nn.Module:
    """The layer at a path; the path of a model that is itself a target is its class name."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return model


def _summary(each: str, *candidates: Tensor | None) -> Scale | None:
    for scale in candidates:
        if scale is not None:
            low, high = scale.min().item(), scale.max().item()
            return Scale(float(low), float(high), scale.numel(), each)
    return None


def probe(model: nn.Module, *inputs: Any, **named_inputs: Any) -> None:
    """Run a model once without any fault, so that every site knows its elements and scale.

    All sites are armed at 0 %, in eval mode and without gradients. Modes, settings, clock and
    statistics are restored afterwards.

    Args:
        model: the result of `fxfault.transform`.
        inputs: the inputs of the model; only their shapes and dtypes matter.
        named_inputs: inputs by keyword.

    Raises:
        SiteError: the model was not transformed.
    """
    run_without_faults(faults_of(model), inputs, named_inputs)


# -- tables -----------------------------------------------------------------------------

_SITE_HEAD = (
    *"# site module type bits signed scale words".split(),
    *("% bits", "fault model", "prob %", "state"),
)
_SITE_NUMBERS = (0, 4, 6, 7, 8, 10)


def _site_cells(site: SiteRow) -> tuple[str, ...]:
    width = "learned" if site.bit_width is None else str(site.bit_width)
    learned = site.bit_width_learned and site.bit_width is not None
    return (
        str(site.index),
        site.name,
        site.module_path,
        site.module_type,
        f"learned {width}" if learned else width,
        {None: "-", True: "yes", False: "no"}[site.signed],
        "-" if site.scale is None else str(site.scale),
        "-" if site.elements is None else str(site.elements),
        "-" if site.share is None else f"{site.share:.1f}",
        site.fault_model,
        "-" if site.probability is None else f"{site.probability:g}",
        site.why_unarmed or "armed",
    )


def _indented(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    return [f"  {line}" for line in aligned(rows, right)]
