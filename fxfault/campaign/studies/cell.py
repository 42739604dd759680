"""A cell of a study: the faults, the sites and the network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxfault.campaign.studies.axes import Faults

# Made once, as a study may have half a million cells.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Cell:
    """One combination of the axes: which faults strike which sites of which network.

    >>> cell = Cell.of(injection_type="msb_flip", probability=1, layers=["head.act"])
    >>> cell.key == Cell.from_key(cell.key).key
    True
    >>> cell.key
    '{"bit":null,"checkpoint":null,"injection_type":"msb_flip","layers":["head.act"],\
"probability":1.0}'

    Attributes:
        key: the settings as canonical JSON; two cells are equal if their keys are.
        settings: the settings by name: `injection_type`, `probability` (in percent) or
            `num_faults` (in each sample; in each trial of a memory of weights), `bit` (None if the
            fault model takes none), `memory` (only if it is not `activations`), `layers` (names of
            sites; None for all of the memory), `checkpoint`. If several faults strike together,
            only `faults` (a mapping of their name to their entries) and `checkpoint`.
    """

    key: str
    settings: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def of(
        cls,
        *,
        injection_type: str | None = None,
        probability: float | None = None,
        num_faults: int | None = None,
        bit: int | str | None = None,
        memory: str | Iterable[str] = "activations",
        layers: Iterable[str] | None = None,
        faults: Faults | None = None,
        checkpoint: str | None = None,
    ) -> Cell:
        """Make a cell from its settings."""
        settings: dict[str, Any] = {"faults": faults}
        if faults is None:
            # 1 and 1.0 are one cell.
            rate = {"probability": None if probability is None else float(probability)}
            settings = {
                "injection_type": injection_type,
                **(rate if num_faults is None else {"num_faults": num_faults}),
                "bit": bit,
                **_beyond_activations(memory),
                "layers": None if layers is None else list(layers),
            }
        settings["checkpoint"] = checkpoint
        return cls(_CANONICAL.encode(settings), settings)

    @classmethod
    def from_key(cls, key: str) -> Cell:
        """Make a cell from its key in a store."""
        return cls.of(**json.loads(key))

    @property
    def injection_type(self) -> str | None:
        """Name of the fault model; None if several faults strike."""
        return self.settings.get("injection_type")

    @property
    def probability(self) -> float | None:
        """Probability of a hit, in percent; None if the rate is set otherwise."""
        return self.settings.get("probability")

    @property
    def num_faults(self) -> int | None:
        """Number of hits in each sample, or for weights in each trial; None without a number."""
        return self.settings.get("num_faults")

    @property
    def bit(self) -> int | str | None:
        """The bit that is struck; None if the fault model takes none."""
        return self.settings.get("bit")

    @property
    def memory(self) -> str | tuple[str, ...]:
        """What is struck: `activations`, `weights`, `biases`, `parameters`, or several."""
        memory = self.settings.get("memory", "activations")
        return memory if isinstance(memory, str) else tuple(memory)

    @property
    def memories(self) -> tuple[str, ...]:
        """All that is struck, each once, also by several faults that strike together.

        >>> Cell.of(injection_type="random", probability=1.0, memory=["weights"]).memories
        ('weights',)
        """
        given = [entry.get("memory", "activations") for entry in self.entries] or [self.memory]
        kinds = [[kind] if isinstance(kind, str) else kind for kind in given]
        return tuple(dict.fromkeys(kind for several in kinds for kind in several))

    @property
    def layers(self) -> tuple[str, ...] | None:
        """Names of the struck sites; None for all of them, or those of each fault."""
        layers = self.settings.get("layers")
        return None if layers is None else tuple(layers)

    @property
    def single_site(self) -> str | None:
        """Name of the site that is struck alone; None if several sites are struck."""
        return self.layers[0] if self.layers is not None and len(self.layers) == 1 else None

    @property
    def checkpoint(self) -> str | None:
        """The weights."""
        return self.settings.get("checkpoint")

    @property
    def entries(self) -> Sequence[Mapping[str, Any]]:
        """The faults that strike together, as in `fault_injection.faults`; else empty."""
        return [entry for faults in self.settings.get("faults", {}).values() for entry in faults]

    @property
    def fault(self) -> str:
        """Short text for the fault: the fault model with its bit, or the name of several faults.

        >>> Cell.of(injection_type="bit_flip", probability=1.0, bit=3).fault
        'bit_flip 3'
        >>> Cell.of(faults={"both": [{"injection_type": "random", "probability": 1.0}]}).fault
        'both'
        """
        if "faults" in self.settings:
            return next(iter(self.settings["faults"]))
        return f"{self.injection_type}" if self.bit is None else f"{self.injection_type} {self.bit}"

    @property
    def place(self) -> str:
        """Short text for the struck sites."""
        if "faults" in self.settings:
            layers = [_several(entry.get("layers")) for entry in self.entries]
            named = dict.fromkeys(str(item) for items in layers if items for item in items)
            if all(layers):
                return " ".join(named)
        elif self.layers is not None:
            return " ".join(self.layers)
        kinds = self.memories
        return "all" if kinds == ("activations",) else " ".join(["all", *kinds])

    @property
    def rate(self) -> float | None:
        """The probability or the number of faults; None if several faults have their own."""
        return self.probability if self.num_faults is None else float(self.num_faults)

    @property
    def rate_text(self) -> str:
        """Short text for the rate.

        >>> Cell.of(injection_type="random", probability=0.5).rate_text
        '0.5%'
        >>> Cell.of(injection_type="random", num_faults=2).rate_text
        'k = 2'
        """
        if self.rate is None:
            return "-"
        return f"{self.rate:g}%" if self.num_faults is None else f"k = {self.num_faults}"

    @property
    def columns(self) -> Mapping[str, Any]:
        """The settings as columns of a table; faults that strike together by their name."""
        named = {"faults": self.fault} if "faults" in self.settings else {}
        return {**self.settings, **named}


def _beyond_activations(memory: str | Iterable[str]) -> dict[str, Any]:
    """The setting `memory`; empty for activations, whose cells are older than the setting."""
    plain = memory if isinstance(memory, str) else list(memory)
    return {} if plain in ("activations", ["activations"]) else {"memory": plain}


def _several(layers: Any) -> Sequence[Any]:
    return layers if isinstance(layers, (list, tuple)) else [] if layers is None else [layers]


def words_of(key: str) -> str:
    """Short text for the cell with a key; a key that is not a cell's is returned as it is."""
    try:
        cell = Cell.from_key(key)
        return f"{cell.place} {cell.fault} {cell.rate_text}"
    except (LookupError, TypeError, ValueError):
        return key
