"""A first configuration for a network of the user's own, with comments and its sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fxfault.messages import aligned, counted

MOST_SITES = 100  # Of a memory; the network of a user may have thousands.

_ABOUT = """\
Relative paths start from the folder in which a command is run. docs/configuration.md explains
all keys."""
_MODEL = """\
Your network: package.module:factory, from the current folder, PYTHONPATH or an installed
package. `kwargs: {...}` in this section are arguments of the factory."""
_DATA = """\
The data: package.module:factory, which is called with split="test" and returns a data set of
pairs of a float image and the number of its class; or the name of a built-in data set."""
_NO_DATA = """\
The data. Write here what gives it, and remove the # signs: package.module:factory, which is
called with split="test" and returns a data set of pairs of a float image and the number of its
class; or the name of a built-in data set, such as mnist.
dataset:
  name: my_package.data:make"""
_CHECKPOINT = """\
The weights are as the factory made them. If it does not load trained ones, name a file from
torch.save(model.state_dict(), "weights.pt"):
checkpoint:
  path: weights.pt"""
_METRIC = """\
What is measured is the accuracy of a classifier. For another task name a metric, such as psnr,
mean_iou, perplexity, or your own as package.module:function (docs/your-own-task.md):
metric: psnr"""
_FAULTS = """\
The faults: injection_type is random, lsb_flip, msb_flip, full_flip, bit_flip, stuck_at_0,
stuck_at_1 or burst, and probability is in percent. layers: [...] selects some of the sites
below by name, pattern or number (in quotes, '1' is a name); memory says which kind is struck."""


def first_file(
    command: str,
    file: str,
    content: Mapping[str, Any],
    sites: Sequence[Any],
    skipped: Iterable[str],
) -> str:
    r"""Write a configuration as YAML with comments.

    >>> text = first_file("fxfault init m:n", "f.yaml", {"model": {"name": "m:n"}}, [], [])
    >>> print("\n".join(text.splitlines()[:2]))
    # Written by: fxfault init m:n
    # Where faults would strike:   fxfault inspect f.yaml

    Args:
        command: the command line that asks for it.
        file: the path of the file that will hold it.
        content: the sections, by name.
        sites: the rows of an inspection, with `name`, `memory`, `module_type` and `bit_width`.
        skipped: paths of layers that cannot be struck.
    """
    named = {"model": _MODEL, "dataset": _DATA, "fault_injection": _FAULTS}
    absent = {"dataset": _NO_DATA, "checkpoint": _CHECKPOINT, "metric": _METRIC}
    head = [
        f"Written by: {command}",
        f"Where faults would strike:   fxfault inspect {file}",
        f"The accuracy under faults:   fxfault eval {file} --num-runs 5",
        *_ABOUT.splitlines(),
    ]
    parts = [_commented("\n".join(head))]
    others = [name for name in content if name not in {**named, **absent}]
    for name in ("model", "dataset", "checkpoint", "metric", *others, "fault_injection"):
        if name in content:
            text = _commented(named[name]) if name in named else ""
            parts.append(text + _yaml({name: content[name]}))
        elif name in absent:
            parts.append(_commented(absent[name]))
    listed = _sites(sites, list(skipped))
    return "\n".join([*parts, *([_commented(listed)] if listed else [])])


def _commented(text: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())


def _yaml(content: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=90)


def _sites(sites: Sequence[Any], skipped: Sequence[str]) -> str:
    """The tables of the sites of each memory."""
    lines: list[str] = []
    for memory in dict.fromkeys(site.memory for site in sites):
        here = [site for site in sites if site.memory == memory]
        lines += [f"memory: {memory} ({counted(len(here), 'site')}):"]
        rows = [
            (str(number), site.name, site.module_type, _width(site.bit_width))
            for number, site in enumerate(here[:MOST_SITES])
        ]
        lines += [f"  {row}" for row in aligned(rows, right=[0, 3])]
        if len(here) > MOST_SITES:
            lines += [f"  and {len(here) - MOST_SITES} more, which fxfault inspect lists"]
    if skipped:
        lines += ["Layers that faults cannot strike: " + ", ".join(skipped)]
    return "\n".join(lines)


def _width(bits: int | None) -> str:
    return "width not known before a forward" if bits is None else counted(bits, "bit")
