"""The installations that fxfault is tested on: `nox --session matrix`, by hand.

CI runs one set of versions (`constraints.txt`). This runs the tests of what depends on versions:
passes, faults, freezing, compiling, incremental runs, stored words, a campaign and `fxfault eval`.
It needs `pip install nox`, the Pythons, and 7 GB of disk for one set at a time. Run one set by
`nox --session "matrix(oldest)"`. docs/installation.md has the table of what ran.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import nox

nox.options.sessions = ["matrix"]
nox.needs_version = ">=2024.4.15"


class Set(NamedTuple):
    """Versions to install together; an empty one takes the newest.

    Attributes:
        python: the Python.
        torch, torchvision, brevitas: their versions.
        others: further requirements.
    """

    python: str
    torch: str
    torchvision: str
    brevitas: str
    others: tuple[str, ...] = ("numba",)


OLDEST = ("numba==0.61.0", "numpy==1.26.4", "pydantic==2.7.0", "PyYAML==6.0")
SETS = {
    "oldest": Set("3.10", "2.6.0", "0.21.0", "0.12.0", OLDEST),
    "old": Set("3.11", "2.6.0", "0.21.0", "0.12.0"),
    "middle": Set("3.12", "2.9.1", "0.24.1", "0.13.0"),
    "newest": Set("3.11", "", "", ""),
    "newest-python": Set("3.13", "", "", ""),
}
TESTS = """
    test_blocked_numba.py test_checkpoints.py test_codes.py test_compile.py
    test_compiled_runner.py test_fault_models.py test_float_sites.py test_float_tensors.py
    test_float_words.py test_freeze.py test_functional.py test_functional_draws.py
    test_functional_gradients.py test_grouped_sites.py test_incremental.py inner_quantisers
    test_models.py
    test_passes.py test_passes_around_forwards.py test_random_numbers.py test_sampling.py
    test_stored_layers.py test_stored_sites.py test_surgery.py cli_evaluate
""".split()
TOOLS = tuple(
    "pytest>=8 hypothesis ml_dtypes jinja2 matplotlib scikit-learn scipy shtab tqdm".split()
)


@nox.session(venv_backend="venv")
@nox.parametrize("name", [nox.param(name, id=name) for name in SETS])
def matrix(session: nox.Session, name: str) -> None:
    """Test one set of versions in an environment of its own, and delete it."""
    chosen = SETS[name]
    python = shutil.which(f"python{chosen.python}")
    if python is None:
        session.skip(f"there is no python{chosen.python}")
    place = Path(session.create_tmp()) / "environment"
    inside = str(place / "bin" / "python")
    session.run(python, "-m", "venv", "--clear", str(place), external=True)
    versions = [
        f"{package}=={version}" if version else package
        for package, version in zip(chosen._fields[1:4], chosen[1:4], strict=True)
    ]
    install = (inside, "-m", "pip", "install", "--no-cache-dir", "--quiet")
    try:
        session.run(*install, *versions, *chosen.others, *TOOLS, external=True)
        session.run(*install, "--editable", ".", external=True)
        session.run(inside, "-m", "pip", "check", external=True, success_codes=[0, 1])
        files = [f"tests/{test}" for test in TESTS]
        session.run(inside, "-m", "pytest", "--quiet", *files, *session.posargs, external=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
