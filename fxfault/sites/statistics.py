"""Counts of hits at each site, and how far they moved the activations.

All figures are about integer codes; those of float words are about the numbers that the words
stand for. Sums stay on the device of the activations until they are read, so that a forward never
waits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxfault.errors import FxFaultError
from fxfault.files.access import write_atomically
from fxfault.messages import counted, html_table

_SUMS = ("injected", "rmse", "rmse_forwards", "cosine", "nonfinite")
_ENTRY = (
    "layer_id name total_activations injected_count injection_rate avg_rmse avg_cosine_similarity "
    "sample_count rmse_count"
).split()


@dataclass
class LayerStatistics:
    """The statistics of one site.

    Attributes:
        layer_id: index of the site.
        name: name of the site; empty if unknown.
        total_activations: number of elements in all armed forwards.
        sample_count: number of armed forwards.
    """

    layer_id: int
    name: str = ""
    total_activations: int = 0
    sample_count: int = 0
    _sums: Tensor = field(
        default_factory=lambda: torch.zeros(len(_SUMS), dtype=torch.float64), repr=False
    )

    def _sum(self, name: str) -> float:
        return float(self._sums[_SUMS.index(name)])

    @property
    def injected_count(self) -> int:
        """The number of hit elements, even if a hit did not change the code."""
        return round(self._sum("injected"))

    @property
    def injection_rate(self) -> float:
        """Hit elements in percent of the elements of armed forwards; 0 without any."""
        return _rate(self.injected_count, self.total_activations)

    @property
    def nonfinite_count(self) -> int:
        """The number of infinities and NaN that faults of float words made."""
        return round(self._sum("nonfinite"))

    @property
    def rmse_count(self) -> int:
        """The number of forwards with at least one hit."""
        return round(self._sum("rmse_forwards"))

    @property
    def avg_rmse(self) -> float:
        """Root mean square change of the hit codes, averaged over forwards with hits; else 0."""
        return self._sum("rmse") / self.rmse_count if self.rmse_count else 0.0

    @property
    def avg_cosine_similarity(self) -> float:
        """Cosine between clean and faulty codes, averaged over armed forwards.

        NaN if there are none, or if it was not measured.
        """
        return self._sum("cosine") / self.sample_count if self.sample_count else math.nan

    def add(
        self,
        elements: int,
        injected: Tensor,
        rmse: Tensor,
        cosine: Tensor,
        nonfinite: Tensor | None = None,
    ) -> None:
        """Add one armed forward; the tensors are float64 scalars on one device."""
        arisen = torch.zeros_like(rmse) if nonfinite is None else nonfinite
        row = torch.stack([injected, rmse, (injected > 0).double(), cosine, arisen])
        self._sums = self._sums.to(row.device) + row
        self.total_activations += elements
        self.sample_count += 1

    def merge(self, other: LayerStatistics) -> None:
        """Add another record of the same site."""
        self._sums = self._sums.cpu() + other._sums.cpu()
        self.total_activations += other.total_activations
        self.sample_count += other.sample_count
        self.name = self.name or other.name

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON entry of the specification, plus the name and `rmse_count`.

        `nonfinite_count` is there only if it is not 0.
        """
        entry = {key: getattr(self, key) for key in _ENTRY}
        if self.nonfinite_count:
            entry["nonfinite_count"] = self.nonfinite_count
        if math.isnan(self.avg_cosine_similarity):
            entry["avg_cosine_similarity"] = None
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> LayerStatistics:
        """The inverse of `to_dict`."""
        cosine = entry["avg_cosine_similarity"]
        counts = ("layer_id", "total_activations", "injected_count", "sample_count", "rmse_count")
        # Files that only follow the specification have no `rmse_count` and no names.
        absent = {"rmse_count": entry["sample_count"], "name": "", "nonfinite_count": 0}
        entry = {**absent, **entry}
        for key in counts:
            if not isinstance(entry[key], int):
                raise TypeError(f"{key} is {entry[key]!r}, not a whole number")
        unmeasured = math.nan if entry["sample_count"] else 0.0
        sums = [
            entry["injected_count"],
            entry["avg_rmse"] * entry["rmse_count"],
            entry["rmse_count"],
            unmeasured if cosine is None else cosine * entry["sample_count"],
            entry["nonfinite_count"],
        ]
        return cls(
            layer_id=entry["layer_id"],
            name=entry["name"],
            total_activations=entry["total_activations"],
            sample_count=entry["sample_count"],
            _sums=torch.tensor(sums, dtype=torch.float64),
        )


