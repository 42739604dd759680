"""What the rows of a store were measured on, so that no others are put beside them.

A fingerprint holds the study, the network with each of its weights, the data, the predictions
without faults, and the versions of the code. A store goes on only with what has the same one, but
for what adds rows and changes none: how many trials a cell gets, and more values on its axes.

What may differ, since rows do not depend on it: the engine, the number of workers, whether work is
kept from one trial to the next, freezing, the folder that data lies in, the sections of an
experiment that only training reads, the operating system, Python, and the machine. Devices and
numbers of threads may round the last digit of a sum differently, and so may the batch size, which
is part of the study. Where that moves a code it mostly shows in the predictions without faults,
which every worker has to share: a worker that predicts otherwise is refused. For rows that are
the same bit for bit, keep to one kind of device and one number of threads.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.campaign.study import Study
    from fxfault.predictions import Predictions
    from fxfault.sites import FaultSites

PACKAGES = ("fxfault", "torch", "brevitas", "numpy")

# Data sets whose inputs are larger in all are hashed in part.
WHOLE_BYTES = 2**28
SPOT_CHECKS = 256  # samples

# What an evaluation does not read, or reads without effect on a count.
_FREE_SECTIONS = ("seed", "optimizer", "scheduler")
_FREE_KEYS = {
    "dataset": ("root",),
    "fault_injection": ("verbose", "track_statistics", "gradient_mode"),
}
_KEPT_KEYS = {"training": ("batch_size",), "checkpoint": ("path",)}


def of_study(study: Study) -> dict[str, Any]:
    """The part of a resolved study that rows depend on."""
    kept: dict[str, Any] = {}
    for name, section in study.to_dict().items():
        if name in _FREE_SECTIONS:
            continue
        if isinstance(section, Mapping):
            free, only = _FREE_KEYS.get(name, ()), _KEPT_KEYS.get(name)
            section = {
                key: value
                for key, value in section.items()
                if key not in free and (only is None or key in only)
            }
        kept[name] = section
    plain: dict[str, Any] = json.loads(json.dumps(kept))  # As the store will give it back.
    return plain


def of_code() -> dict[str, str]:
    """Versions of the packages that compute. `+cpu` or `+cu126` is the build, not the version."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}


def of_state(model: nn.Module) -> str:
    """SHA-256 of the content of a network's `state_dict`: names, dtypes, shapes and values."""
    content = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        content.update(name.encode())
        if hasattr(value, "untyped_storage"):
            content.update(_tensor_bytes(value))
    return content.hexdigest()


def of_structure(model: nn.Module, faults: FaultSites) -> str:
    """SHA-256 of what a network is made of: its modules by name and type, and its sites."""
    modules = [[name, type(module).__qualname__] for name, module in model.named_modules()]
    sites = [[site.name, site.module_type, site.bit_width] for site in faults]
    return hashlib.sha256(json.dumps([modules, sites]).encode()).hexdigest()


def of_golden(golden: Predictions) -> dict[str, Any]:
    """The predictions without faults: how many are right, and the SHA-256 of all."""
    predicted = golden.top[:, 0].cpu()
    return {
        "correct": int((predicted == golden.labels.cpu()).sum()),
        "predictions": hashlib.sha256(_tensor_bytes(predicted)).hexdigest(),
    }


