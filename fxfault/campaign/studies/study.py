"""The study file: an experiment, the axes to cross, and the number of trials of each cell.

>>> study = Study.from_yaml("digits_study")
>>> study.stop.margin, study.stop.confidence
(1.0, 95.0)
>>> cells = study.cells(["stem.act", "head.act"], {"stem.act": 4, "head.act": 2})
>>> len(cells), cells[0].layers, cells[0].probability
(30, ('stem.act',), 1.0)
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from typing import Annotated, Any

from pydantic import Field

from fxfault.bundled.files import bundled_names
from fxfault.campaign.studies.axes import (
    AXES,
    Axes,
    bits_of,
    given_axes,
    names_in,
    places_of,
    takes_bit,
    with_base,
)
from fxfault.campaign.studies.cell import Cell
from fxfault.campaign.studies.labels import LABELS, Labels, labels_of
from fxfault.campaign.studies.sharing import samples_share_faults
from fxfault.campaign.studies.stop_rule import (
    MOST_TRIALS,
    StopRule,
    margin_problems,
    rule_to_dict,
)
from fxfault.config.fault_injection import SECTION, FaultInjectionConfig
from fxfault.config.schema import known_keys, parse_section, unknown_key
from fxfault.config.yaml_files import load_named
from fxfault.errors import InvalidConfigError
from fxfault.experiment.sections import ExperimentConfig
from fxfault.messages import got
from fxfault.models import model_names
from fxfault.sites.site_names import number_notes

MOST_CELLS = 200_000  # Of which each takes a kilobyte, and no study that ends has as many.


@dataclass(frozen=True, kw_only=True)
class _FixedLength:
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a campaign measures. Use `from_yaml` or `from_dict`, which check it.

    Attributes:
        experiment: data, network, weights, and the settings of faults that all cells share. Its
            `fault_injection` is armed for evaluation and has a seed.
        axes: the values to cross.
        trials: number of trials of each cell; None if a stop rule decides.
        stop: the stop rule, or None.
        labels: name, title and notes, which reports show.
    """

    experiment: ExperimentConfig
    axes: Axes
    trials: int | None
    stop: StopRule | None
    labels: Labels = field(default_factory=Labels)

    @classmethod
    def from_yaml(cls, path_or_bundled_name: str | os.PathLike[str]) -> Study:
        """Read a study file, or a study that comes with the package.

        Args:
            path_or_bundled_name: path of a file; if there is no such file, a bare name such as
                `digits_study` stands for the bundled study.

        Raises:
            InvalidConfigError: no such file, or all problems in it.
        """
        content, source = load_named("studies", os.fspath(path_or_bundled_name))
        return cls.from_dict(content, source)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str | None = None) -> Study:
        """Make a study from the content of its file, and check it.

        >>> Study.from_dict({"axes": {"probability": [1, 101]}, "trials": 0})
        Traceback (most recent call last):
        ...
        fxfault.errors.InvalidConfigError: 5 problems: axes.probability[1]: got 101 (int), \
allowed: a number from 0 to 100; trials: got 0 (int), allowed: an integer from 1 to 1000000000; \
dataset: missing, add for instance `dataset: {name: digits}`; \
model: missing, add for instance `model: {name: quant_digits}`; \
checkpoint.path: missing, name the weights here or in axes.checkpoint

        Args:
            content: sections of an experiment, `axes`, and `trials` or `stop`; perhaps `name`,
                `title` and `notes`. An integer as `seed` stands for `seed: {value: N}`; it is the
                seed of the faults unless there is a `fault_injection.seed`.
            source: name of the file in errors, if there is one.

        Raises:
            InvalidConfigError: all unknown keys and refused values.
        """
        if not isinstance(content, Mapping):
            kind = type(content).__name__
            raise InvalidConfigError([f"got a {kind}, expected a mapping of sections"], source)
        problems: list[str] = []
        own, sections = _split(content, problems)
        experiment = _experiment(sections, problems)
        given = given_axes(own.get("axes"), problems)
        trials, stop = _length(own, problems)
        labels = labels_of(own, problems)
        problems += _missing_sections(sections, given)
        if experiment is not None:
            problems += margin_problems(stop, experiment.metric is not None)
        if experiment is not None and not problems:
            axes = with_base(given, experiment, problems)
        if problems:
            raise InvalidConfigError(problems, source)
        assert experiment is not None
        return cls(experiment=experiment, axes=axes, trials=trials, stop=stop, labels=labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved study as plain values that YAML and JSON can hold.

        >>> study = Study.from_yaml("digits_study")
        >>> Study.from_dict(study.to_dict()) == study
        True
        """
        end = {"trials": self.trials} if self.stop is None else {"stop": rule_to_dict(self.stop)}
        labels = {key: value for key, value in asdict(self.labels).items() if value is not None}
        return {**labels, **self.experiment.to_dict(), "axes": self.axes.to_dict(), **end}

    @property
    def title(self) -> str:
        """The title of its reports: its own, or else network and data.

        >>> Study.from_yaml("digits_study").title
        'Layers and fault models of the digits network'
        """
        model, dataset = self.experiment.model, self.experiment.dataset
        assert model is not None
        assert dataset is not None
        return self.labels.title or f"{model.name} on {dataset.name}"

    @property
    def seed(self) -> int:
        """Seed of all faults; trial k of a cell draws its faults from the seed and k."""
        seed = self.experiment.fault_injection.seed
        assert seed is not None
        return seed

    @property
    def max_trials(self) -> int:
        """Largest number of trials of a cell."""
        if self.stop is not None:
            return self.stop.max_trials
        assert self.trials is not None
        return self.trials

    def cells(
        self,
        site_names: Sequence[str],
        bit_widths: Mapping[str, int] | None = None,
        memories: Mapping[str, str] | None = None,
    ) -> list[Cell]:
        """Cross the axes.

        Cells are ordered by checkpoint, then by sites, so that work can be kept from one to the
        next. `bit` is crossed with the fault models that take one.

        Args:
            site_names: names of all sites of the network, in the order of execution.
            bit_widths: bit width of each site, by name; needed for `bit: each`, which stands for
                the bits that all sites of a cell have.
            memories: memory of each site, by name; a site that is not there is an activation.

        Raises:
            SiteError: a pattern or index of `layers` matches no site, or a width is unknown.
            InvalidConfigError: there would be more than `MOST_CELLS`.
        """
        axes, cells = self.axes, []
        _check_number(len(axes.checkpoint) * len(axes.faults))
        for checkpoint, (name, faults) in product(axes.checkpoint, axes.faults.items()):
            cells.append(Cell.of(faults={name: faults}, checkpoint=checkpoint))
        rates: list[dict[str, Any]] = [{"probability": value} for value in axes.probability]
        rates += [{"num_faults": value} for value in axes.num_faults]
        places = self._places(site_names, memories or {})
        for checkpoint, place, model in product(axes.checkpoint, places, axes.injection_type):
            memory, layers, sites = place
            bits = bits_of(axes.bit, sites, bit_widths) if takes_bit(model) else [None]
            _check_number(len(cells) + len(bits) * len(rates))
            shared = {"injection_type": model, "memory": memory, "layers": layers}
            cells += [
                Cell.of(**shared, bit=bit, checkpoint=checkpoint, **rate)
                for bit, rate in product(bits, rates)
            ]
        return list({cell.key: cell for cell in cells}.values())

    def number_notes(self, names: Sequence[str], memories: Mapping[str, str]) -> list[str]:
        """Say which sites numbers select, where names could mislead; arguments as for `cells`."""
        chosen = [self.experiment.fault_injection.layers, self.axes.layers]
        kinds = self.axes.memory or ("activations",)
        here = [names_in(kind, names, memories) for kind in kinds]
        return list(dict.fromkeys(n for each in here for n in number_notes(chosen, each)))

    def _places(
        self, names: Sequence[str], memories: Mapping[str, str]
    ) -> Iterator[tuple[Any, tuple[str, ...] | None, Sequence[str]]]:
        """Yield each memory, with the layers of a cell there, and the sites that they stand for."""
        base = self.experiment.fault_injection.layers
        for memory in self.axes.memory or ("activations",):
            here = names_in(memory, names, memories)
            for layers in places_of(self.axes.layers, base, here):
                yield memory, layers, here if layers is None else layers

    def open_config(self) -> FaultInjectionConfig:
        """Return settings with the sites of all cells, from which each cell selects its own."""
        base = dataclasses.replace(self.experiment.fault_injection, layers=None)
        if self.axes.memory:
            kinds = [[m] if isinstance(m, str) else m for m in self.axes.memory]
            every: Any = tuple(dict.fromkeys(itertools.chain(*kinds)))
            return dataclasses.replace(base, memory=every, num_faults=None)
        if self.axes.faults:
            entries = [entry for faults in self.axes.faults.values() for entry in faults]
            return dataclasses.replace(base, faults=entries)
        return base

    def fault_config(self, cell: Cell) -> FaultInjectionConfig:
        """Return the faults of a cell: those of the base with the settings of the cell."""
        base = self.experiment.fault_injection
        if cell.entries:
            return dataclasses.replace(base, faults=cell.entries)
        changes: dict[str, Any] = {
            "injection_type": cell.injection_type,
            "num_faults": cell.num_faults,
            "memory": cell.memory,
            # Names may hold characters that have a meaning in patterns.
            "layers": None if cell.layers is None else list(map(glob.escape, cell.layers)),
        }
        if cell.probability is not None:
            changes["probability"] = cell.probability
        if cell.bit is not None:
            changes["bit"] = cell.bit
        return dataclasses.replace(base, **changes)

    def shares_faults(self, cell: Cell) -> bool:
        """Whether the samples of a trial share faults; see `samples_share_faults`."""
        return samples_share_faults(self.fault_config(cell))


def _check_number(cells: int) -> None:
    if cells > MOST_CELLS:
        problem = f"axes: they cross to more than {MOST_CELLS} cells, which is the most"
        raise InvalidConfigError([f"{problem}; name fewer values, or make several studies"])


# -- files ----------------------------------------------------------------------------------


def bundled_studies() -> tuple[str, ...]:
    """Return the names of the studies that come with the package.

    >>> bundled_studies()
    ('digits_study', 'digits_weights_study', 'efficientnet_study', 'sentences_study')
    """
    return bundled_names("studies")


# -- checking -------------------------------------------------------------------------------

_OWN = ("axes", "trials", "stop", *LABELS)


def _split(
    content: Mapping[str, Any], problems: list[str]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Separate the study's own keys from the sections of its experiment."""
    own = {key: value for key, value in content.items() if key in _OWN}
    sections: dict[Any, Any] = {}
    known = [section.name for section in fields(ExperimentConfig)]
    for key, value in content.items():
        if key in own:
            continue
        homes = [home for home, keys in _KEYS_OF.items() if key in keys]
        if key in known:
            sections[key] = value
        elif homes:
            problems.append(
                f"{key}: unknown key at the top level; it belongs in {' or '.join(homes)}"
            )
        else:
            problems.append(unknown_key(key, "", [*_OWN, *known]))
    seed = sections.get("seed")
    if isinstance(seed, int) and not isinstance(seed, bool):
        sections["seed"] = {"value": seed}
    return own, sections


# Keys that a user may have put at the top level by mistake; `seed` belongs there, too.
_KEYS_OF = {
    "axes": AXES,
    "stop": known_keys(StopRule),
    SECTION: set(known_keys(FaultInjectionConfig)) - {"seed"},
}


def _experiment(sections: Mapping[Any, Any], problems: list[str]) -> ExperimentConfig | None:
    """Make the experiment, with its faults armed for evaluation and seeded."""
    problems += _fault_problems(sections.get(SECTION))
    try:
        experiment = ExperimentConfig.from_dict(sections)
    except InvalidConfigError as error:
        problems += error.problems
        return None
    faults = experiment.fault_injection
    seed = experiment.seed.value if faults.seed is None else faults.seed
    armed = dataclasses.replace(faults, enabled=True, apply_during="eval", seed=seed)
    return dataclasses.replace(experiment, fault_injection=armed)


# Keys of `fault_injection` that a study decides itself, with the values allowed there.
_DECIDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "enabled": ((True,), "true, as a study always injects"),
    "apply_during": (("eval", "both"), "'eval' or 'both', as a study evaluates"),
    "mode": (("full_model",), "'full_model'; axes.layers says which sites are struck"),
    "curriculum": ((None,), "null, as a curriculum is for training"),
    "track_statistics": ((False,), "false, as a trial counts its faults anyway"),
}


