"""Strategies of configurations and studies: a sound one, damaged in its values or its bytes."""

from __future__ import annotations

import copy
import json
from importlib import resources
from typing import Any

import yaml
from attacks import table
from fuzz.case import CONFIGURATION, STUDY, Case
from fuzz.damage import damaged
from fuzz.tiny import SECTIONS
from fuzz.tiny import STUDY as TINY
from hypothesis import strategies as st

from fxfault.experiment import load_experiment

# Values as they stand in YAML; most are of no kind that the key takes.
TEXTS = (
    "null ~ true no off 0 -1 1 2 3 7 33 1000 1.5 -0.0 .inf -.inf .nan 1e308 1e309 1e-320 -1e5 "
    "0o777 0x1F 0b11 1_000 190:20:30 12:30:45 2024-01-01 2024-13-45 2001-12-14t21:59:43.10-05:00 "
    "[] {} [[]] [1,2] [1,1] {a:1} {3:4} {null:1} [null] [.nan] [true] {[1,2]:3} {{a:b}:c} "
    "!!binary&aGVsbG8= !!binary&*** !!set&{a,b} !!omap&[a:&1] !!pairs&[a:&1] !!int&x !!float&x "
    "!!bool&maybe !!null&x !!str&3 !!timestamp&x !!python/name:os.system !what&3 !!map&[] !!seq&{} "
    "&&a&[*a] *a *undefined &&b&{<<:&*b} {<<:&{a:&1}} {<<:&[3]} {<<:&3} << = | > ? - @x `x %x "
    "each all random bit_flip msb_flip stuck_at_0 burst layer full_model eval train both clean "
    "cosine multistep sgd adam linear step features.* ste zero_faulty digits fake quant_digits"
).split()
STRANGE = [
    *(text.replace("&&", "\0").replace("&", " ").replace("\0", "&") for text in TEXTS),
    *("9" * 5000, "-" + "9" * 400, "1e99999", "0x" + "f" * 300, str(2**63), str(2**64), str(2**32)),
    *('""', '" "', '"\\0"', '"\\ud800"', '"\\U0001F600"', '"a\\nb"', '"\\e[2J"', '"\u202e"'),
    *("'a" + "b" * 9000 + "'", "~nosuchuser/x", "bundled:", "bundled:x", "os:system", "...:x", ":"),
    *("[" * 60 + "]" * 60, "[" * 2000, "{a: " * 60 + "1" + "}" * 60, "[" + "1," * 3000 + "]"),
    "[" + ",".join(f"{number / 100}" for number in range(3000)) + "]",
    "[" + ",".join(f"n{number}" for number in range(3000)) + "]",
    "[{injection_type: random, probability: 5}, {injection_type: bit_flip, bit: 1, num_faults: 1}]",
    "[{epoch: 0, probability: 1}, {epoch: 2, probability: .nan}]",
    "{both: [{injection_type: random, probability: 5}]}",
]
KEYS = [
    *("<<", "null", "3", "1.5", "true", ".nan", '""', '"\\0"', '"\\ud800"', '"a\\nb"', "[1]", "{}"),
    *("2024-01-01", "name", "kwargs", "path", "seed", "bit", "faults", "curriculum", "num_faults"),
    *("layers", "stop", "trials", "axes", "hw_mask", "9" * 5000, '"\U0001f600"', "k" * 2000),
]


class Raw(str):
    """Text that stands in the document as it is."""


# One of each kind, so that each key soon meets each of them.
KINDS = (
    *("null", "true", "0", "-1", "1", "1.5", "1e400", ".nan", "9" * 30, "x", '""', "[]", "{}"),
    *("[1, 1]", "[a]", "{a: 1}"),
)
# As `st.text()`, which first computes for seconds what UTF-8 can encode: all but surrogates.
_SIGNS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.one_of(
    st.sampled_from(KINDS),
    st.sampled_from(STRANGE),
    st.integers().map(str),
    st.integers(0, 100).map(str),
    st.floats(0, 100).map(str),
    st.floats().map(str),
    _SIGNS.map(json.dumps),
    _SIGNS,
)


def _bundled(folder: str) -> list[bytes]:
    files = resources.files("fxfault.bundled").joinpath(folder).iterdir()
    entries = sorted(files, key=lambda entry: entry.name)
    return [entry.read_bytes() for entry in entries if entry.name.endswith(".yaml")]


def pairs(value: Any) -> Any:
    """A tree in which a mapping is a list of pairs, so that a key can stand in it twice."""
    if isinstance(value, dict):
        return ["{}", *([Raw(json.dumps(key)), pairs(item)] for key, item in value.items())]
    if isinstance(value, list):
        return ["[]", *([None, pairs(item)] for item in value)]
    return value


def _text(tree: Any) -> str:
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, list):
        keys = [f"{key}: " if tree[0] == "{}" else "" for key, _ in tree[1:]]
        inner = ", ".join(
            f"{key}{_text(item)}" for key, (_, item) in zip(keys, tree[1:], strict=True)
        )
        return f"{tree[0][0]}{inner}{tree[0][1]}"
    return json.dumps(tree)


