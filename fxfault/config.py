"""What to inject, when and where, as one validated record.

The fields of a section, with their types, limits and meanings, are written once, in its dataclass.
Checking, error messages and the reference tables of the documentation are all derived from there.

>>> config = FaultInjectionConfig.from_dict({"enabled": True, "probability": 1})
>>> config.probability, config.injection_type
(1.0, 'random')
>>> FaultInjectionConfig.from_dict({"probabilty": 5.0, "mode": "all"})
Traceback (most recent call last):
...
fxfault.yaml_files.InvalidConfigError: 2 problems: fault_injection.probabilty: unknown key; \
did you mean 'probability'?; fault_injection.mode: got 'all' (str), \
allowed: 'full_model' or 'layer'
"""

from __future__ import annotations

import difflib
import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from fxfault.errors import ConfigError
from fxfault.yaml_files import InvalidConfigError, load_yaml

if TYPE_CHECKING:
    from fxfault.fault_models import FaultModel
else:  # this module must not import torch; the schema checks the object by `_FaultModelRule`
    FaultModel = object

SECTION = "fault_injection"
MAX_SEED = 2**63 - 1

_Section = TypeVar("_Section")
_PLAIN_VALUE = "text, a finite number, true, false, null, or lists and mappings of these"
_SCHEMAS: dict[type[Any], type[BaseModel]] = {}
_YAML_BOOLEANS = "YAML reads no, off, yes and on as booleans: put the text in quotes"


class _FaultModelRule:
    """The name of a registered fault model, or an instance of one.

    The registry imports torch and users add to it, so it is asked at each check and not before.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        instance = {"description": "from Python an object with a `corrupt` method"}
        return {"anyOf": [{"enum": list(_fault_model_names())}, instance]}

    @staticmethod
    def _check(value: Any) -> Any:
        if isinstance(value, str):
            allowed = value in _fault_model_names()
        else:
            allowed = callable(getattr(value, "corrupt", None)) and not isinstance(value, type)
        if not allowed:
            raise ValueError("no fault model")
        return value


def _fault_model_names() -> tuple[str, ...]:
    from fxfault.fault_models import fault_model_names

    return fault_model_names()


def tuple_from_list(value: Any) -> Any:
    """Let a field that holds a tuple be given as a list, the only sequence that YAML has."""
    return tuple(value) if isinstance(value, list) else value


_Name = Annotated[str, Field(min_length=1)]
_Index = Annotated[int, Field(ge=0)]


@dataclass(kw_only=True, slots=True)
class FaultInjectionConfig:
    """The `fault_injection` section: which faults to inject, how often, when and where.

    Nothing is checked on construction or assignment; `validate` checks everything at once.
    `config_reference` gives the fields as a table.

    >>> config = FaultInjectionConfig(enabled=True, probability=150.0)
    >>> config.validate()
    Traceback (most recent call last):
    ...
    fxfault.yaml_files.InvalidConfigError: fault_injection.probability: got 150.0 (float), \
