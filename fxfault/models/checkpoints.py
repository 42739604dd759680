"""Load trained weights into a network, all of them or none."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from fxfault.bundled.files import BUNDLED, bundled_content, bundled_names
from fxfault.errors import DataError
from fxfault.files.access import (
    UnfitFileError,
    expanded,
    no_such_file,
    read_limited,
    size_text,
)
from fxfault.messages import nearest, quote_error
from fxfault.models.checkpoint_tensors import is_finite, own_tensors, why_unusable

WRAPPER_KEYS = ("model_state_dict", "state_dict", "model")

# Prefixes that DataParallel, DistributedDataParallel and torch.compile add to every key.
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN_KEYS = 3
_SHOWN_TEXT = 80
# What follows the name of a quantiser in a key says nothing to its user.
_INSIDE = re.compile(r"(\.\w+_quant)\.(?:fused_activation_quant_proxy|tensor_quant)[\w.]*")

# Size limit: a checkpoint may also hold an optimiser's state, averages and notes.
_TIMES_NETWORK = 16
_EXTRA_BYTES = 2**25
_MEND = "give it a file that torch.save(model.state_dict(), FILE) wrote from this network"
_ZIP_MAGIC = b"PK"
_PICKLE_MAGIC = b"\x80"


AS_MADE = "as the factory made them"
"""Where weights come from that no checkpoint names."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The weights that a network was given.

    Attributes:
        path: path as the user wrote it; empty for weights that the network's factory made.
        sha256: SHA-256 of the file, in hexadecimal; without a file, of the network's state.
        keys: names of the loaded tensors.
    """

    path: str
    sha256: str
    keys: tuple[str, ...]


def load_checkpoint(
    path: str | Path, model: nn.Module, folder: str | Path | None = None
) -> CheckpointInfo:
    """Load a checkpoint into a network, strictly; if it does not fit, the network is unchanged.

    A checkpoint is a file from `torch.save` with a state_dict, or with a mapping that holds one
    under `model_state_dict`, `state_dict` or `model`, such as PyTorch Lightning's. A prefix of all
    keys is removed if it comes from a wrapper (`module.`, `_orig_mod.`) or from an attribute that
    held the network (`network.`). Nothing in the file is executed (`weights_only=True`).

    Load before making an optimiser: loading makes Brevitas rebuild the quantisers of activations.

    >>> load_checkpoint("bundled:digit", nn.Linear(1, 1))
    Traceback (most recent call last):
    fxfault.errors.DataError: checkpoint 'bundled:digit': no such weights come with fxfault \
