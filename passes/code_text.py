"""The code that was generated for a model, and what faults changed in it.

>>> import fxfault
>>> from brevitas.nn import QuantReLU
>>> model = fxfault.transform(nn.Sequential(QuantReLU(bit_width=4)), {"enabled": True})
>>> [line for line in diff(model).splitlines() if "fault_inject(" in line][0].split(";")[0]
'+    fault_inject = fxfault_functional_fault_inject(_0, faults__0)'
"""

from __future__ import annotations

import difflib

from torch import nn

from fxfault.passes.layer_quantisers import sites_struck_inside
from fxfault.passes.tracing.containers import containers_of
from fxfault.passes.tracing.traced_module import TracedModule
from fxfault.passes.transform import strip
from fxfault.sites.fault_sites import faults_of


def code_of(model: nn.Module) -> str:
    """The code that was generated for a model and for the modules below it.

    If a module has different code for evaluation and for training, both are given. A module that
    keeps its own forward has no code; a comment names it.

    Args:
        model: the result of `fxfault.transform`, `fxfault.strip` or `fxfault.passes.trace`.

    Raises:
        SiteError: no code was generated for the model.
    """
    if not containers_of(model):
        faults_of(model)
    codes = [f"# {label}\n{code}" for label, code in _codes(model).items()]
    return "\n\n".join([*codes, "\n".join(_notes_on_kept(model))]).strip("\n") + "\n"


def diff(model: nn.Module) -> str:
    """The unified diff between a model's generated code without and with faults.

    Args:
        model: the result of `fxfault.transform`.

    Returns:
        A diff from `clean/PATH` to `injected/PATH` for each module with code. Comments at the end
        name the sites that are struck inside their layer, which no diff can show.

    Raises:
        SiteError: the model was not transformed.
    """
    faults_of(model)
    clean, injected = _codes(strip(model)), _codes(model)
    lines: list[str] = []
    for label, code in injected.items():
        before, after = clean[label].splitlines(), code.splitlines()
        labels = f"clean/{label}", f"injected/{label}"
        lines += difflib.unified_diff(before, after, *labels, lineterm="")
    return "\n".join([*lines, *_notes_on_kept(model)]) + "\n"


def _codes(model: nn.Module) -> dict[str, str]:
    """Generated code by path, with the mode after it if a module has two codes."""
    codes: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, TracedModule):
            label = path or type(model).__name__
            train_code = module.train_code
            codes[label if train_code is None else f"{label} (eval)"] = module.code.strip()
            if train_code is not None:
                codes[f"{label} (train)"] = train_code.strip()
    return codes


def _notes_on_kept(model: nn.Module) -> list[str]:
    notes = [
        f"# {c.path or c.type} keeps its own forward: {c.reason}"
        for c in containers_of(model)
        if c.handling == "kept"
    ]
    inside = [site for module in model.modules() for site in sites_struck_inside(module)]
    names = dict.fromkeys(site.name for site in inside)  # Two layers may read one weight.
    return notes + [f"# {name}: struck inside the layer" for name in names]