allowed: a number from 0 to 100
    """

    enabled: Annotated[
        bool,
        Field(description="Master switch; when false, `transform` inserts nothing."),
    ] = False
    probability: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="Chance, in percent, that an activation value is hit; each value is drawn "
            "independently, afresh at every forward.",
        ),
    ] = 5.0
    mode: Annotated[
        Literal["full_model", "layer"],
        Field(description="Inject at all selected sites, or at one of them (`injection_layer`)."),
    ] = "full_model"
    injection_layer: Annotated[
        int,
        Field(
            ge=-1,
            description="Index, in execution order, of the site used with `mode: layer`; "
            "-1 lets the seed draw one.",
        ),
    ] = -1
    injection_type: Annotated[
        str | FaultModel,
        _FaultModelRule(),
        Field(description="Fault model: what happens to the integer code of a value that is hit."),
    ] = "random"
    apply_during: Annotated[
        Literal["train", "eval", "both"],
        Field(description="Phase in which faults are injected, told by `model.training`."),
    ] = "train"
    epoch_interval: Annotated[
        int,
        Field(
            ge=1,
            description="While training, inject in every n-th epoch only, counted from epoch 0.",
        ),
    ] = 1
    step_interval: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="While training, chance (a fraction, not percent) that a step is injected "
            "at all; one draw per step for the whole model.",
        ),
    ] = 1.0
    seed: Annotated[
        Annotated[int, Field(ge=0, le=MAX_SEED)] | None,
        Field(description="Seed of all faults; null draws one and reports it."),
    ] = None
    track_statistics: Annotated[
        bool,
        Field(description="Count hits and measure RMSE and cosine similarity for each site."),
    ] = False
    verbose: Annotated[
        bool,
        Field(description="Log what is inserted and when it is active."),
    ] = False
    hw_mask: Annotated[
        bool,
        Field(
            description="Hit every value that a faulty hardware unit computes, periodically, "
            "instead of independent values."
        ),
    ] = False
    frequency_value: Annotated[
        int,
        Field(ge=1, description="Number of parallel hardware units, used with `hw_mask`."),
    ] = 1024
    gradient_mode: Annotated[
        Literal["ste", "zero_faulty"],
        Field(
            description="Backward pass: `ste` passes every gradient, `zero_faulty` zeroes it at "
            "the values that were hit."
        ),
    ] = "ste"
    layers: Annotated[
        _Name | _Index | Annotated[list[_Name | _Index], Field(min_length=1)] | None,
        Field(
            description="Sites to inject at: names, glob patterns such as `layer1.*`, or indices "
            "in execution order; null selects all."
        ),
    ] = None
    targets: Annotated[
        tuple[_Name, ...],
        Field(min_length=1, description="Class names of the modules whose outputs are sites."),
        BeforeValidator(tuple_from_list),
    ] = ("QuantIdentity", "QuantReLU", "QuantHardTanh")
    unsupported: Annotated[
        Literal["error", "skip"],
        Field(
            description="What to do with a target whose output is not an integer QuantTensor: "
            "refuse the model, or leave that target without faults and list it."
        ),
    ] = "error"

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FaultInjectionConfig:
        """Make a validated configuration from the keys of a `fault_injection` section.

        Args:
            config: the section; keys that are absent take their defaults.

        Raises:
            InvalidConfigError: any number of unknown keys and values that are not allowed.
        """
        made, problems = parse_section(cls, config, SECTION)
        if made is None:
            raise InvalidConfigError(problems)
        return made

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> FaultInjectionConfig:
        """Read a validated configuration from a YAML file.

        Args:
            path: a file with a `fault_injection` section, whose other sections are not looked at,
                or a file that holds the keys of that section at its top level.

        Raises:
            InvalidConfigError: the file cannot be read, or its section is not allowed.
        """
        content, source = load_yaml(path), str(path)
        # no key of the section holds a mapping, but an experiment's own `seed` section is one
        own = [
            key
            for key, value in content.items()
            if key in _schema(cls).model_fields and not isinstance(value, Mapping)
        ]
        if SECTION in content:
            section = {} if content[SECTION] is None else content[SECTION]
            made, problems = parse_section(cls, section, SECTION)
            problems += [
                f"{key}: unknown key at the top level; it belongs in {SECTION}"
                for key in own
                if content[key] is not None  # an empty `seed` section of an experiment
            ]
        elif own:
            made, problems = parse_section(cls, content, "")
        else:
            found = ", ".join(_key_text(key) for key in content) or "no key"
            hint = _did_you_mean(content, [SECTION])
            made, problems = None, [f"no section {SECTION!r}; found: {found}{hint}"]
        if made is None or problems:
            raise InvalidConfigError(problems, source)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as plain values that YAML and JSON can hold.

        >>> config = FaultInjectionConfig(probability=0.5)
        >>> FaultInjectionConfig.from_dict(config.to_dict()) == config
        True

        Raises:
            ConfigError: `injection_type` is an object that no registered name stands for.
        """
        return {**section_to_dict(self), "injection_type": _fault_model_name(self.injection_type)}

    def validate(self) -> None:
        """Check every field.

        Raises:
            InvalidConfigError: any number of values that are not allowed.
        """
        self.from_dict({field.name: getattr(self, field.name) for field in fields(self)})


def _fault_model_name(model: str | FaultModel) -> str:
    if isinstance(model, str):
        return model
    from fxfault.fault_models import fault_model_names, get_fault_model

    name = getattr(model, "name", None)
    if name in fault_model_names() and get_fault_model(name) is model:
        return str(name)
    raise ConfigError(
        f"{SECTION}.injection_type: {_got(model)} has no registered name to be written as; "
        "call fxfault.fault_models.register_fault_model on it"
    )


