"""The fingerprint of a study: what its rows depend on, so that a store never mixes two kinds.

A fingerprint holds the study, the network with all of its weights, the data, the predictions
without faults, and the versions of the code. A store only continues with the same fingerprint,
apart from changes that add rows and alter none: the number of trials of a cell, and more values on
the axes.

Rows do not depend on, and the fingerprint leaves out: the engine, the number of workers, whether
work is kept from one trial to the next, freezing, the folder of the data, the sections of an
experiment that only training reads, the operating system, Python, and the machine. Devices and
numbers of threads may round the last digit of a sum differently, and so may the batch size, which
is part of the study. If that moves a code, it mostly shows in the predictions without faults,
which all workers must share: a worker that predicts otherwise is refused. For rows that are the
same bit for bit, keep to one kind of device and one number of threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fxfault.campaign.studies.labels import LABELS
from fxfault.config.fault_injection import FaultInjectionConfig
from fxfault.messages import flat

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fxfault.campaign.studies.study import Study
    from fxfault.data.batches import Batch
    from fxfault.sites.fault_sites import FaultSites

PACKAGES = ("fxfault", "torch", "brevitas", "numpy")

# Larger data sets are hashed in part.
WHOLE_BYTES = 2**28
SPOT_CHECKS = 256  # samples

# Settings that an evaluation does not read, or that change no count.
_FREE_SECTIONS = ("seed", "optimizer", "scheduler", *LABELS)
_FREE_KEYS = {
    "dataset": ("root",),
    "fault_injection": ("verbose", "track_statistics", "gradient_mode", "persist"),
}
_KEPT_KEYS = {"training": ("batch_size",), "checkpoint": ("path",)}


# Values of keys that stores from before these keys do not have.
_YOUNG_DEFAULTS = [("memory", "activations"), ("word", "quantised")]
# The default `targets` of stores from before quantisers inside layers were sites. A network that
# has such sites has another structure, so its stores stay apart.
_OLD_TARGETS = ["QuantIdentity", "QuantReLU", "QuantHardTanh"]


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
                if key not in free
                and (only is None or key in only)
                and (key, value) not in _YOUNG_DEFAULTS
            }
            if list(section.get("targets", ())) == list(FaultInjectionConfig().targets):
                section["targets"] = _OLD_TARGETS
        kept[name] = section
    plain: dict[str, Any] = json.loads(json.dumps(kept))  # As the store will give it back.
    return plain


def of_code() -> dict[str, str]:
    """Versions of the packages that compute, without the build (`+cpu`, `+cu126`)."""
    return {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}


def of_state(model: nn.Module) -> str:
    """SHA-256 of a network's `state_dict`: names, dtypes, shapes and values."""
    content = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        content.update(name.encode())
        if hasattr(value, "untyped_storage"):
            content.update(_tensor_bytes(value))
    return content.hexdigest()


def of_structure(model: nn.Module, faults: FaultSites) -> str:
    """SHA-256 of the structure of a network: names and types of its modules, and its sites."""
    modules = [[name, type(module).__qualname__] for name, module in model.named_modules()]
    sites = [[site.name, site.module_type, site.bit_width] for site in faults]
    return hashlib.sha256(json.dumps([modules, sites]).encode()).hexdigest()


def of_golden(golden: Any) -> dict[str, Any]:
    """The result without faults.

    Args:
        golden: `Predictions`, of which the number of correct ones counts, and the SHA-256 of all;
            or with a metric `Measured`, of which the value counts, and the SHA-256 of the values of
            all samples or batches.
    """
    if golden.facts.is_accuracy:
        predicted = golden.top[:, 0].cpu()
        return {
            "correct": int((predicted == golden.labels.cpu()).sum()),
            "predictions": hashlib.sha256(_tensor_bytes(predicted)).hexdigest(),
        }
    records = golden.records
    values = {} if records is None else {"values": hashlib.sha256(_tensor_bytes(records))}
    return {"value": golden.value, **{name: value.hexdigest() for name, value in values.items()}}


