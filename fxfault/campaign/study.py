"""The study file: an experiment, the axes that are crossed, and how many trials each cell gets.

>>> study = Study.from_yaml("digits_study")
>>> study.stop.margin, study.stop.confidence
(1.0, 95.0)
>>> cells = study.cells(["stem.act", "head.act"], {"stem.act": 4, "head.act": 2})
>>> len(cells), cells[0].layers, cells[0].probability
(30, ('stem.act',), 1.0)
"""

from __future__ import annotations

import dataclasses
import difflib
import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fxfault.campaign.axes import (
    AXES,
    Axes,
    Faults,
    bits_of,
    given_axes,
    places_of,
    takes_bit,
    with_base,
)
from fxfault.config import SECTION, FaultInjectionConfig
from fxfault.errors import InvalidConfigError
from fxfault.experiment import ExperimentConfig
from fxfault.schema import got, known_keys, parse_section, section_to_dict, unknown_key
from fxfault.yaml_files import load_yaml, parse_yaml

MOST_TRIALS = 10**9
MOST_CELLS = 200_000  # Of which each takes a kilobyte, and no study that ends has as many.


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a cell has had enough trials; see `fxfault.campaign.stopping`."""

    margin: Annotated[
        float,
        Field(
            gt=0,
            le=50,
            description="Half width, in percentage points, that the intervals of both the "
            "accuracy and the SDC rate must not exceed.",
        ),
    ]
    confidence: Annotated[
        float, Field(ge=50, lt=100, description="Confidence of these intervals, in percent.")
    ] = 95.0
    min_trials: Annotated[
        int, Field(ge=2, le=MOST_TRIALS, description="Trials that every cell gets.")
    ] = 10
    max_trials: Annotated[
        int, Field(ge=2, le=MOST_TRIALS, description="Trials after which a cell ends anyway.")
    ] = 200


@dataclass(frozen=True)
class Cell:
    """One combination of the axes: what is struck, how, and in which network.

    >>> cell = Cell.of(injection_type="msb_flip", probability=1, layers=["head.act"])
    >>> cell.key == Cell.from_key(cell.key).key
    True
    >>> cell.key
    '{"bit":null,"checkpoint":null,"injection_type":"msb_flip","layers":["head.act"],\
"probability":1.0}'

    Attributes:
        key: the settings as canonical JSON; two cells are equal if their keys are.
        settings: by name: `injection_type`, `probability` (percent) or `num_faults` (for each
            sample), `bit` (None: the fault model says it all), `layers` (names of sites; None:
            all of the network), `checkpoint`. Where several faults strike together, only `faults`
            (a mapping of their name to their entries) and `checkpoint`.
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
                "layers": None if layers is None else list(layers),
            }
        settings["checkpoint"] = checkpoint
        key = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return cls(key, settings)

    @classmethod
    def from_key(cls, key: str) -> Cell:
        """Make a cell from the key that it has in a store."""
        return cls.of(**json.loads(key))

    @property
    def injection_type(self) -> str | None:
        """Name of the fault model; None where several faults strike."""
        return self.settings.get("injection_type")

    @property
    def probability(self) -> float | None:
        """Of a hit, in percent; None where something else says how often faults strike."""
        return self.settings.get("probability")

    @property
    def num_faults(self) -> int | None:
        """Hits of each sample; None where something else says how often faults strike."""
        return self.settings.get("num_faults")

    @property
    def bit(self) -> int | str | None:
        """Which bit is struck, or None where the fault model does not ask."""
        return self.settings.get("bit")

    @property
    def layers(self) -> tuple[str, ...] | None:
        """Names of the sites that are struck; None: all of them, or those of each fault."""
        layers = self.settings.get("layers")
        return None if layers is None else tuple(layers)

    @property
    def checkpoint(self) -> str | None:
        """The weights."""
        return self.settings.get("checkpoint")

    @property
    def entries(self) -> Sequence[Mapping[str, Any]]:
        """The faults that strike together, as `fault_injection.faults` takes them; else none."""
        return [entry for faults in self.settings.get("faults", {}).values() for entry in faults]

    @property
    def fault(self) -> str:
        """The fault model in a few letters, with its bit where it has one; or the faults' name.

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
        """The sites in a few letters."""
        if "faults" in self.settings:
            layers = [_several(entry.get("layers")) for entry in self.entries]
            named = dict.fromkeys(str(item) for items in layers if items for item in items)
            return " ".join(named) if all(layers) else "all"
        return "all" if self.layers is None else " ".join(self.layers)

    @property
    def rate(self) -> float | None:
        """The probability or the number of faults; None where each of several has its own."""
        return self.probability if self.num_faults is None else float(self.num_faults)

    @property
    def rate_text(self) -> str:
        """The same in a few letters.

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
        """The settings as a table has them, faults that strike together by their name."""
        named = {"faults": self.fault} if "faults" in self.settings else {}
        return {**self.settings, **named}


