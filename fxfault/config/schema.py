"""Check a section of a configuration file against a dataclass, and say what is wrong.

The annotations of the dataclass give the types, limits and meanings of its fields. The checks, the
messages and the tables of the documentation follow from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from fxfault.messages import did_you_mean, got, key_text

_Section = TypeVar("_Section")
_PLAIN_VALUE = "text, a finite number, true, false, null, or lists and mappings of these"
_SCHEMAS: dict[type[Any], type[BaseModel]] = {}
_YAML_BOOLEANS = "YAML reads no, off, yes and on as booleans: put the text in quotes"


@dataclass(frozen=True)
class SectionList:
    """Annotation of a field that holds null or a list of sections of one kind.

    An item is a mapping, which is checked as a section of its own, or an object of the dataclass.
    If `alone` names a key, a mapping with this key stands for a list of itself.

    Attributes:
        item: the dataclass of an item.
        check: looks at the items together. It gets them in order, with None for an item that has
            a problem already, and returns one text for each problem, which starts with the index
            of the item (`[1].epoch: ...`).
        alone: the key of an item that needs no list; None if every item does.
    """

    item: type[Any]
    check: Callable[[Sequence[Any]], Iterable[str]]
    alone: str | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._parse)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        keys = ", ".join(known_keys(self.item))
        item = {"description": f"a mapping with keys among {keys}"}
        alone = [] if self.alone is None else [{"description": f"`{{{self.alone}: FILE}}`"}]
        several = {"type": "array", "minItems": 1, "items": item}
        return {"anyOf": [several, *alone, {"type": "null"}]}

    def _parse(self, value: Any) -> tuple[Any, ...] | None:
        if value is None:
            return None
        if self.alone is not None and isinstance(value, Mapping) and self.alone in value:
            value = [value]
        if not isinstance(value, (list, tuple)) or not value:
            raise ValueError("no list of sections")
        items, problems = [], []
        for index, given in enumerate(value):
            values = _fields_of(given) if isinstance(given, self.item) else given
            item, found = parse_section(self.item, values, f"[{index}]")
            items.append(item)
            problems += found
        problems += self.check(items)
        if problems:
            raise _ItemProblemsError(problems)
        return tuple(items)


class _ItemProblemsError(ValueError):
    """The problems of a list's items, which pydantic carries to `_complaints`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems


def _fields_of(section: Any) -> dict[str, Any]:
    return {field.name: getattr(section, field.name) for field in fields(section)}


def tuple_from_list(value: Any) -> Any:
    """Turn a list, the only sequence that YAML has, into a tuple."""
    return tuple(value) if isinstance(value, list) else value