def _fault_problems(section: Any) -> list[str]:
    """List the keys of `fault_injection` that contradict a study."""
    if not isinstance(section, Mapping):
        return []
    known, _ = parse_section(FaultInjectionConfig, section, SECTION)
    if known is None:
        return []
    return [
        f"{SECTION}.{key}: got {got(section[key])}, allowed: {allowed}"
        for key, (values, allowed) in _DECIDED.items()
        if key in section and section[key] not in values
    ]


def _missing_sections(sections: Mapping[Any, Any], axes: Mapping[str, Any]) -> list[str]:
    examples = {"dataset": "{name: digits}", "model": "{name: quant_digits}"}
    problems = [
        f"{name}: missing, add for instance `{name}: {example}`"
        for name, example in examples.items()
        if sections.get(name) is None
    ]
    checkpoint, model = sections.get("checkpoint") or {}, sections.get("model")
    unnamed = isinstance(checkpoint, Mapping) and checkpoint.get("path") is None
    # A network that is not built in may load its weights.
    own = isinstance(model, Mapping) and model.get("name") not in model_names()
    if unnamed and not own and "checkpoint" not in axes:
        problems.append("checkpoint.path: missing, name the weights here or in axes.checkpoint")
    return problems


def _length(own: Mapping[str, Any], problems: list[str]) -> tuple[int | None, StopRule | None]:
    """Read `trials` or `stop`, of which a study has exactly one."""
    trials, given = own.get("trials"), own.get("stop")
    if (trials is None) == (given is None):
        problems.append(
            "trials, stop: "
            + ("missing" if trials is None else "both are given")
            + ", allowed: one of `trials: 20` and `stop: {margin: 1.0}`"
        )
        return None, None
    if given is None:
        problems += parse_section(_FixedLength, {"trials": trials}, "")[1]
        return trials, None
    stop, found = parse_section(StopRule, given, "stop")
    problems += found
    if stop is not None and stop.max_trials < stop.min_trials:
        problems.append(
            f"stop.max_trials: got {got(stop.max_trials)}, allowed: an integer of at least "
            f"min_trials, which is {stop.min_trials}"
        )
    return None, stop
