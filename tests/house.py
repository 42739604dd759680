"""The rooms of the code, from top to bottom, and the imports between them.

`python -m tests.house` prints the counts; `tests/test_architecture.py` enforces the rule.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A file imports only files of its own room and of rooms below. A module is in the room that is its
# longest prefix.
ROOMS = (
    "fxfault.cli",
    "fxfault.cli.terminal",
    "fxfault.lightning",
    "fxfault.training",
    "fxfault.results.calls",
    "fxfault.results",
    "fxfault.results.page",
    "fxfault.results.pictures",
    "fxfault.results.reports",
    "fxfault.campaign",
    "fxfault.campaign.workers",
    "fxfault.campaign.records",
    "fxfault.campaign.estimates",
    "fxfault.campaign.studies",
    "fxfault.experiment",
    "fxfault.networks",
    "fxfault.models",
    "fxfault.evaluation",
    "fxfault.evaluation.incremental",
    "fxfault.evaluation.full",
    "fxfault.metrics",
    "fxfault.passes",
    "fxfault.passes.tracing",
    "fxfault.functional",
    "fxfault.strike",
    "fxfault.sites",
    "fxfault.quantisers",
    "fxfault.config",
    "fxfault.faults",
    "fxfault.data",
    "fxfault.files",
    "fxfault.bundled",
    "fxfault",  # Loose files: errors, messages, factories; and the lazy front door.
)
FRONT_DOOR = "fxfault"
# What users enter by may lead anywhere: the front door, and `python -m fxfault`.
DOORS = (FRONT_DOOR, "fxfault.__main__")


@dataclass(frozen=True)
class Import:
    """An import of one file by another, at its start or within a function.

    Attributes:
        importer: name of the importing module.
        imported: name of the imported module.
        types_only: whether only type checkers run the import.
    """

    importer: str
    imported: str
    types_only: bool


def room_of(module: str) -> str:
    """Return the room of a module.

    >>> room_of("fxfault.campaign.workers.engines"), room_of("fxfault.errors")
    ('fxfault.campaign.workers', 'fxfault')
    """
    fitting = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len)


def modules() -> dict[str, Path]:
    """Return the files of the package by their import names."""
    found = {}
    for folder, prefix in (("fxfault", ""), ("passes", "fxfault."), ("cli", "fxfault.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[prefix + name.removesuffix(".__init__")] = path
    return found


def imports() -> list[Import]:
    """Return every import between files of the package, except imports of an `__init__.py`."""
    files = modules()
    found = set()
    for importer, path in files.items():
        for name, types_only in _imported(path):
            imported = name if name in files else name.rpartition(".")[0]
            is_face = files.get(imported, path).name == "__init__.py"
            if imported in files and imported != importer and not is_face:
                found.add(Import(importer, imported, types_only))
    return sorted(found, key=lambda i: (i.importer, i.imported, i.types_only))


def _imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each import of a file, as `module` or `module.name`, and whether it is types only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((name, id(node) in typing) for name in names)


def upward(arrows: list[Import]) -> list[Import]:
    """Return the imports of a room above; the doors are allowed them."""
    place = {room: number for number, room in enumerate(ROOMS)}
    return [
        arrow
        for arrow in arrows
        if arrow.importer not in DOORS
        and place[room_of(arrow.imported)] < place[room_of(arrow.importer)]
    ]


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other.

    >>> circles({("a", "b"), ("b", "a"), ("b", "c")})
    [['a', 'b']]
    """
    reached = {node: {node} for edge in edges for node in edge}
    grew = True
    while grew:
        grew = False
        for start, end in edges:
            missing = reached[end] - reached[start]
            reached[start] |= missing
            grew = grew or bool(missing)
    groups = {
        tuple(sorted(other for other in reached[node] if node in reached[other]))
        for node in reached
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def levels(edges: set[tuple[str, str]]) -> int:
    """Count the levels: outer rooms on the longest path down.

    >>> levels({("fxfault.cli.terminal", "fxfault.cli"), ("fxfault.cli", "fxfault.files")})
    2
    """
    below: dict[str, set[str]] = {}
    for start, end in edges:
        below.setdefault(_outer(start), set()).add(_outer(end))

    def depth(room: str) -> int:
        return 1 + max(map(depth, below.get(room, set()) - {room}), default=0)

    return max(map(depth, below))


def _outer(room: str) -> str:
    return ".".join(room.split(".")[:2])


def main() -> int:
    """Print the counts; return 1 if the rule is broken."""
    arrows = [arrow for arrow in imports() if arrow.importer not in DOORS]
    real = [arrow for arrow in arrows if not arrow.types_only]
    files = {(arrow.importer, arrow.imported) for arrow in real}
    rooms = {(room_of(a), room_of(b)) for a, b in files if room_of(a) != room_of(b)}
    wrong, loops = upward(arrows), circles(files)
    here = [name for name, path in modules().items() if path.parent == ROOT / "fxfault"]
    loose = [name for name in here if name not in DOORS]
    print(
        f"{len(ROOMS)} rooms, {levels(rooms) if not circles(rooms) else '?'} levels, "
        f"{len(rooms)} arrows, circles = {len(loops)}, upward = {len(wrong)}, "
        f"{len(loose)} files loose in fxfault/"
    )
    for arrow in wrong:
        print(f"upward: {arrow.importer} imports {arrow.imported}" + arrow.types_only * " (types)")
    for loop in loops:
        print("circle: " + ", ".join(loop))
    return 1 if wrong or loops else 0


if __name__ == "__main__":
    sys.exit(main())
