"""A strategy of checkpoints: a sound one with strange entries, or damaged in its bytes."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import yaml
from attacks import table
from fuzz.case import CHECKPOINT, Case
from fuzz.damage import damaged
from fuzz.tiny import SECTIONS, state, weights
from hypothesis import strategies as st

DTYPES = ("float16", "bfloat16", "float64", "int8", "uint8", "int64", "bool", "complex64")
SHAPES = ((), (0,), (1,), (10,), (0, 64), (1, 1, 1, 1), (10, 64), (1,) * 60)
VALUES = (0.0, 1e-45, 1e38, -1e300, float("nan"), float("inf"), float("-inf"))
KEYS = (
    "",
    ".",
    "..",
    "2",
    "2.weight",
    "a\nb",
    "\0",
    "\ud800",
    "x" * 9000,
    "module.2.bias",
    3,
    None,
)
THINGS: tuple[Any, ...] = (
    *(None, 3, 1.5, "text", b"bytes", [], {}, (), set(), True, [torch.zeros(1)], 10**400),
    *({"a": torch.zeros(1)}, OrderedDict(), torch.Size([1]), torch.float32, torch.device("meta")),
    *(torch.nn.Parameter(torch.zeros(1)), complex(1), bytearray(3), float("nan")),
)
TURNS: tuple[Callable[[torch.Tensor], Any], ...] = (
    *(v for k, v in table.TENSORS.items() if k != "nested"),
    lambda w: w.t() if w.dim() == 2 else w.flatten(),
    lambda w: w.flatten().to_sparse(),
    lambda w: w.expand(2, *w.shape),
    lambda w: w.flatten()[:1].expand(w.numel()).reshape(w.shape),
    lambda w: w.conj() if w.is_complex() else w.to(torch.complex64).conj(),
    lambda w: torch.nn.Parameter(w.detach()) if w.is_floating_point() else w,
    lambda w: (
        torch.quantize_per_channel(w, torch.ones(len(w)), torch.zeros(len(w)), 0, torch.qint8)
        if w.dim() and w.is_floating_point()
        else w
    ),
    lambda w: w.to(torch.float8_e4m3fn) if w.is_floating_point() else w,
    lambda w: torch.zeros(10**5),
)
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("fxfault-inspect", "--config", "in.yaml"),
    ("fxfault-eval", "--no-progress", "--output", "out.json", "--config", "in.yaml"),
)


@st.composite
def checkpoints(draw: st.DrawFn) -> Case:
    """A checkpoint, and what reads it: the loader, or once in a while a whole command."""
    argv: tuple[str, ...] = (f"load-{CHECKPOINT}", "w.pt")
    if draw(st.integers(0, 99)) < 2:
        argv = draw(st.sampled_from(COMMANDS))
    how = draw(st.sampled_from(("entries", "entries", "archive", "pickle", "bytes")))
    if how == "entries":
        content = draw(_saved())
    elif how == "archive":
        content = draw(_archive())
    else:
        content = draw(damaged(weights() if how == "bytes" else _legacy()))
    configuration = yaml.safe_dump({**SECTIONS, **table.FAULTS}).encode()
    return Case(argv, {"w.pt": content, "in.yaml": configuration}, ("out.json",))


@st.composite
def _saved(draw: st.DrawFn) -> bytes:
    entries: Any = state()
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.sampled_from([*entries]))
        how = draw(st.sampled_from(("turn", "turn", "fill", "thing", "rename", "add", "leave out")))
        if how == "turn":
            value = entries[key]
            turn = draw(st.sampled_from(TURNS))
            entries[key] = _turned(turn, value)
        elif how == "fill":
            dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
            filled = torch.full(shape, draw(st.sampled_from(VALUES)), dtype=torch.float64)
            entries[key] = filled.to(getattr(torch, dtype))
        elif how == "thing":
            entries[key] = draw(st.sampled_from(THINGS))
        elif how == "rename":
            entries[draw(st.sampled_from(KEYS))] = entries.pop(key)
        elif how == "add":
            entries[draw(st.sampled_from(KEYS))] = draw(st.sampled_from((entries[key], *THINGS)))
        else:
            entries.pop(key)
        if not entries:
            break
    return _bytes_of(draw(_wrapped(entries)), draw(st.booleans()))


def _turned(turn: Callable[[torch.Tensor], Any], value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.numel() > 10**7:
        return value  # One of terabytes that are not there can be saved, and little else.
    try:
        return turn(value)
    except (RuntimeError, NotImplementedError, IndexError):
        return value  # Not every tensor can be turned into everything.


@st.composite
def _wrapped(draw: st.DrawFn, entries: Any) -> Any:
    how = draw(st.integers(0, 9))
    if how == 0:
        prefix = draw(st.sampled_from(("module.", "_orig_mod.", "net.", "", ".", "module.module.")))
        return {f"{prefix}{key}": value for key, value in entries.items()}
    if how == 1:
        key = draw(st.sampled_from(("model_state_dict", "state_dict", "model", "weights", 0)))
        return {key: draw(st.sampled_from((entries, entries, *THINGS))), "epoch": 3}
    if how == 2:
        return draw(st.sampled_from((list(entries.items()), [entries], torch.zeros(3), *THINGS)))
    if how == 3:
        noted = OrderedDict(entries)
        noted._metadata = draw(st.sampled_from((*THINGS, {"": {"version": "x"}}, {"1": 3})))  # type: ignore[attr-defined]
        return noted
    return entries


def _bytes_of(content: Any, zipped: bool) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.save(content, file, _use_new_zipfile_serialization=zipped)
        except (RuntimeError, NotImplementedError, UnicodeError, TypeError, pickle.PicklingError):
            return b"cannot be saved"
    return file.getvalue()


@cache
def _legacy() -> bytes:
    """What torch wrote before it wrote archives: pickles and raw values, one after the other."""
    return _bytes_of(state(), False)


@st.composite
def _archive(draw: st.DrawFn) -> bytes:
    """An archive whose checksums are right and whose entries are not."""
    with zipfile.ZipFile(io.BytesIO(weights())) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    method = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(entries) - 1))
        name, content = entries[at]
        how = draw(st.sampled_from(("content", "content", "name", "leave out", "twice", "large")))
        if how == "content":
            entries[at] = (name, draw(damaged(content)))
        elif how == "name":
            entries[at] = (
                draw(st.sampled_from(("x", "../x", "/x", "a/" * 99, f"{name}.py"))),
                content,
            )
        elif how == "leave out" and len(entries) > 1:
            entries.pop(at)
        elif how == "twice":
            entries.append((name, draw(damaged(content))))
        else:
            # Small as a file in any case, for Hypothesis keeps what it has drawn.
            entries[at] = (name, b"\0" * (4 * 10**7 if method == zipfile.ZIP_DEFLATED else 10**5))
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # A name that is there twice.
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()