(did you mean 'bundled:digits'?); there are: bundled:digit_segmenter, \
bundled:digits, bundled:digits_fat, bundled:mnist_lenet, bundled:mnist_tfc

    Args:
        path: the file, or `bundled:NAME` for weights that come with fxfault.
        model: the network; the check needs memory for a copy of it.
        folder: folder that a relative path starts from; default: the current folder.

    Raises:
        DataError: the file does not exist, is not a checkpoint, holds more than weights, does not
            fit the network, or has values that are not finite.
    """
    label = str(path)
    prefix = f"checkpoint {label!r}"
    content = _read(label, prefix, Path() if folder is None else Path(folder), most_bytes(model))
    state = _without_prefix(_find_state_dict(_unpickle(content, prefix), prefix), model)
    own = own_tensors(model)
    why = why_unusable(state, own)
    if why is not None:
        raise DataError(f"{prefix} has tensors that cannot be the network's: {why}")
    _check_finite(state, own, prefix)
    _check_fits(state, model, own, prefix)
    _load_in_place(state, model)
    return CheckpointInfo(label, hashlib.sha256(content).hexdigest(), tuple(state))


def bundled_checkpoints() -> tuple[str, ...]:
    """Names of the weights that come with fxfault, for `load_checkpoint`.

    >>> bundled_checkpoints()
    ('bundled:digit_segmenter', 'bundled:digits', 'bundled:digits_fat', 'bundled:mnist_lenet', \
'bundled:mnist_tfc')
    """
    return tuple(f"{BUNDLED}{name}" for name in bundled_names("weights"))


def most_bytes(model: nn.Module) -> int:
    """Largest allowed checkpoint of a network, packed or unpacked, in bytes."""
    tensors = [*model.parameters(), *model.buffers()]
    own = sum(tensor.nbytes for tensor in tensors if not nn.parameter.is_lazy(tensor))
    return _EXTRA_BYTES + _TIMES_NETWORK * own


def read_content(path: Path, prefix: str, most: int, mend: str) -> bytes:
    """Read the file of a checkpoint after checking its kind and size.

    Args:
        path: the file.
        prefix: start of the error messages.
        most: largest allowed size, also of an unpacked archive, in bytes.
        mend: end of the error messages: what the user should do.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is not a regular file, is too large, or cannot be read.
    """
    try:
        content = read_limited(path, most)
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise DataError(f"{prefix} is a folder: name the file in it") from error
    except UnfitFileError as error:
        raise DataError(f"{prefix} {error}; {mend}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{prefix} cannot be read: {quote_error(error)}") from error
    _check_unpacked(content, prefix, most, mend)
    return content


def _check_unpacked(content: bytes, prefix: str, most: int, mend: str) -> None:
    """Check how much an archive holds before unpacking it."""
    if not content.startswith(_ZIP_MAGIC):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # torch will report that this is not a checkpoint
        return
    if unpacked > most:
        raise DataError(
            f"{prefix} is refused: its {size_text(len(content))} unpack to {size_text(unpacked)}, "
            f"allowed: up to {size_text(most)}; {mend}"
        )


def _read(label: str, prefix: str, folder: Path, most: int) -> bytes:
    names = bundled_checkpoints()
    if label in names:
        return bundled_content("weights", label.removeprefix(BUNDLED))
    if label.startswith(BUNDLED):
        raise DataError(
            f"{prefix}: no such weights come with fxfault{nearest(label, names)}; "
            f"there are: {', '.join(names)}"
        )
    try:
        return read_content(folder / expanded(label), prefix, most, _MEND)
    except FileNotFoundError as error:
        raise DataError(
            f"{prefix}: {no_such_file(label)}; check the path, or name one of {', '.join(names)}"
        ) from error


def _unpickle(content: bytes, prefix: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch guesses what an unknown file might be
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything for bytes that are no checkpoint
        is_archive = content.startswith((_ZIP_MAGIC, _PICKLE_MAGIC))
        # torch refuses a TorchScript archive with a RuntimeError.
        is_refusal = isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error)
        if is_archive and is_refusal:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            objects = f" ({found.group(1)}{_place_of(found.group(1), content)})" if found else ""
            raise DataError(
                f"{prefix} is refused: it holds Python objects{objects} beside tensors, and "
                f"reading those would run code from the file; save the weights alone, "
                f"torch.save(model.state_dict(), FILE)"
            ) from error
        raise DataError(
            f"{prefix} is not a PyTorch checkpoint, or is cut short ({len(content)} bytes): "
            f"give it a file written by torch.save(model.state_dict(), FILE)"
        ) from error


def _place_of(name: str, content: bytes) -> str:
    """Say near which text of an archive an object stands; a key stands right before its value."""
    text = ""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (pickled,) = (entry for entry in archive.namelist() if entry.endswith("/data.pkl"))
            for operation, given, _ in pickletools.genops(archive.read(pickled)):
                if operation.name == "GLOBAL" and str(given).replace(" ", ".") == name:
                    return f", near {text[:_SHOWN_TEXT]!r}" if text else ""
                if operation.name.endswith("UNICODE"):
                    text = str(given)
    except Exception:  # A file of any bytes; torch has refused it already.
        pass
    return ""


def _find_state_dict(loaded: Any, prefix: str) -> dict[str, Any]:
    """Unwrap the state_dict, with the metadata in which torch notes format versions."""
    candidate = loaded
    if isinstance(loaded, Mapping):
        wrappers = [key for key in WRAPPER_KEYS if isinstance(loaded.get(key), Mapping)]
        candidate = loaded[wrappers[0]] if wrappers else loaded
    if not isinstance(candidate, dict) or not _is_state_dict(candidate):
        holds = f"a {type(candidate).__name__}"
        if isinstance(candidate, Mapping):
            holds = f"a mapping with {_count(map(str, candidate), 'key')}"
        raise DataError(
            f"{prefix} holds {holds}, no weights: it must hold a state_dict, or a mapping with "
            f"one under {', '.join(WRAPPER_KEYS)}"
        )
    return candidate


def _is_state_dict(candidate: Mapping[Any, Any]) -> bool:
    return bool(candidate) and all(
        isinstance(key, str) and (isinstance(value, torch.Tensor) or key.endswith("_extra_state"))
        for key, value in candidate.items()
    )


def _without_prefix(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    own_keys = set(model.state_dict())
    for prefix in (_attribute_path(state, own_keys), *_PREFIXES, *_PREFIXES):
        # The wrappers' prefixes are tried twice, as they come in either order.
        is_wrapped = all(key.startswith(prefix) for key in state)
        if prefix and is_wrapped and not all(key.startswith(prefix) for key in own_keys):
            consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def _attribute_path(state: Mapping[str, Any], own_keys: set[str]) -> str:
    """Common prefix of all keys if the network was an attribute of the saved object, else "".

    The object may be a LightningModule. At least one key of the network must follow the prefix.
    """
    prefix = ""
    while not any(key.removeprefix(prefix) in own_keys for key in state):
        heads = {key.removeprefix(prefix).partition(".")[::2] for key in state}
        names = {head for head, rest in heads}
        if len(names) != 1 or not all(rest for head, rest in heads):
            return ""
        prefix += f"{names.pop()}."
    return prefix


def _check_finite(state: Mapping[str, Any], own: Mapping[str, torch.Tensor], prefix: str) -> None:
    broken = [key for key, value in state.items() if not is_finite(value, None)]
    if broken:
        raise DataError(
            f"{prefix} has NaN or infinite values in {_count(broken, 'tensor')}: the training "
            f"that wrote it diverged, take an earlier checkpoint"
        )
    broken = [key for key, value in state.items() if not is_finite(value, own.get(key))]
    if broken:
        raise DataError(
            f"{prefix} has values in {_count(broken, 'tensor')} that are beyond what the "
            f"network's dtype can hold: save the weights in the dtype that they were trained in"
        )


def _check_fits(
    state: dict[str, Any], model: nn.Module, own: Mapping[str, torch.Tensor], prefix: str
) -> None:
    """Check that a state_dict fits by loading it into a copy of the network.

    Comparing keys is not enough: `state_dict()` leaves out a scale that Brevitas calibrates at run
    time until a training-mode forward has run, but a trained checkpoint has it.
    """
    shapes = {
        key: f"{tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        # torch itself takes a vector of one element for a scalar.
        if key in own
        and value.shape != own[key].shape
        and not (own[key].dim() == 0 and tuple(value.shape) == (1,))
    }
    fitted = type(state)((key, value) for key, value in state.items() if key not in shapes)
    if hasattr(state, "_metadata"):
        fitted._metadata = state._metadata  # type: ignore[attr-defined]
    try:
        outcome = copy.deepcopy(model).load_state_dict(fitted, strict=False)
    except Exception as error:  # the user's network may raise anything
        raise DataError(f"{prefix} cannot be loaded: {quote_error(error)}") from error
    problems = {
        "missing": [key for key in outcome.missing_keys if key not in shapes],
        "unexpected": list(outcome.unexpected_keys),
    }
    complaints = [_count(keys, f"{kind} key") for kind, keys in problems.items() if keys]
    if shapes:
        complaints.append(_count([f"{key} {text}" for key, text in shapes.items()], "wrong shape"))
    if complaints:
        raise DataError(
            f"{prefix} does not fit the network: {'; '.join(complaints)}. {_hint(problems, shapes)}"
        )


def _hint(problems: Mapping[str, list[str]], shapes: Mapping[str, str]) -> str:
    is_clean = not problems["unexpected"] and not shapes
    if is_clean and all(".tensor_quant." in key for key in problems["missing"]):
        return (
            "Only parameters of quantisers are missing: it was saved before a forward in training "
            "mode had calibrated them, or from a network that was not quantised"
        )
    return "Build the network with the name, the widths and the classes that it was trained with"


def _count(names: Iterable[str], noun: str) -> str:
    """Count keys and show the first few, without the parts of quantisers that only Brevitas names.

    >>> _count(["a", "b", "c", "d"], "missing key")
    '4 missing keys (a, b, c, ...)'
    >>> _count(["a"], "missing key")
    '1 missing key (a)'
    >>> _count(["0.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"], "key")
    '1 key (0.act_quant)'
    """
    listed = list(names)
    told = list(dict.fromkeys(_INSIDE.sub(r"\1", name) for name in listed))
    shown = ", ".join(told[:_SHOWN_KEYS]) + (", ..." if len(told) > _SHOWN_KEYS else "")
    return f"{len(listed)} {noun}{'' if len(listed) == 1 else 's'} ({shown})"


def _load_in_place(state: dict[str, Any], model: nn.Module) -> None:
    """Load a state_dict, and restore device and mode of the quantisers that Brevitas rebuilds.

    Brevitas builds them on the CPU (0.12 to 0.13) and in training mode (0.12).
    """
    devices = {parameter.device for parameter in model.parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    model.load_state_dict(state, strict=True)
    for name, module in model.named_modules():
        module.training = modes.get(name, module.training)
    if len(devices) == 1:
        model.to(devices.pop())