def of_data(dataset: Any, batches: Iterable[Any], labels: torch.Tensor) -> dict[str, Any]:
    """Labels and inputs of a data set.

    All inputs are hashed where they have 256 MiB or less; else 256 of them, evenly spread, since
    decoding a large set takes as long as a trial. All labels are hashed in any case.

    Args:
        dataset: map-style, of (input, label).
        batches: the same in batches of (inputs, labels).
        labels: of all samples, int64, shape (samples,).
    """
    samples = len(labels)
    inputs = hashlib.sha256()
    step = 1
    if len(_input_bytes(dataset[0][0])) * samples <= WHOLE_BYTES:
        for images, _ in batches:
            inputs.update(_input_bytes(images))
    else:
        step = max(1, samples // SPOT_CHECKS)
        for index in range(0, samples, step):
            inputs.update(_input_bytes(dataset[index][0]))
    return {
        "samples": samples,
        "labels": hashlib.sha256(_tensor_bytes(labels.cpu())).hexdigest(),
        "inputs": inputs.hexdigest(),
        "inputs_hashed": "all" if step == 1 else f"1 of {step}",
    }


def _input_bytes(value: Any) -> bytes:
    import numpy as np

    return np.ascontiguousarray(np.asarray(value)).tobytes()


def _tensor_bytes(value: torch.Tensor) -> bytes:
    import torch

    head = f"{value.dtype}{tuple(value.shape)}".encode()
    flat = value.detach().cpu().contiguous().reshape(-1)
    if flat.stride() != (1,):  # One element counts as contiguous, wherever a next one would be.
        flat = flat.as_strided(flat.shape, (1,))
    return head + flat.view(torch.uint8).numpy().tobytes() if flat.numel() else head


# -- comparing ------------------------------------------------------------------------------


def differences(
    stored: Mapping[str, Any],
    now: Mapping[str, Any],
    places: tuple[str, str] = ("in the store", "now"),
) -> list[str]:
    """Say in which points two fingerprints differ.

    >>> stored = {"code": {"torch": "2.13.0"}, "study": {"trials": 20}}
    >>> differences(stored, {"code": {"torch": "2.13.1"}, "study": {"stop": {"margin": 1.0}}})
    ['code.torch: 2.13.0 in the store, 2.13.1 now', 'study.stop.margin: absent in the store, \
1.0 now', 'study.trials: 20 in the store, absent now']

    Args:
        stored: the one that was kept.
        now: the present one.
        places: what the lines call the two.

    Returns:
        One line for each point, in alphabetical order; none where they agree.
    """
    before, after = dict(_flat(stored)), dict(_flat(now))
    return [
        f"{name}: {_shown(before, name)} {places[0]}, {_shown(after, name)} {places[1]}"
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or before[name] != after[name]
    ]


def conflicts(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which points rows of the present study would not fit beside those of a store.

    A study may have other numbers of trials or another stop rule, as trial k of a cell is the same
    in any case, and more values on its axes, as these make other cells.

    >>> stored = {"study": {"trials": 20, "axes": {"probability": [1.0]}}}
    >>> conflicts(stored, {"study": {"trials": 50, "axes": {"probability": [5.0, 1.0]}}})
    []
    >>> conflicts(stored, {"study": {"trials": 20, "axes": {"probability": [5.0]}}})
    ['study.axes.probability: [1.0] in the store, [5.0] now']

    Args:
        stored: fingerprint of the store.
        now: the present one, or the parts of it that are known yet.
    """
    old, new = _without_length(stored), _without_length(now)
    old = {name: part for name, part in old.items() if name in new}
    networks = new.get("networks", {})
    if "networks" in old:
        kept = {name: part for name, part in networks.items() if name in old["networks"]}
        new["networks"] = kept
    axes = old.get("study", {}).get("axes", {})
    for name, values in new.get("study", {}).get("axes", {}).items():
        new["study"]["axes"][name] = _without_new(axes.get(name, ()), values)
    return differences(old, new)


def _without_length(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a fingerprint without how many trials there are."""
    copied: dict[str, Any] = json.loads(json.dumps(fingerprint))
    for key in ("trials", "stop"):
        copied.get("study", {}).pop(key, None)
    return copied


def _without_new(stored: Any, values: Any) -> Any:
    """The values of an axis that the store has, too; all of them where it has some more."""
    if isinstance(stored, Mapping) != isinstance(values, Mapping):
        return values
    if isinstance(stored, Mapping):
        whole = all(name in values and values[name] == stored[name] for name in stored)
    else:
        whole = all(value in values for value in stored)
    return stored if stored and whole else values


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "absent"
    value = values[name]
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"{value[:12]}..."
    return value if isinstance(value, str) else json.dumps(value)


def refusal(lines: Iterable[str]) -> str:
    """The differences as the end of a message; the first few where there are many.

    >>> refusal(["a: 1 in the store, 2 now"])
    '1 difference: a: 1 in the store, 2 now'
    """
    listed = list(lines)
    shown = "; ".join(listed[:8]) + ("; ..." if len(listed) > 8 else "")
    return f"{len(listed)} difference{'' if len(listed) == 1 else 's'}: {shown}"