def rendered(tree: Any, lines: bool = True) -> bytes:
    """The document of a tree, with its first level in lines or not."""
    if lines and isinstance(tree, list) and tree[0] == "{}" and len(tree) > 1:
        text = "\n".join(f"{key}: {_text(item)}" for key, item in tree[1:])
    else:
        text = _text(tree)
    return text.encode("utf-8", "surrogatepass")


def _places(tree: Any) -> list[list[Any]]:
    """All pairs of a tree."""
    if not isinstance(tree, list):
        return []
    return [place for pair in tree[1:] for place in (pair, *_places(pair[1]))]


OPERATIONS = ("replace", "replace", "replace", "rename", "add", "twice", "swap", "wrap", "anchor")


@st.composite
def edited(draw: st.DrawFn, base: Any, values: st.SearchStrategy[str] = VALUES) -> Any:
    """A tree with some of its pairs changed."""
    tree = copy.deepcopy(base)
    for _ in range(draw(st.integers(0, 3))):
        places = _places(tree)
        pair = draw(st.sampled_from(places))
        other = draw(st.sampled_from(places))
        operation = draw(st.sampled_from(OPERATIONS))
        if operation == "replace":
            pair[1] = Raw(draw(values))
        elif operation == "rename":
            pair[0] = Raw(draw(st.sampled_from(KEYS)))
        elif operation in ("add", "twice"):
            inside = pair[1] if isinstance(pair[1], list) else tree
            key = other[0] if operation == "twice" else draw(st.sampled_from(KEYS))
            inside.append([Raw('"x"' if key is None else key), Raw(draw(values))])
        elif operation == "swap":
            pair[1] = copy.deepcopy(other[1])
        elif operation == "wrap":
            pair[1] = [draw(st.sampled_from(("[]", "{}"))), [Raw("a"), copy.deepcopy(pair[1])]]
        else:
            pair[1], other[1] = Raw(f"&x {_text(pair[1])}"), Raw("*x")
    return tree


def _resolved() -> dict[str, Any]:
    """Every key of a configuration."""
    return load_experiment("digits").to_dict()


CONFIGURATIONS = _bundled("experiments")
STUDIES = [*_bundled("studies"), yaml.safe_dump(table.STUDY).encode()]
CONFIGURATION_TREES = [pairs(yaml.safe_load(content)) for content in CONFIGURATIONS]
CONFIGURATION_TREES += [pairs(_resolved())] * len(CONFIGURATIONS)
STUDY_TREES = [pairs(yaml.safe_load(content)) for content in STUDIES]
STUDY_TREES.append(pairs({**_resolved(), **table.STUDY}))
# A short file that crosses to half a million cells.
_WIDE = {"checkpoint": [f"w{number}.pt" for number in range(300)], "probability": [*range(60)]}
_WIDE["layers"] = [["*" * number, 0] for number in range(1, 30)]
STUDY_TREES = [*STUDY_TREES * 3, pairs({**table.STUDY, "axes": _WIDE})]  # It takes longer to read.
# For what runs: small, and no data that would have to be fetched.
_DIGITS = {"checkpoint": {"path": "bundled:digits"}, "model": {"name": "quant_digits"}}
RUN_CONFIGURATION = pairs({**SECTIONS, **table.FAULTS, **_DIGITS})
RUN_STUDY = pairs({**TINY, **_DIGITS})
_CONFIGURATION_COMMANDS = (
    ("fxfault-inspect", "--config", "in.yaml"),
    ("fxfault-eval", "--no-progress", "--output", "out.json", "--config", "in.yaml"),
    ("fxfault-train", "--dry-run", "--no-progress", "--config", "in.yaml"),
)
_OFTEN = 60  # of a hundred cases, so many change values; the others change bytes


@st.composite
def configurations(draw: st.DrawFn) -> Case:
    """A configuration, and what reads it: its loader, or once in a while a whole command."""
    if draw(st.integers(0, 99)) < 4:
        argv = draw(st.sampled_from(_CONFIGURATION_COMMANDS))
        content = rendered(draw(edited(RUN_CONFIGURATION)))
        return Case(argv, {"in.yaml": content}, ("out.json",))
    content = draw(_document(CONFIGURATION_TREES, CONFIGURATIONS))
    return Case((f"load-{CONFIGURATION}", "in.yaml"), {"in.yaml": content})


@st.composite
def studies(draw: st.DrawFn) -> Case:
    """The same of a study."""
    if draw(st.integers(0, 99)) < 4:
        content = rendered(draw(edited(RUN_STUDY)))
        return Case(("fxfault-campaign", "plan", "in.yaml"), {"in.yaml": content})
    content = draw(_document(STUDY_TREES, STUDIES))
    return Case((f"load-{STUDY}", "in.yaml"), {"in.yaml": content})


@st.composite
def _document(draw: st.DrawFn, trees: list[Any], texts: list[bytes]) -> bytes:
    if draw(st.integers(0, 99)) < _OFTEN:
        return rendered(draw(edited(draw(st.sampled_from(trees)))))
    return draw(damaged(draw(st.sampled_from(texts))))