def _several(layers: Any) -> Sequence[Any]:
    return layers if isinstance(layers, (list, tuple)) else [] if layers is None else [layers]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a campaign measures. Use `from_yaml` or `from_dict`, which check.

    Attributes:
        experiment: data, network, weights, and the faults that all cells have in common. Its
            `fault_injection` is armed for evaluation and has a seed.
        axes: what is crossed.
        trials: of each cell; None where a stop rule decides.
        stop: the stop rule, or None.
    """

    experiment: ExperimentConfig
    axes: Axes
    trials: int | None
    stop: StopRule | None

    @classmethod
    def from_yaml(cls, path_or_bundled_name: str | os.PathLike[str]) -> Study:
        """Read a study file, or one of those that come with the package.

        Args:
            path_or_bundled_name: path of a file; where there is none, a bare name such as
                `digits_study` stands for the bundled study.

        Raises:
            InvalidConfigError: no such file, or all that is wrong with it.
        """
        content, source = _read(os.fspath(path_or_bundled_name))
        return cls.from_dict(content, source)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str | None = None) -> Study:
        """Make a checked study from the content of its file.

        >>> Study.from_dict({"axes": {"probability": [1, 101]}, "trials": 0})
        Traceback (most recent call last):
        ...
        fxfault.errors.InvalidConfigError: 5 problems: axes.probability[1]: got 101 (int), \
allowed: a number from 0 to 100; trials: got 0 (int), allowed: an integer from 1 to 1000000000; \
dataset: missing, add for instance `dataset: {name: digits}`; \
model: missing, add for instance `model: {name: quant_digits}`; \
checkpoint.path: missing, name the weights here or in axes.checkpoint

        Args:
            content: sections of an experiment, `axes`, and `trials` or `stop`. An integer as
                `seed` stands for `seed: {value: N}`; the faults have this seed unless
                `fault_injection.seed` names another.
            source: what an error calls the file, if there is one.

        Raises:
            InvalidConfigError: all unknown keys and values that are not allowed.
        """
        if not isinstance(content, Mapping):
            kind = type(content).__name__
            raise InvalidConfigError([f"got a {kind}, expected a mapping of sections"], source)
        problems: list[str] = []
        own, sections = _split(content, problems)
        experiment = _experiment(sections, problems)
        given = given_axes(own.get("axes"), problems)
        trials, stop = _length(own, problems)
        problems += _missing_sections(sections, given)
        if experiment is not None and not problems:
            axes = with_base(given, experiment, problems)
        if problems:
            raise InvalidConfigError(problems, source)
        assert experiment is not None
        return cls(experiment=experiment, axes=axes, trials=trials, stop=stop)

    def to_dict(self) -> dict[str, Any]:
        """Give the resolved study as plain values that YAML and JSON can hold.

        >>> study = Study.from_yaml("digits_study")
        >>> Study.from_dict(study.to_dict()) == study
        True
        """
        end = {"trials": self.trials} if self.stop is None else {"stop": section_to_dict(self.stop)}
        return {**self.experiment.to_dict(), "axes": self.axes.to_dict(), **end}

    @property
    def seed(self) -> int:
        """Seed of all faults; trial k of a cell draws its faults from it and from k."""
        seed = self.experiment.fault_injection.seed
        assert seed is not None
        return seed

    @property
    def max_trials(self) -> int:
        """Trials that a cell has at most."""
        if self.stop is not None:
            return self.stop.max_trials
        assert self.trials is not None
        return self.trials

    def cells(
        self, site_names: Sequence[str], bit_widths: Mapping[str, int] | None = None
    ) -> list[Cell]:
        """Cross the axes.

        Cells with the same checkpoint, then with the same sites, stand together, so that work can
        be kept from one to the next. `bit` is crossed with the fault models that take one.

        Args:
            site_names: names of all sites of the network, in the order of execution.
            bit_widths: bits of the word of each site, by name; needed for `bit: each`, which
                means all bits that each site of a cell has.

        Raises:
            SiteError: a pattern or index of `layers` matches no site, or a width is not known.
            InvalidConfigError: there would be more than `MOST_CELLS`.
        """
        axes, cells = self.axes, []
        _check_number(len(axes.checkpoint) * len(axes.faults))
        for checkpoint, (name, faults) in product(axes.checkpoint, axes.faults.items()):
            cells.append(Cell.of(faults={name: faults}, checkpoint=checkpoint))
        rates: list[dict[str, Any]] = [{"probability": value} for value in axes.probability]
        rates += [{"num_faults": value} for value in axes.num_faults]
        places = places_of(axes.layers, self.experiment.fault_injection.layers, site_names)
        for checkpoint, layers, model in product(axes.checkpoint, places, axes.injection_type):
            sites = site_names if layers is None else layers
            bits = bits_of(axes.bit, sites, bit_widths) if takes_bit(model) else [None]
            _check_number(len(cells) + len(bits) * len(rates))
            cells += [
                Cell.of(
                    injection_type=model,
                    bit=bit,
                    layers=layers,
                    checkpoint=checkpoint,
                    **rate,
                )
                for bit, rate in product(bits, rates)
            ]
        return list({cell.key: cell for cell in cells}.values())

    def fault_config(self, cell: Cell) -> FaultInjectionConfig:
        """Give the faults of a cell: those of the base with the settings of the cell."""
        base = self.experiment.fault_injection
        if cell.entries:
            return dataclasses.replace(base, faults=cell.entries)
        changes: dict[str, Any] = {
            "injection_type": cell.injection_type,
            "num_faults": cell.num_faults,
            # Names, which may hold what means something in a pattern.
            "layers": None if cell.layers is None else list(map(glob.escape, cell.layers)),
        }
        if cell.probability is not None:
            changes["probability"] = cell.probability
        if cell.bit is not None:
            changes["bit"] = cell.bit
        return dataclasses.replace(base, **changes)

    def cell_experiment(self, cell: Cell) -> ExperimentConfig:
        """Give the experiment of a cell: with its weights and its faults."""
        return dataclasses.replace(
            self.experiment,
            checkpoint=dataclasses.replace(self.experiment.checkpoint, path=cell.checkpoint),
            fault_injection=self.fault_config(cell),
        )

    def shares_faults(self, cell: Cell) -> bool:
        """Whether all samples of a trial have the same faults, as with a broken hardware unit.

        Then a trial is one draw, however many samples it has.
        """
        return samples_share_faults(self.fault_config(cell))


def _check_number(cells: int) -> None:
    if cells > MOST_CELLS:
        problem = f"axes: they cross to more than {MOST_CELLS} cells, which is the most"
        raise InvalidConfigError([f"{problem}; name fewer values, or make several studies"])


def samples_share_faults(config: FaultInjectionConfig) -> bool:
    """Whether all samples of a trial have something of their faults in common.

    A fault model of a broken cell says so with an attribute `same_in_every_sample` that is true;
    one such among several faults is enough, as an interval should rather be too wide. In mode
    `layer` a trial draws the site that is struck.
    """
    from fxfault.fault_models import get_fault_model, is_same_in_every_sample

    models = [get_fault_model(entry.injection_type) for entry in config.entries()]
    drawn = config.mode == "layer" and config.injection_layer == -1
    return config.hw_mask or drawn or any(map(is_same_in_every_sample, models))


# -- files ----------------------------------------------------------------------------------


def bundled_studies() -> tuple[str, ...]:
    """Give the names of the studies that come with the package.

    >>> bundled_studies()
    ('digits_study',)
    """
    files = resources.files("fxfault.campaign").iterdir()
    return tuple(sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml")))


def _read(name: str) -> tuple[dict[Any, Any], str]:
    if os.path.isfile(name) or (os.path.exists(name) and name not in bundled_studies()):
        return load_yaml(name), name
    bundled = name.removesuffix(".yaml")
    if bundled not in bundled_studies():
        names = bundled_studies()
        near = difflib.get_close_matches(Path(name).stem, names, n=1)
        hint = f"did you mean the bundled {near[0]!r}? " if near else ""
        raise InvalidConfigError([f"no such file; {hint}bundled: {', '.join(names)}"], name)
    file = resources.files("fxfault.campaign").joinpath(f"{bundled}.yaml")
    source = f"{bundled}.yaml (bundled)"
    return parse_yaml(file.read_bytes(), source), source


# -- checking -------------------------------------------------------------------------------

_OWN = ("axes", "trials", "stop")


def _split(
    content: Mapping[str, Any], problems: list[str]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Part the study's own keys from the sections of its experiment."""
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