def config_reference() -> str:
    """Give the keys of the `fault_injection` section as a Markdown table.

    >>> print(config_reference().splitlines()[0])
    | key | allowed | default | meaning |
    """
    return section_reference(FaultInjectionConfig)


def section_reference(section: type[Any]) -> str:
    """Give the keys of a section as a Markdown table: key, allowed values, default, meaning.

    Args:
        section: a dataclass whose fields are annotated as those of `FaultInjectionConfig`.
    """
    rows = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    required = _json_schema(section).get("required", [])
    for key, schema in _json_schema(section)["properties"].items():
        default = "required" if key in required else f"`{json.dumps(schema['default'])}`"
        cells = [f"`{key}`", _allowed(schema), default, schema["description"]]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def section_to_dict(section: Any) -> dict[str, Any]:
    """Give the fields of a section as plain values; tuples become lists, containers are copies."""
    return {field.name: _plain(getattr(section, field.name)) for field in fields(section)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def parse_section(
    section: type[_Section], values: object, where: str
) -> tuple[_Section | None, list[str]]:
    """Make a section from a mapping, or list all that is wrong in it.

    Args:
        section: a dataclass whose fields are annotated as those of `FaultInjectionConfig`.
        values: the mapping, as it came from a user.
        where: path of the section in its file, for the messages; empty for the top level.

    Returns:
        The section and no problem, or None and one text per problem, in the order of the keys.
    """
    if not isinstance(values, Mapping):
        return None, [f"{where}: got {_got(values)}, allowed: a mapping of keys to values"]
    schema = _schema(section)
    known = {key: value for key, value in values.items() if key in schema.model_fields}
    prefix = f"{where}." if where else ""
    try:
        checked = schema.model_validate(known)
        problems = {}
    except ValidationError as error:
        problems = _value_problems(section, error, known, prefix)
    for key in values:
        if key not in known:
            problems[key] = unknown_key(key, prefix, schema.model_fields)
    if problems:
        order = [*values, *(key for key in problems if key not in values)]
        return None, [problems[key] for key in order if key in problems]
    return section(**{name: getattr(checked, name) for name in checked.model_fields_set}), []


def unknown_key(key: object, prefix: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, and which one may be meant.

    >>> unknown_key("epoch", "training.", ["batch_size", "epochs"])
    "training.epoch: unknown key; did you mean 'epochs'?"

    Args:
        key: what the user wrote.
        prefix: path of the section with its dot, or empty.
        known: the keys of the section.
    """
    names = list(known)
    hint = _did_you_mean([key], names) or f"; known keys: {', '.join(names)}"
    note = f"; {_YAML_BOOLEANS}" if isinstance(key, bool) else ""
    return f"{prefix}{_key_text(key)}: unknown key{hint}{note}"


def _did_you_mean(keys: Iterable[object], names: list[str]) -> str:
    for key in keys:
        text = str(key).lower().replace("-", "_").replace(" ", "_")
        # matched without regard to case, as `t_max` stands for `T_max`
        folded = {name.lower(): name for name in names}
        near = difflib.get_close_matches(text, folded, n=1)
        if near:
            return f"; did you mean {folded[near[0]]!r}?"
    return ""


def _key_text(key: object) -> str:
    return key if isinstance(key, str) and key.isprintable() and key else repr(key)


def _schema(section: type[Any]) -> type[BaseModel]:
    """Give the pydantic model that checks a section dataclass, made at its first use."""
    if section not in _SCHEMAS:
        _SCHEMAS[section] = _make_schema(section)
    return _SCHEMAS[section]


def _make_schema(section: type[Any]) -> type[BaseModel]:
    # strict: neither "5" nor true is a number, and 0 is no boolean
    rules = ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(section, include_extras=True)
    definitions: dict[str, Any] = {}
    for field in fields(section):
        required = field.default is MISSING and field.default_factory is MISSING
        definitions[field.name] = (hints[field.name], ... if required else _default(field))
    return create_model(section.__name__, __config__=rules, **definitions)


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _json_schema(section: type[Any]) -> dict[str, Any]:
    return _schema(section).model_json_schema()


def _value_problems(
    section: type[Any], error: ValidationError, values: Mapping[Any, Any], prefix: str
) -> dict[Any, str]:
    """Give one problem for each key that pydantic complains about.

    A field with alternatives has one pydantic error per alternative; the one that got deepest into
    the value (to an element of a list) tells the most.
    """
    by_key: dict[Any, ErrorDetails] = {}
    for detail in error.errors(include_url=False, include_context=False):
        key = detail["loc"][0]
        if key not in by_key or len(detail["loc"]) > len(by_key[key]["loc"]):
            by_key[key] = detail
    properties = _json_schema(section)["properties"]
    return {
        key: f"{prefix}{key}{_complaint(detail, values.get(key), properties[key])}"
        for key, detail in by_key.items()
    }


def _complaint(detail: ErrorDetails, value: Any, schema: dict[str, Any]) -> str:
    """Say what is wrong with the value of a key, from the element in question on."""
    if detail["type"] == "missing":
        return f": missing, allowed: {_allowed(schema)}"
    steps = detail["loc"][1:]
    if isinstance(value, (list, tuple)):
        index = next((step for step in steps if isinstance(step, int)), None)
        if index is not None:
            return f"[{index}]" + _refusal(value[index], _items(schema))
    if schema.get("type") == "object" and steps:
        if "[key]" in steps:
            return f": got the key {_got(detail['input'])}, allowed: text as a key"
        return f".{steps[0]}: got {_got(detail['input'])}, allowed: {_PLAIN_VALUE}"
    return _refusal(value, schema)


def _refusal(value: Any, schema: dict[str, Any]) -> str:
    note = f"; {_YAML_BOOLEANS}" if isinstance(value, bool) and _takes_text(schema) else ""
    if isinstance(value, str):
        note = _did_you_mean([value], _fixed_texts(schema))
    return f": got {_got(value)}, allowed: {_allowed(schema)}{note}"


def _got(value: Any) -> str:
    """Write a value with its type, shortened and in one line.

    >>> _got("5"), _got(None)
    ("'5' (str)", 'null (NoneType)')
    """
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 60
    shortener.maxlong = 30
    text = "null" if value is None else " ".join(shortener.repr(value).split())
    return f"{text} ({type(value).__name__})"


def _items(schema: dict[str, Any]) -> dict[str, Any]:
    for option in schema.get("anyOf", [schema]):
        if "items" in option:
            return dict(option["items"])
    return schema


def _takes_text(schema: dict[str, Any]) -> bool:
    options = schema.get("anyOf", [schema])
    return any(option.get("type") == "string" or "enum" in option for option in options)


def _fixed_texts(schema: dict[str, Any]) -> list[str]:
    return [text for option in schema.get("anyOf", [schema]) for text in option.get("enum", [])]


def _allowed(schema: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows.

    >>> _allowed({"type": "number", "minimum": 0.0, "maximum": 100.0})
    'a number from 0 to 100'
    >>> _allowed({"anyOf": [{"enum": ["lsb_flip", "msb_flip"]}, {"type": "null"}]})
    "'lsb_flip', 'msb_flip' or null"
    """
    if "anyOf" in schema:
        return _either([words for option in schema["anyOf"] for words in _choices(option)])
    return _either(_choices(schema))


def _choices(schema: dict[str, Any]) -> list[str]:
    if "enum" in schema:
        return [repr(value) for value in schema["enum"]]
    if "const" in schema:
        return [repr(schema["const"])]
    kind = schema.get("type")
    if kind == "number" or kind == "integer":
        noun = "a number" if kind == "number" else "an integer"
        return [noun + _range(schema)]
    if kind == "string":
        return ["non-empty text" if schema.get("minLength") else "text"]
    if kind == "array":
        return [_list_words(schema)]
    fixed = {
        "boolean": "true or false",
        "null": "null",
        "object": f"a mapping of names to plain values ({_PLAIN_VALUE})",
    }
    return [fixed.get(str(kind)) or str(schema.get("description", "any value"))]


def _list_words(schema: dict[str, Any]) -> str:
    noun = "a non-empty list" if schema.get("minItems") else "a list"
    return f"{noun} (each item {_allowed(schema['items'])})"


def _range(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    words = [
        f"{word} {_number(limit)}"
        for word, limit in (
            ("of at least", low),
            ("above", above),
            ("of at most", high),
            ("below", below),
        )
        if limit is not None
    ]
    return " " + " and ".join(words) if words else ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _either(options: list[str]) -> str:
    unique = list(dict.fromkeys(options))
    return " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]]))
