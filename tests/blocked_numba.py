"""What faults do to every kind of word, as hashes; with Numba, and in a process without it.

`python tests/blocked_numba.py` prints them as JSON from a process in which `import numba` fails.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["numba"] = None  # type: ignore[assignment]
    sys.path.insert(0, str(Path(__file__).parent))

import torch
from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant.binary import SignedBinaryActPerTensorConst
from functional_tools import EVERY_KIND, MODELS, chain, data, fixed_scale
from torch import Tensor, nn

import fxfault
from fxfault.faults import kernels

MASKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"injection_type": model}, {"probability": 20.0}) for model in MODELS
]
KINDS = EVERY_KIND + MASKS


def words() -> nn.Module:
    """Signed, unsigned and narrow words of 1 to 8 bits, and a binary one."""
    widths = range(8, 0, -1)
    signed = [fixed_scale(bits) for bits in widths if bits > 1]
    narrow = [fixed_scale(bits, narrow_range=True) for bits in widths if bits > 1]
    unsigned = [
        QuantReLU(
            bit_width=bits, scaling_impl_type="const", scaling_init=2.0, return_quant_tensor=True
        )
        for bits in widths
    ]
    binary = QuantIdentity(SignedBinaryActPerTensorConst, return_quant_tensor=True)
    return chain(*signed, *narrow, binary, *unsigned, nn.Identity())


def stored() -> nn.Module:
    """Words of weights with a scale for each tensor and for each channel."""
    torch.manual_seed(0)
    per_channel: dict[str, Any] = {"weight_scaling_per_output_channel": True}
    return chain(
        QuantIdentity(bit_width=8, return_quant_tensor=True),
        QuantConv2d(3, 4, 3, weight_bit_width=4, bias=False),
        QuantReLU(bit_width=4),
        QuantConv2d(4, 4, 3, weight_bit_width=3, bias=False, **per_channel),
        nn.Flatten(),
        QuantLinear(64, 5, bias=False, weight_bit_width=8),
    )


def floats() -> nn.Module:
    torch.manual_seed(0)
    return chain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Tanh())


ALWAYS = {"enabled": True, "apply_during": "both", "seed": 5}

CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "words": (words, {}, (3, 4, 4, 4)),
    "stored words": (stored, {"memory": "weights"}, (3, 3, 8, 8)),
    "float words": (floats, {"word": "ieee", "targets": ["ReLU", "Tanh"]}, (3, 3, 8, 8)),
}


def digest(x: Any) -> str:
    value: Tensor = getattr(x, "value", x)
    return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()[:16]


def outcome(faulty: Any, x: Tensor, settings: dict[str, Any]) -> str:
    """The hashes of an output, and of the counts and the list of the faults in it."""
    try:
        faulty.faults.set_faults(fxfault.FaultInjectionConfig(**settings))
        faulty.faults.reset(trial=3)
        statistics = faulty.faults.new_statistics()
        output = digest(faulty(x))
        struck = faulty.faults.listing(trial=3, samples=len(x))
    except fxfault.FxFaultError as error:  # Some fault models strike no float word.
        return f"{type(error).__name__}: {error}"
    told = json.dumps([statistics.to_dict(), struck.csv_text()], sort_keys=True)
    return f"{output} {hashlib.sha256(told.encode()).hexdigest()[:16]}"


@torch.no_grad()
def found() -> dict[str, str]:
    """The outcome of each kind of fault in each case."""
    results = {}
    for case, (network, settings, shape) in CASES.items():
        x = data(*shape)
        faulty = fxfault.transform(network(), {**ALWAYS, **settings})
        faulty.faults.measure(x)
        for model, rate in KINDS:
            given = {**ALWAYS, **settings, **model, **rate}
            results[f"{case}: {model} {rate}"] = outcome(faulty, x, given)
    return results


if __name__ == "__main__":
    json.dump({"numba": kernels.HAVE_NUMBA, "found": found()}, sys.stdout)