_KEYS_OF = {"axes": AXES, "stop": known_keys(StopRule), SECTION: known_keys(FaultInjectionConfig)}
_KEYS_OF[SECTION] = tuple(set(_KEYS_OF[SECTION]) - {"seed"})


def _experiment(sections: Mapping[Any, Any], problems: list[str]) -> ExperimentConfig | None:
    """Make the experiment, its faults armed for evaluation and seeded."""
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


# What a study decides itself: only these values may stand in `fault_injection`.
_DECIDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "enabled": ((True,), "true, as a study always injects"),
    "apply_during": (("eval", "both"), "'eval' or 'both', as a study evaluates"),
    "mode": (("full_model",), "'full_model'; axes.layers says which sites are struck"),
    "curriculum": ((None,), "null, as a curriculum is for training"),
    "track_statistics": ((False,), "false, as a trial counts its faults anyway"),
}


def _fault_problems(section: Any) -> list[str]:
    """Say which keys of the section contradict what a study is."""
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
    checkpoint = sections.get("checkpoint") or {}
    unnamed = isinstance(checkpoint, Mapping) and checkpoint.get("path") is None
    if unnamed and "checkpoint" not in axes:
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
        if not isinstance(trials, int) or isinstance(trials, bool) or not 0 < trials <= MOST_TRIALS:
            problems.append(
                f"trials: got {got(trials)}, allowed: an integer from 1 to {MOST_TRIALS}"
            )
            return None, None
        return trials, None
    stop, found = parse_section(StopRule, given, "stop")
    problems += found
    if stop is not None and stop.max_trials < stop.min_trials:
        problems.append(
            f"stop.max_trials: got {got(stop.max_trials)}, allowed: an integer of at least "
            f"min_trials, which is {stop.min_trials}"
        )
    return None, stop