def of_data(dataset: Any, batches: Iterable[Batch], golden: Any) -> dict[str, Any]:
    """The targets and inputs of a data set.

    All inputs are hashed if they take 256 MiB or less; else 256 of them, evenly spread, as
    decoding a large set takes as long as a trial. All labels are always hashed; of other targets,
    those of the hashed inputs are.

    Args:
        dataset: map-style dataset of (input, label), or with a metric of any items; None if there
            are only batches, all of which are hashed then.
        batches: the same samples in batches.
        golden: `Predictions` with the labels of all samples; or `Measured`.
    """
    samples = golden.samples
    inputs, targets = hashlib.sha256(), hashlib.sha256()
    labels = golden.labels.cpu() if golden.facts.is_accuracy else None
    step = 1
    if dataset is None or _size_of(dataset, labels is not None) * samples <= WHOLE_BYTES:
        for batch in batches:
            for part in _all_bytes([*batch.inputs, *batch.keywords.values()]):
                inputs.update(part)
            for part in _all_bytes(batch.targets) if labels is None else ():
                targets.update(part)
    else:
        step = max(1, samples // SPOT_CHECKS)
        for index in range(0, samples, step):
            for part in _all_bytes(dataset[index][0] if labels is not None else dataset[index]):
                inputs.update(part)
    if labels is not None:
        targets.update(_tensor_bytes(labels))
    return {
        "samples": samples,
        "labels": targets.hexdigest(),
        "inputs": inputs.hexdigest(),
        "inputs_hashed": "all" if step == 1 else f"1 of {step}",
    }


def _size_of(dataset: Any, is_labelled: bool) -> int:
    """Bytes of the first sample."""
    first = dataset[0][0] if is_labelled else dataset[0]
    return sum(map(len, _all_bytes(first)))


def _all_bytes(value: Any) -> Iterator[bytes]:
    """The bytes of everything in a value that is made of containers, arrays and plain values."""
    if isinstance(value, Mapping):
        for key in value:
            yield str(key).encode()
            yield from _all_bytes(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _all_bytes(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _all_bytes(getattr(value, field.name))
    elif value is None or isinstance(value, str):
        yield str(value).encode()
    else:
        yield _input_bytes(value)


def _input_bytes(value: Any) -> bytes:
    import numpy as np

    return np.ascontiguousarray(np.asarray(value)).tobytes()


def _tensor_bytes(value: torch.Tensor) -> bytes:
    import torch

    head = f"{value.dtype}{tuple(value.shape)}".encode()
    values = value.detach().cpu().contiguous().reshape(-1)
    if values.stride() != (1,):  # A single element counts as contiguous with any stride.
        values = values.as_strided(values.shape, (1,))
    return head + values.view(torch.uint8).numpy().tobytes() if values.numel() else head


# -- comparing ------------------------------------------------------------------------------


def differences(
    stored: Mapping[str, Any],
    now: Mapping[str, Any],
    places: tuple[str, str] = ("in the store", "now"),
) -> list[str]:
    """List the differences of two fingerprints.

    >>> stored = {"code": {"torch": "2.13.0"}, "study": {"trials": 20}}
    >>> differences(stored, {"code": {"torch": "2.13.1"}, "study": {"stop": {"margin": 1.0}}})
    ['code.torch: 2.13.0 in the store, 2.13.1 now', 'study.stop.margin: absent in the store, \
1.0 now', 'study.trials: 20 in the store, absent now']

    Args:
        stored: the earlier fingerprint.
        now: the present fingerprint.
        places: how the lines refer to the two.

    Returns:
        One line for each difference, in alphabetical order.
    """
    before, after = flat(stored), flat(now)
    return [
        f"{name}: {_shown(before, name)} {places[0]}, {_shown(after, name)} {places[1]}"
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or before[name] != after[name]
    ]


def conflicts(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the differences that keep rows of the present study out of a store.

    Numbers of trials and stop rules may differ, as trial k of a cell is the same in any case, and
    axes may gain values, as these make other cells.

    >>> stored = {"study": {"trials": 20, "axes": {"probability": [1.0]}}}
    >>> conflicts(stored, {"study": {"trials": 50, "axes": {"probability": [5.0, 1.0]}}})
    []
    >>> conflicts(stored, {"study": {"trials": 20, "axes": {"probability": [5.0]}}})
    ['study.axes.probability: [1.0] in the store, [5.0] now']

    Args:
        stored: fingerprint of the store.
        now: the present fingerprint, or the parts of it that are known so far.
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
    """A copy of a fingerprint without the number of trials and the stop rule."""
    copied: dict[str, Any] = json.loads(json.dumps(fingerprint))
    for key in ("trials", "stop"):
        copied.get("study", {}).pop(key, None)
    return copied


def _without_new(stored: Any, values: Any) -> Any:
    """The stored values of an axis if the present ones include them, else the present ones."""
    if isinstance(stored, Mapping) != isinstance(values, Mapping):
        return values
    if isinstance(stored, Mapping):
        whole = all(name in values and values[name] == stored[name] for name in stored)
    else:
        whole = all(value in values for value in stored)
    return stored if stored and whole else values


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "absent"
    value = values[name]
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return f"{value[:12]}..."
    return value if isinstance(value, str) else json.dumps(value)


def refusal(lines: Iterable[str]) -> str:
    """Word differences as the end of a message, with the first eight of them.

    >>> refusal(["a: 1 in the store, 2 now"])
    '1 difference: a: 1 in the store, 2 now'
    """
    listed = list(lines)
    shown = "; ".join(listed[:8]) + ("; ..." if len(listed) > 8 else "")
    return f"{len(listed)} difference{'' if len(listed) == 1 else 's'}: {shown}"