class FaultStatistics:
    """Statistics of all sites of a model.

    >>> statistics = FaultStatistics(num_layers=1)
    >>> clean, faulty = torch.tensor([3, 4]), torch.tensor([3, -4])
    >>> statistics.record(clean, faulty, mask=torch.tensor([False, True]), layer_id=0)
    >>> layer = statistics.layer_stats[0]
    >>> layer.injection_rate, layer.avg_rmse, round(layer.avg_cosine_similarity, 2)
    (50.0, 8.0, -0.28)

    Attributes:
        layer_stats: the statistics of each site, by index.
        cosine: whether to measure cosine similarity.
    """

    def __init__(
        self, num_layers: int, names: tuple[str, ...] = (), *, cosine: bool = True
    ) -> None:
        """Make empty statistics.

        Args:
            num_layers: number of sites.
            names: names of the sites, if known.
            cosine: whether to measure cosine similarity. It is the only figure that needs whole
                activations; the others only need the hit elements.
        """
        self.cosine = cosine
        padded = (*names, *[""] * (num_layers - len(names)))
        self.layer_stats = {i: LayerStatistics(i, padded[i]) for i in range(num_layers)}

    def record(self, clean_int: Tensor, faulty_int: Tensor, mask: Tensor, layer_id: int) -> None:
        """Record one forward of a site from whole tensors.

        Args:
            clean_int: codes before the faults, any shape.
            faulty_int: codes after the faults, same shape.
            mask: bool, same shape; true for hit elements.
            layer_id: index of the site.

        Raises:
            FxFaultError: no site has this index.
        """
        clean, faulty = clean_int.double(), faulty_int.double()
        hit = mask.double()
        self.record_sums(
            layer_id,
            elements=clean_int.numel(),
            injected=hit.sum(),
            squared_change=((faulty - clean).square() * hit).sum(),
            squares=(clean.square().sum(), faulty.square().sum(), (clean * faulty).sum()),
        )

    def record_sums(
        self,
        layer_id: int,
        *,
        elements: int,
        injected: Tensor,
        squared_change: Tensor,
        squares: tuple[Tensor, Tensor, Tensor] | None,
        nonfinite: Tensor | None = None,
    ) -> None:
        """Record one forward of a site from its sums (float64 scalars).

        Args:
            layer_id: index of the site.
            elements: number of elements.
            injected: number of hits.
            squared_change: sum of (faulty - clean)² over the hits.
            squares: sums of clean², faulty² and clean · faulty over all elements; None if cosine
                similarity is not measured.
            nonfinite: number of infinities and NaN that arose; None for integer words.
        """
        if layer_id not in self.layer_stats:
            raise FxFaultError(
                f"statistics: no layer {layer_id}; they were made for {len(self.layer_stats)} "
                f"layers (0 to {len(self.layer_stats) - 1})"
            )
        rmse = (squared_change / injected.clamp(min=1)).sqrt()
        cosine = torch.full_like(rmse, math.nan) if squares is None else _cosine(*squares)
        self.layer_stats[layer_id].add(elements, injected, rmse, cosine, nonfinite)

    def reset(self) -> None:
        """Delete everything that was recorded."""
        for index, layer in self.layer_stats.items():
            self.layer_stats[index] = LayerStatistics(index, layer.name)

    def merge(self, other: FaultStatistics) -> FaultStatistics:
        """Add the statistics of another worker; return self.

        Raises:
            FxFaultError: the two are about different sites.
        """
        if self.layer_stats.keys() != other.layer_stats.keys():
            raise FxFaultError(
                f"statistics of {len(other.layer_stats)} layers cannot be added to those of "
                f"{len(self.layer_stats)} layers; merge statistics of one model"
            )
        for index, layer in self.layer_stats.items():
            layer.merge(other.layer_stats[index])
        return self

    @property
    def total_injections(self) -> int:
        """The number of hit elements at all sites."""
        return sum(layer.injected_count for layer in self.layer_stats.values())

    @property
    def total_activations(self) -> int:
        """The number of elements in all armed forwards of all sites."""
        return sum(layer.total_activations for layer in self.layer_stats.values())

    @property
    def overall_injection_rate(self) -> float:
        """Hit elements in percent of the elements of armed forwards; 0 without any."""
        return _rate(self.total_injections, self.total_activations)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the specification."""
        return {
            "num_layers": len(self.layer_stats),
            "total_injections": self.total_injections,
            "total_activations": self.total_activations,
            "overall_injection_rate": self.overall_injection_rate,
            "layers": {str(i): layer.to_dict() for i, layer in self.layer_stats.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FaultStatistics:
        """The inverse of `to_dict`.

        Raises:
            FxFaultError: the mapping has another form.
        """
        try:
            layers = [LayerStatistics.from_dict(entry) for entry in content["layers"].values()]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FxFaultError(
                f"not fault statistics ({type(error).__name__}: {error}); expected what "
                "`save_to_file` writes"
            ) from error
        statistics = cls(0)
        statistics.layer_stats = {layer.layer_id: layer for layer in layers}
        return statistics

    def save_to_file(self, path: str | Path) -> None:
        """Write the JSON form; an existing file is replaced atomically.

        Raises:
            FxFaultError: the file cannot be written.
        """
        try:
            write_atomically(path, json.dumps(self.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise FxFaultError(f"{path}: cannot write fault statistics: {error}") from error

    @classmethod
    def load_from_file(cls, path: str | Path) -> FaultStatistics:
        """Read what `save_to_file` wrote.

        Raises:
            FxFaultError: the file is missing or has another form.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, FxFaultError) as error:
            raise FxFaultError(f"{path}: cannot read fault statistics: {error}") from error

    def report(self) -> str:
        """Return the table of the specification, with a last column for names if known."""
        named = any(layer.name for layer in self.layer_stats.values())
        wide, thin = "=" * 90, "-" * 90
        head = (
            f"{'Layer':<8} {'Injected':<12} {'Total':<14} {'Rate (%)':<12} {'RMSE':<12} "
            f"{'Cos Sim (%)':<12}" + ("Site" if named else "")
        )
        rows = [self._row(layer) for layer in self.layer_stats.values()]
        total = (
            f"{'TOTAL':<8} {self.total_injections:<12} {self.total_activations:<14} "
            f"{_percent(self.overall_injection_rate):<12}"
        )
        lines = [wide, "FAULT INJECTION STATISTICS", wide, head, thin, *rows, thin, total, wide]
        return "\n".join(line.rstrip() for line in lines)

    @staticmethod
    def _row(layer: LayerStatistics) -> str:
        return (
            f"{layer.layer_id:<8} {layer.injected_count:<12} {layer.total_activations:<14} "
            f"{_percent(layer.injection_rate):<12} {layer.avg_rmse:<12.4f} "
            f"{_cosine_text(layer):<12}{layer.name}"
        )

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        hits = f"{self.total_injections:,} of {self.total_activations:,} elements hit"
        return f"FaultStatistics({counted(len(self.layer_stats), 'site')}, {hits})"

    def _repr_html_(self) -> str:
        """A table, for a notebook."""
        head = ["Layer", "Site", "Injected", "Total", "Rate (%)", "RMSE", "Cos Sim (%)"]
        rows = [
            [
                *(str(layer.layer_id), layer.name),
                *(f"{layer.injected_count:,}", f"{layer.total_activations:,}"),
                *(_percent(layer.injection_rate), f"{layer.avg_rmse:.4f}", _cosine_text(layer)),
            ]
            for layer in self.layer_stats.values()
        ]
        rate = _percent(self.overall_injection_rate)
        total = f"{self.total_injections:,} of {self.total_activations:,} elements hit ({rate} %)"
        return html_table(head, rows, f"Fault injection statistics: {total}")

    def print_report(self) -> None:
        """Print `report()`, as the specification asks."""
        print(self.report())


def _cosine(clean_square: Tensor, faulty_square: Tensor, product: Tensor) -> Tensor:
    """Cosine of two vectors from their sums; 1 if both are 0, and 0 if only one is."""
    lengths = (clean_square * faulty_square).sqrt()
    both_zero = (clean_square == 0) & (faulty_square == 0)
    return torch.where(lengths > 0, product / lengths, both_zero.double())


def _cosine_text(layer: LayerStatistics) -> str:
    cosine = 100 * layer.avg_cosine_similarity
    return "-" if math.isnan(cosine) else f"{cosine:.4f}"


def _rate(hits: int, elements: int) -> float:
    return 100.0 * hits / elements if elements else 0.0


def _percent(rate: float) -> str:
    """Four decimals, as in the specification, unless these would hide a low rate."""
    return f"{rate:.4f}" if rate == 0 or rate >= 0.01 else f"{rate:.4g}"
