"""Which words reach a quantiser that does not change them, so that they are struck once.

A word on its way from one layer to the next may pass two equal quantisers: the `act_quant` of a
`QuantReLU`, and the `input_quant` of the convolution behind it. Hardware stores it once. So a fault
strikes it once, at the first of these sites that is selected. The second quantiser leaves a word
as it is if scale, zero point, bit width, sign and range are equal and it rounds to the nearest;
that does not depend on the data.

A forward of the whole model notes each word that a site makes. A quantiser looks up where its input
comes from:

- A plain tensor is a word if it shares its memory, unwritten, with one (a view, `flatten`).
- A QuantTensor carries the tensor of its scale through operations that move words without changing
  them (pooling, `torch.cat`).

An activation layer passes on only words that a quantiser inside a layer has made: two activation
layers in a row both strike, as the specification says.

What a site found stays for forwards that start in the middle.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fxfault.errors import SiteError
from fxfault.quantisers.quant_tensors import IntQuantTensor, Quantiser

if TYPE_CHECKING:
    from fxfault.sites.site import FaultSite

Sources = tuple[tuple["FaultSite", ...], ...]
"""The sites that a word has passed. If two words look the same, there is an entry for each."""


class Word(NamedTuple):
    """A word that a site has made in the present forward.

    Attributes:
        sites: the sites that it has passed, the one that made it last.
        memory: its values.
        version: how often the memory was written to; None if torch does not count it.
        scale: the tensor of its scale.
        parameters: scale, zero point, bit width and sign, detached.
    """

    sites: tuple[FaultSite, ...]
    memory: StorageWeakRef
    version: int | None
    scale: weakref.ref[Tensor]
    parameters: tuple[Tensor, ...]


def is_struck_before(site: FaultSite, call: int) -> bool:
    """Whether the words of a call of a site are struck before they reach it.

    Args:
        site: the site.
        call: number of the call in a forward, from 0.

    Raises:
        SiteError: that cannot be told, or holds for some faults of the site only.
    """
    sources = site.before.get(call, ())
    if not sources or site.clock.measuring:
        return False
    found = {_strike_alike(sites, site) for sites in sources}
    if len(found) > 1:
        names = " or ".join(sites[-1].name for sites in sources)
        raise SiteError(
            f"site {site.name}: its words come from {names}, which have the same scale, and only "
            "one of them is struck; select all of them by `layers`, or none"
        )
    return found.pop()


def _strike_alike(sites: tuple[FaultSite, ...], site: FaultSite) -> bool:
    """Whether sites that a word has passed strike it with the faults that strike at another."""
    there = [one for one in sites if one.is_struck]
    if not site.strikes:
        return bool(there)
    wanted = {fault.number for fault in site.faults if fault.strikes}
    done = {fault.number for one in there for fault in one.faults if fault.strikes}
    if wanted & done and wanted - done:
        raise SiteError(
            f"site {site.name}: its words come from {there[0].name} as they are, and are struck "
            f"once, by the faults of that site; name {there[0].name} in the `layers` of all "
            "entries of `faults`"
        )
    return bool(wanted & done)


class Edges:
    """The words of the present forward of a model."""

    def __init__(self) -> None:
        self.words: list[Word] = []
        self.forward = -1
        self.is_whole = True
        self._calls: dict[FaultSite, int] = {}
        self._calls_of = -1

    def __deepcopy__(self, memo: dict[int, Any]) -> Edges:
        """Forget the words: they belong to a forward of the original."""
        return Edges()

    def begin(self, forward: int) -> None:
        """Note that a forward of the whole model starts, with this number of the clock."""
        self.words, self.forward = [], forward if self.is_whole else -1

    @contextmanager
    def unknown(self) -> Iterator[None]:
        """Run forwards within the block in parts, so that not all of their words are known.

        What the sites found in a whole forward stays.
        """
        self.is_whole = False
        try:
            yield
        finally:
            self.is_whole = True

    def pass_over(self, site: FaultSite, calls: int) -> None:
        """Count the first calls of a site in the present forward, which are not made."""
        if self._calls_of != site.clock.forward:
            self._calls, self._calls_of = {}, site.clock.forward
        self._calls[site] = calls - 1

    def call(self, site: FaultSite) -> int:
        """The number of this call of a site in the forward, from 0."""
        if self._calls_of != site.clock.forward:
            self._calls, self._calls_of = {}, site.clock.forward
        number = self._calls[site] = self._calls.get(site, -1) + 1
        return number

    def note(self, sites: tuple[FaultSite, ...], word: Any, value: Tensor) -> None:
        """Note a word of the present forward.

        Args:
            sites: the sites that it has passed, the one that made it last.
            word: an `IntQuantTensor` with its parameters; anything else is ignored.
            value: its values, after faults.
        """
        if self.forward == sites[-1].clock.forward and isinstance(word, IntQuantTensor):
            memory = StorageWeakRef(value.untyped_storage())
            scale = weakref.ref(word.scale)
            self.words.append(Word(sites, memory, _version(value), scale, _parameters(word)))

    def sources(self, site: FaultSite, given: Any, word: Any) -> Sources:
        """Where the input of a quantiser comes from, if the quantiser leaves its words as they are.

        Args:
            site: the site of the quantiser.
            given: the input: a tensor or a QuantTensor.
            word: the `IntQuantTensor` that the quantiser made of it.

        Returns:
            An entry for each way that the words may have come; empty if they are new here.
        """
        known = self.forward == site.clock.forward
        if not (known and site.quantiser.keeps_codes and isinstance(word, IntQuantTensor)):
            return ()
        parameters, is_word = _parameters(word), isinstance(given, IntQuantTensor)
        if is_word and not _equal(_parameters(given), parameters):
            return ()
        if site.quantiser.rectifies and (word.signed or bool((word.zero_point != 0).any())):
            return ()
        equal = [
            one
            for one in self.words
            if _same_range(one.sites[-1].quantiser, site.quantiser)
            and _equal(one.parameters, parameters)
        ]
        if not equal:
            return ()
        value = given.value if is_word else given
        if not isinstance(value, Tensor):
            return ()
        here = StorageWeakRef(value.untyped_storage())
        found = [one for one in self.words if one.memory == here][-1:]
        if found and found[0].version == _version(value):
            found = [one for one in equal if one is found[0]]
        else:
            found = _like(given, equal) if is_word else []
        return tuple(dict.fromkeys(one.sites for one in found))


def _like(given: Any, equal: list[Word]) -> list[Word]:
    """The words that a QuantTensor may have been made of, by an operation that moves words."""
    found = [one for one in equal if one.scale() is given.scale]
    if not found:
        return []
    # `torch.cat` keeps the scale of its first input. Its others have equal parameters; what a
    # quantiser has made of the words that were found is not among them.
    makers = {one.sites[-1] for one in found}
    return found + [one for one in equal if makers.isdisjoint(one.sites)]


def _version(value: Tensor) -> int | None:
    return None if value.is_inference() else value._version


def _parameters(word: Any) -> tuple[Tensor, ...]:
    return tuple(x.detach() for x in (word.scale, word.zero_point, word.bit_width, word.signed_t))


def _equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(
        a is b or ((a.shape == b.shape or a.numel() == b.numel() == 1) and bool((a == b).all()))
        for a, b in zip(first, second, strict=True)
    )


def _same_range(first: Quantiser, second: Quantiser) -> bool:
    return (first.narrow_range, first.binary) == (second.narrow_range, second.binary)