def section_reference(section: type[Any]) -> str:
    """Return the keys of a section as a Markdown table: key, allowed values, default, meaning."""
    rows = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    required = _json_schema(section).get("required", [])
    for key, schema in _json_schema(section)["properties"].items():
        default = "required" if key in required else f"`{json.dumps(schema['default'])}`"
        cells = [f"`{key}`", _allowed(schema), default, schema["description"]]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def section_to_dict(section: Any) -> dict[str, Any]:
    """Return the fields of a section as plain values: copies, with lists in place of tuples."""
    return {key: _plain(value) for key, value in _fields_of(section).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def parse_section(
    section: type[_Section], values: object, where: str
) -> tuple[_Section | None, list[str]]:
    """Make a section from a mapping, or list all of its problems.

    Args:
        section: a dataclass with fields annotated like those of `FaultInjectionConfig`.
        values: the mapping, as a user wrote it.
        where: path of the section in its file, for messages; empty for the top level.

    Returns:
        The section and an empty list, or None and one text per problem, in the order of the keys.
    """
    if not isinstance(values, Mapping):
        return None, [f"{where}: got {got(values)}, allowed: a mapping of keys to values"]
    schema = _schema(section)
    known = {key: value for key, value in values.items() if key in schema.model_fields}
    prefix = f"{where}." if where else ""
    try:
        checked = schema.model_validate(known)
        problems: dict[Any, list[str]] = {}
    except ValidationError as error:
        problems = _value_problems(section, error, known, prefix)
    for key in values:
        if key not in known:
            problems[key] = [unknown_key(key, prefix, schema.model_fields)]
    if problems:
        order = [*values, *(key for key in problems if key not in values)]
        return None, [problem for key in order for problem in problems.get(key, [])]
    return section(**{name: getattr(checked, name) for name in checked.model_fields_set}), []


def known_keys(section: type[Any]) -> tuple[str, ...]:
    """The keys of a section."""
    return tuple(_schema(section).model_fields)


def unknown_key(key: object, prefix: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, and suggest another.

    >>> unknown_key("epoch", "training.", ["batch_size", "epochs"])
    "training.epoch: unknown key; did you mean 'epochs'?"

    Args:
        key: the key, as a user wrote it.
        prefix: path of the section with a dot at the end, or empty.
        known: the keys of the section.
    """
    names = list(known)
    # A boolean is a `no` or the like in YAML, and not a misspelt name.
    meant = [] if isinstance(key, bool) else [key]
    hint = did_you_mean(meant, names) or f"; known keys: {', '.join(names)}"
    note = f"; {_YAML_BOOLEANS}" if isinstance(key, bool) else ""
    return f"{prefix}{key_text(key)}: unknown key{hint}{note}"


def _schema(section: type[Any]) -> type[BaseModel]:
    """The pydantic model that checks a section, made at its first use."""
    if section in _SCHEMAS:
        return _SCHEMAS[section]
    # strict: "5" and true are not numbers, and 0 is not a boolean
    rules = ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(section, include_extras=True)
    definitions: dict[str, Any] = {}
    for field in fields(section):
        default = ... if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        definitions[field.name] = (hints[field.name], default)
    _SCHEMAS[section] = create_model(section.__name__, __config__=rules, **definitions)
    return _SCHEMAS[section]


def _json_schema(section: type[Any]) -> dict[str, Any]:
    return _schema(section).model_json_schema()


def _value_problems(
    section: type[Any], error: ValidationError, values: Mapping[Any, Any], prefix: str
) -> dict[Any, list[str]]:
    """Return the problems of each key: one, or one for each item of a `SectionList`.

    A field with alternatives has one pydantic error per alternative. The one that got deepest into
    the value (to an item of a list) says the most.
    """
    by_key: dict[Any, ErrorDetails] = {}
    for detail in error.errors(include_url=False):
        key = detail["loc"][0]
        if key not in by_key or len(detail["loc"]) > len(by_key[key]["loc"]):
            by_key[key] = detail
    properties = _json_schema(section)["properties"]
    return {
        key: [f"{prefix}{key}{text}" for text in _complaints(detail, values, key, properties[key])]
        for key, detail in by_key.items()
    }


def _complaints(
    detail: ErrorDetails, values: Mapping[Any, Any], key: Any, schema: dict[str, Any]
) -> list[str]:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, _ItemProblemsError):
        return cause.problems
    return [_complaint(detail, values.get(key), schema)]


def _complaint(detail: ErrorDetails, value: Any, schema: dict[str, Any]) -> str:
    """Say what is wrong with the value of a key, starting at the item in question."""
    if detail["type"] == "missing":
        return f": missing, allowed: {_allowed(schema)}"
    steps = detail["loc"][1:]
    if isinstance(value, (list, tuple)):
        index = next((step for step in steps if isinstance(step, int)), None)
        if index is not None:
            items = next((o["items"] for o in _options(schema) if "items" in o), schema)
            return f"[{index}]" + _refusal(value[index], items)
    if schema.get("type") == "object" and steps:
        if "[key]" in steps:
            return f": got the key {got(detail['input'])}, allowed: text as a key"
        return f".{steps[0]}: got {got(detail['input'])}, allowed: {_PLAIN_VALUE}"
    return _refusal(value, schema)


def _refusal(value: Any, schema: dict[str, Any]) -> str:
    options, note = _options(schema), ""
    if isinstance(value, str):
        note = did_you_mean([value], [text for o in options for text in o.get("enum", [])])
    elif isinstance(value, bool) and any(o.get("type") == "string" or "enum" in o for o in options):
        note = f"; {_YAML_BOOLEANS}"
    return f": got {got(value)}, allowed: {_allowed(schema)}{note}"


def _options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a schema, with nested ones."""
    if "anyOf" not in schema:
        return [schema]
    return [option for alternative in schema["anyOf"] for option in _options(alternative)]


def _allowed(schema: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows.

    >>> _allowed({"type": "number", "minimum": 0.0, "maximum": 100.0})
    'a number from 0 to 100'
    >>> _allowed({"anyOf": [{"enum": ["lsb_flip", "msb_flip"]}, {"type": "null"}]})
    "'lsb_flip', 'msb_flip' or null"
    """
    return _either([words for option in _options(schema) for words in _choices(option)])


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
        noun = "a non-empty list" if schema.get("minItems") else "a list"
        return [f"{noun} (each item {_allowed(schema['items'])})"]
    fixed = {
        "boolean": "true or false",
        "null": "null",
        "object": f"a mapping of names to plain values ({_PLAIN_VALUE})",
    }
    return [fixed.get(str(kind)) or str(schema.get("description", "any value"))]


def _range(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    limits = {"of at least": low, "above": above, "of at most": high, "below": below}
    words = [f"{word} {_number(n)}" for word, n in limits.items() if n is not None]
    return " " + " and ".join(words) if words else ""


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _either(options: list[str]) -> str:
    unique = list(dict.fromkeys(options))
    return " or ".join(filter(None, [", ".join(unique[:-1]), unique[-1]]))
