"""The table of attacks: kind of input, command, engine, and how it must end.

An attack ends with its status, and with at most one line on stderr that does not call itself a bug.
All of them run in this process, in an empty folder, by `main(argv)`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from attacks import hostile

from fxfault.campaign import Study
from fxfault.campaign.records.store import Store
from fxfault.evaluation.rows import TrialRow

Prepare = Callable[[], None]


@dataclass(frozen=True)
class Attack:
    """One row.

    Attributes:
        name: kind, what is wrong, command and engine.
        argv: command and its arguments.
        prepare: writes the input into the current folder.
        status: that it must end with.
        says: what the line on stderr must have in it.
    """

    name: str
    argv: tuple[str, ...]
    prepare: Prepare = lambda: None
    status: int = 2
    says: str = ""


def attacks() -> list[Attack]:
    """All rows."""
    kinds = (
        _command_lines,
        _outputs,
        _files,
        _configurations,
        _checkpoints,
        _networks,
        _data,
        _stores,
    )
    return [attack for kind in kinds for attack in kind()]


# -- inputs ---------------------------------------------------------------------------------

SECTIONS: dict[str, Any] = {
    "dataset": {"name": "fake", "kwargs": {"size": 40, "image_size": 8, "in_channels": 1}},
    "model": {"name": "attacks.hostile:small"},
    "training": {"batch_size": 16, "epochs": 1},
    "checkpoint": {"path": "net.pt"},
}
STUDY: dict[str, Any] = {
    **SECTIONS,
    "seed": 7,
    "axes": {"layers": "all", "injection_type": "random", "probability": [5.0]},
    "trials": 30,
}
FAULTS = {"fault_injection": {"enabled": True, "probability": 5.0, "seed": 1}}

EVAL = ("fxfault-eval", "--no-progress", "--config", "in.yaml")
INSPECT = ("fxfault-inspect", "--config", "in.yaml")
TRAIN = ("fxfault-train", "--dry-run", "--config", "in.yaml")
RUN = ("fxfault-campaign", "run", "--no-progress", "--store", "s.sqlite", "study.yaml")
PROCESSES = (*RUN, "--engine", "processes", "--workers", "1")
PLAN = ("fxfault-campaign", "plan", "study.yaml")
ALL = {"eval": EVAL, "inspect": INSPECT, "train": TRAIN, "run": RUN, "plan": PLAN}


def written(**changes: Any) -> Prepare:
    """Write a configuration and a study with some sections changed, and their checkpoint."""

    def write() -> None:
        torch.save(_state(), "net.pt")
        for name, base in (("in.yaml", {**SECTIONS, **FAULTS}), ("study.yaml", STUDY)):
            content = copy.deepcopy({**base, **changes})
            if name == "in.yaml":
                content = {k: v for k, v in content.items() if k not in ("axes", "trials")}
            Path(name).write_text(yaml.safe_dump(content), encoding="utf-8")

    return write


def _bytes(content: bytes) -> Prepare:
    def write() -> None:
        for name in ("in.yaml", "study.yaml"):
            Path(name).write_bytes(content)

    return write


# -- command lines --------------------------------------------------------------------------

BAD_PATHS = {
    "null": "a\0b",
    "empty": "",
    "nosuchuser": "~nosuchuser/absent/x",
    "no_utf8": "absent\udcff/x",
    "long": "x" * 5000,
    "line_break": "absent\n/x",
    "surrogate": "absent\ud800/x",
}


def _command_lines() -> Iterator[Attack]:
    flags = {
        ("eval", "config"): ("fxfault-eval", "--config"),
        ("eval", "checkpoint"): ("fxfault-eval", "--config", "digits", "--checkpoint"),
        ("eval", "output"): ("fxfault-eval", "--config", "digits", "--output"),
        ("eval", "csv"): ("fxfault-eval", "--config", "digits", "--csv"),
        ("inspect", "config"): ("fxfault-inspect", "--config"),
        ("inspect", "svg"): ("fxfault-inspect", "--config", "digits", "--svg"),
        ("train", "config"): ("fxfault-train", "--dry-run", "--config"),
        ("train", "init"): ("fxfault-train", "--dry-run", "--config", "digits", "--init"),
        ("run", "store"): ("fxfault-campaign", "run", "digits_study", "--store"),
        ("run", "file"): ("fxfault-campaign", "run", "--store", "s.sqlite"),
        ("status", "store"): ("fxfault-campaign", "status", "--store"),
        ("report", "store"): ("fxfault-campaign", "report", "--store"),
        ("export", "store"): ("fxfault-campaign", "export", "--csv", "c.csv", "--store"),
        ("compare", "store"): ("fxfault-campaign", "compare", "absent"),
    }
    for (command, flag), start in flags.items():
        for kind, path in BAD_PATHS.items():
            yield Attack(f"path {kind} as {flag}, {command}", (*start, path))
    numbers = {"digits": "9" * 5000, "word": "many", "negative": "-1", "arabic": "٣x", "nan": "nan"}
    places = {
        "num-runs": (*EVAL, "--num-runs"),
        "seed": (*EVAL, "--seed"),
        "probability": (*EVAL, "--probability"),
        "num-faults": (*EVAL, "--num-faults"),
        "layer": (*EVAL, "--layers"),
        "workers": (*RUN, "--workers"),
        "cache-memory": (*RUN, "--cache-memory"),
        "confidence": ("fxfault-campaign", "report", "--store", "s", "--confidence"),
    }
    for flag, start in places.items():
        for kind, text in numbers.items():
            yield Attack(
                f"number {kind} as {flag}", (*start[:-1], f"{start[-1]}={text}"), written()
            )


def _files() -> Iterator[Attack]:
    makes: dict[str, Prepare] = {
        "folder": lambda: [Path(n).mkdir() for n in ("in.yaml", "study.yaml")] and None,
        "loop": lambda: [Path(n).symlink_to(n) for n in ("in.yaml", "study.yaml")] and None,
        "empty": _bytes(b""),
    }
    for kind, make in makes.items():
        for command, argv in ALL.items():
            yield Attack(f"file {kind}, {command}", argv, make)


# -- configurations -------------------------------------------------------------------------

TEXTS: dict[str, bytes] = {
    "no_yaml": b"dataset: [",
    "binary": bytes(range(256)),
    "nulls": b"\0" * 100,
    "list": b"- 1\n- 2",
    "number": b"3",
    "twice": b"seed: 1\nseed: 2",
    "object": b"a: !!python/object/apply:os.system ['touch run']",
    "unknown_tag": b"a: !what 3",
    "digits": b"seed: " + b"9" * 5000,
    "date": b"seed: 2024-13-45",
    "deep": b"a: " + b"[" * 500,
    "merge": b"<<: 3",
    "unhashable": b"? [a, {b: c}]\n: 3",
    "surrogate": b'dataset: {name: "\\ud800"}',
    "key_of_digits": b"9" * 5000 + b": 3",
    "infinite": b"training: {batch_size: .inf}",
    "section_of_list": b"dataset: [a]\nmodel: 3",
    "self": b"a: &a [*a]",
}


def _configurations() -> Iterator[Attack]:
    for kind, text in TEXTS.items():
        for command, argv in ALL.items():
            yield Attack(f"yaml {kind}, {command}", argv, _bytes(text))
    sections: dict[str, dict[str, Any]] = {
        "batch_of_digits": {"training": {"batch_size": 10**300}},
        "data_of_null": {"dataset": {"name": "a\0b:c"}},
        "factory_of_dots": {"model": {"name": "...:x"}},
        "factory_that_is_code": {"model": {"name": 'os:system("x")'}},
        "factory_of_number": {"model": {"name": "attacks.hostile:not_a_network"}},
        "factory_that_exits": {"model": {"name": "attacks.hostile:exits_when_made"}},
        "module_of_code": {"model": {"name": "antigravity_absent:x"}},
        "root_of_null": {"dataset": {"name": "mnist", "root": "a\0b"}},
        "checkpoint_of_null": {"checkpoint": {"path": "a\0b"}},
        "checkpoint_of_user": {
            "checkpoint": {"path": "~nosuchuser/x", "init_from": "~nosuchuser/x"}
        },
        "kwargs_of_text": {"model": {"name": "quant_digits", "kwargs": "all"}},
        "kwargs_of_numbers": {"model": {"name": "quant_digits", "kwargs": {3: 4}}},
        "bits_of_digits": {"quantization": {"weight_bit_width": 10**100}},
    }
    for kind, changes in sections.items():
        for command, argv in ALL.items():
            is_train = command == "train"
            names_both = isinstance(changes.get("checkpoint"), dict)
            if command == "inspect" and names_both:
                continue  # A checkpoint that is not there is only noted.
            if command == "inspect" and kind == "batch_of_digits":
                continue  # It has no batch.
            given = copy.deepcopy(changes)
            given.setdefault("checkpoint", {} if is_train else {"path": "net.pt"})
            if names_both:
                path = given["checkpoint"]["path"]
                given["checkpoint"] = {"init_from" if is_train else "path": path}
            yield Attack(f"section {kind}, {command}", argv, written(**given))


# -- checkpoints ----------------------------------------------------------------------------

KEY = "1.weight"


@functools.cache
def _state() -> dict[str, Any]:
    """The weights of the small network, with the scales that it learned from some images."""
    torch.manual_seed(0)
    network = hostile.small()
    with torch.no_grad():
        network(torch.rand(16, 1, 8, 8))
    return network.state_dict()


TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": lambda w: w.to_sparse(),
    "sparse_csr": lambda w: w.flatten(1).to_sparse_csr(),
    "meta": lambda w: w.to("meta"),
    "nested": lambda w: torch.nested.nested_tensor([w[0], w[1]]),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "terabytes": lambda w: torch.zeros(1).expand(2**40),
    "complex": lambda w: w.to(torch.complex64),
    "bool": lambda w: w > 0,
    "int": lambda w: w.long(),
    "nan": lambda w: w * float("nan"),
    "overflow": lambda w: torch.full_like(w, 1e300, dtype=torch.float64),
    "scalar": lambda w: torch.tensor(1.0),
    "empty": lambda w: w[:0],
    "text": lambda w: "weights",
    "none": lambda w: None,
}


def _checkpoints() -> Iterator[Attack]:
    commands = {"eval": EVAL, "inspect": INSPECT, "run": RUN, "train": TRAIN}
    for kind, make in TENSORS.items():
        for command, argv in commands.items():
            yield Attack(f"tensor {kind}, {command}", argv, _with_tensor(make, command))
    for kind, content in {"empty": b"", "text": b"hello", "zip": b"PK\3\4" + b"\0" * 99}.items():
        for command, argv in commands.items():

            def write(content: bytes = content, command: str = command) -> None:
                _name_checkpoint("w.pt", command)
                Path("w.pt").write_bytes(content)

            yield Attack(f"checkpoint {kind}, {command}", argv, write)


def _name_checkpoint(path: str, command: str) -> None:
    written(checkpoint={"init_from" if command == "train" else "path": path})()


def _with_tensor(make: Callable[[torch.Tensor], Any], command: str) -> Prepare:
    def write() -> None:
        _name_checkpoint("w.pt", command)
        state = _state()
        torch.save({**state, KEY: make(state[KEY])}, "w.pt")

    return write


# -- somebody else's code -------------------------------------------------------------------


def _network(how: str, after: int, key: str = "path") -> Prepare:
    def write() -> None:
        torch.save({f"net.{key}": value for key, value in _state().items()}, "w.pt")
        model = {"name": "attacks.hostile:Network", "kwargs": {"how": how, "after": after}}
        written(model=model, checkpoint={key: "w.pt"})()

    return write


def _networks() -> Iterator[Attack]:
    for how in hostile.ENDS:
        for command, argv in {"eval": EVAL, "inspect": INSPECT, "run": RUN, "plan": PLAN}.items():
            yield Attack(f"network {how} at once, {command}", argv, _network(how, 0))
        yield Attack(f"network {how} later, run", RUN, _network(how, 45), says="trial")
        for after in (0, 2):
            train = _network(how, after, "init_from")
            yield Attack(f"network {how} after {after}, train", TRAIN, train)
    for how in ("exit", "pipe", "raise"):
        yield Attack(f"network {how} later, processes", PROCESSES, _network(how, 45), says="trial")
    for how in hostile.ANSWERS:
        for command, argv in {"eval": EVAL, "run": RUN}.items():
            status = 0 if how in ("fine", "bool") else 2
            yield Attack(f"network answers {how}, {command}", argv, _network(how, 0), status)


def _data() -> Iterator[Attack]:
    def named(how: str, n: Any = 40) -> Prepare:
        data = {"name": "attacks.hostile:Data", "kwargs": {"how": how, "n": n}}
        return written(dataset=data)

    def trained(how: str) -> Prepare:
        data = {"name": "attacks.hostile:Data", "kwargs": {"how": how}}
        return written(dataset=data, checkpoint={})

    for how in [*hostile.ENDS, *hostile.ITEMS]:
        for command, argv in {"eval": EVAL, "run": RUN}.items():
            yield Attack(f"data {how}, {command}", argv, named(how))
        yield Attack(
            f"data {how}, train", (*TRAIN, "--set", "training.batch_size=40"), trained(how)
        )
    for n in (-1, 0, 10**21, 3.5, "40", None, 41.0):
        for command, argv in {"eval": EVAL, "run": RUN, "inspect": INSPECT}.items():
            yield Attack(f"data len {n}, {command}", argv, named("fine", n))
    for command, argv in {"eval": EVAL, "run": RUN}.items():
        yield Attack(f"data of one sample, {command}", argv, named("fine", 1), status=0)


# -- stores ---------------------------------------------------------------------------------

CELL = (
    '{"bit":null,"checkpoint":"net.pt","injection_type":"random","layers":null,"probability":5.0}'
)
ABOUT = "UPDATE about SET value = ? WHERE name = ?"
EDITS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "study_of_list": (ABOUT, ("[]", "study")),
    "study_of_nothing": (ABOUT, ("{}", "study")),
    "study_of_digits": (ABOUT, ("9" * 5000, "study")),
    "study_of_bytes": (ABOUT, (b"\xff", "study")),
    "study_of_depth": (ABOUT, ("[" * 100_000, "study")),
    "fingerprint_of_text": (ABOUT, ('{"study": "s"}', "fingerprint")),
    "background": ("INSERT INTO about VALUES ('background', ?)", ('{"sites": [3]}',)),
    "background_edges": ("INSERT INTO about VALUES ('background', ?)", ('{"edges": [[5, 9]]}',)),
    "no_study": ("DELETE FROM about WHERE name = ?", ("study",)),
    "cell_of_text": ("UPDATE cells SET key = ?", ("x",)),
    "cell_of_other_keys": ("UPDATE cells SET key = ?", ('{"what": 3}',)),
    "text_for_count": ("UPDATE trials SET correct = ?", ("many",)),
    "negative_count": ("UPDATE trials SET sdc = ?", (-5,)),
    "large_count": ("UPDATE trials SET correct = ?", (10**15,)),
    "half_count": ("UPDATE trials SET struck = ?", (0.5,)),
    "infinite_time": ("UPDATE trials SET seconds = ?", (float("inf"),)),
    "no_table": ("DROP TABLE trials", ()),
    "newer": ("PRAGMA user_version = 99", ()),
    "foreign": ("PRAGMA application_id = 1", ()),
}
WRITERS: dict[str, tuple[str, ...]] = {
    "export": ("fxfault-campaign", "export", "--store", "s.sqlite", "--csv"),
    "report": ("fxfault-campaign", "report", "--store", "s.sqlite", "--html"),
    "eval": ("fxfault-eval", "--config", "digits", "--output"),
    "inspect": ("fxfault-inspect", "--config", "digits", "--svg"),
}
READERS: dict[str, tuple[str, ...]] = {
    "status": ("fxfault-campaign", "status", "--store", "s.sqlite"),
    "report": ("fxfault-campaign", "report", "--store", "s.sqlite"),
    "export": ("fxfault-campaign", "export", "--store", "s.sqlite", "--csv", "c.csv"),
    "compare": ("fxfault-campaign", "compare", "s.sqlite", "s.sqlite"),
}
SHAPES: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "zeros": b"\0" * 8192,
    "header": b"SQLite format 3\0" + b"\xff" * 4096,
}


def store_of_few() -> None:
    """Write a store with a few trials."""
    study = Study.from_dict(STUDY)
    with Store.create("s.sqlite", study.to_dict(), {}) as store:
        store.add([TrialRow(CELL, n, 10, 8, 9, 2, 1, 9, 3, 40, 3, 1, 0.01) for n in range(3)])


def _edited(statement: str, values: tuple[Any, ...]) -> Prepare:
    def write() -> None:
        store_of_few()
        with contextlib.closing(sqlite3.connect("s.sqlite")) as connection, connection:
            connection.execute(statement, values)

    return write


ALIASES = ("./s.sqlite", "sym", "hard", "folder/s.sqlite", "/proc/self/cwd//s.sqlite")
PARTS = ("s.sqlite-wal", "S.SQLITE-WAL", "sym-wal", "s.sqlite-shm", "s.sqlite-lock")


def _outputs() -> Iterator[Attack]:
    """Files to be written that are the store, or where stdout goes."""

    def prepare() -> None:
        store_of_few()
        Path("sym").symlink_to("s.sqlite")
        Path("hard").hardlink_to("s.sqlite")
        Path("folder").symlink_to(".")

    for command, argv in WRITERS.items():
        for path in (*ALIASES, *PARTS):
            if path in ("sym-wal", "S.SQLITE-WAL") and command in ("eval", "inspect"):
                continue  # They know of no store that has this name.
            yield Attack(f"output {path}, {command}", (*argv, path), prepare, says="is the ")
        for path in ("/dev/stdout", "/proc/self/fd/2", "/dev/full", "folder"):
            yield Attack(f"output {path}, {command}", (*argv, path), prepare)


def _stores() -> Iterator[Attack]:
    for kind, edit in EDITS.items():
        for command, argv in READERS.items():
            yield Attack(f"store {kind}, {command}", argv, _edited(*edit))
    for kind, content in SHAPES.items():
        for command, argv in READERS.items():

            def write(content: bytes = content) -> None:
                Path("s.sqlite").write_bytes(content)

            yield Attack(f"store file of {kind}, {command}", argv, write)
    for command, argv in READERS.items():
        yield Attack(f"store sound, {command}", argv, _edited("SELECT ?", (1,)), status=0)
