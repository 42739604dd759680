"""Every example in the documentation and in docstrings runs, and the reference is current."""

from __future__ import annotations

import configparser
import doctest
import importlib
import re
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from fxfault.bundled.files import bundled_names
from fxfault.campaign import Study
from fxfault.cli import campaign
from fxfault.cli.main import COMMANDS
from fxfault.config import config_reference
from fxfault.experiment import experiment_reference
from fxfault.experiment.sections import ExperimentConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = {"fxfault": "fxfault", "passes": "fxfault.passes", "cli": "fxfault.cli"}
MODULES = sorted(
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
    for folder, package in FOLDERS.items()
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)
# Modules that import what no extra for tests installs.
NEEDS = {"fxfault.campaign.workers.ray_engine": "ray"}
FLAGS = doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples may register fault models; nobody else should see them."""
    from fxfault.faults import fault_models

    monkeypatch.setattr(fault_models, "_REGISTRY", dict(fault_models._REGISTRY))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page_run(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False, optionflags=FLAGS)
    assert result.failed == 0


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of code of a kind on a page, without examples of a session."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(rf"^ *```{kind}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in found if ">>>" not in block]


# Those of the tutorial and of the sentence encoder have tests of their own.
SCRIPTS = ["paper-figures.md", "recipes.md"]


@pytest.mark.parametrize("page", SCRIPTS)
def test_scripts_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from brevitas.nn import QuantReLU
    from torch import nn

    import fxfault

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    model = nn.Sequential(QuantReLU(bit_width=4), nn.Linear(6, 3)).eval()
    loader = [(torch.rand(8, 6), torch.arange(8) % 3)]
    given = {"fxfault": fxfault, "model": model, "lenet": model, "tfc": model, "loader": loader}
    given |= {"config": {"seed": 1, "probability": 5.0}, "rates": [1, 10]}
    scripts = blocks(page, "python")
    for script in scripts:
        exec(script, dict(given))
    if "matplotlib.pyplot" in sys.modules:  # It keeps the figures of a script.
        sys.modules["matplotlib.pyplot"].close("all")
    assert len(list(tmp_path.glob("*.pdf"))) == len(scripts) == 1


def test_the_reference_has_every_public_name() -> None:
    import fxfault

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"auto(?:function|class):: (?:fxfault\.errors\.)?(\w+)$", page, re.M))
    errors = set(vars(importlib.import_module("fxfault.errors")))
    public = {name for name in dir(fxfault) if callable(getattr(fxfault, name))}
    models = {name for name in public if name.endswith("Strategy")} - {"InjectionStrategy"}
    assert public - listed - errors <= models


def test_every_script_of_the_pages_is_run() -> None:
    have = {
        page.name for page in PAGES if page.parent.name == "docs" and blocks(page.name, "python")
    }
    assert have == {*SCRIPTS, "tutorial.md", "real-networks.md"}


@pytest.mark.parametrize("page", [page.name for page in PAGES if page.parent.name == "docs"])
def test_configurations_of_a_page_are_valid(page: str) -> None:
    base = {"dataset": {"name": "digits"}, "model": {"name": "quant_digits"}}
    base |= {"checkpoint": {"path": "weights.pt"}}
    for block in blocks(page, "yaml"):
        content = {**base, **yaml.safe_load(block)}
        if "axes" in content or "stop" in content:
            rest = {} if "stop" in content else {"trials": 2}
            Study.from_dict({"axes": {"probability": 1.0}, **rest, **content})
        else:
            ExperimentConfig.from_dict(content)


@pytest.mark.parametrize("name", ["fxfault", *MODULES])
def test_examples_of_a_module_run(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    assert doctest.testmod(importlib.import_module(name), optionflags=FLAGS).failed == 0


def test_every_package_of_the_checkout_is_installed() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    folders = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py"
    }
    assert listed == folders


def test_every_file_of_the_checkout_that_is_no_code_is_installed() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    installed = {ROOT / "fxfault" / "py.typed"}
    for package, patterns in settings["options.package_data"].items():
        # fxfault.cli is the folder cli, and so on.
        folder = ROOT.joinpath(*package.removeprefix("fxfault.").split("."))
        folder = folder if folder.is_dir() else ROOT.joinpath(*package.split("."))
        for pattern in patterns.split(","):
            installed |= set(folder.glob(pattern.strip()))
    data = {
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".nbi", ".nbc")
    }
    assert data == installed


def test_reference_of_the_configuration_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert experiment_reference().strip() in page
    assert config_reference().strip() in page
    assert all(f"`{name}`" in page for name in bundled_names("experiments"))


# -- links ------------------------------------------------------------------------------------

LINKED = [*PAGES, *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))]
TEXTS = [
    *LINKED,
    *(ROOT / name for name in ("CITATION.cff", "setup.cfg", "pyproject.toml")),
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))),
    *sorted((ROOT / "examples").glob("*.py")),
]


def prose(page: Path) -> str:
    """The text of a page without its code, in which brackets mean other things."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,4} (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        again = sum(
            name == slug or re.fullmatch(rf"{slug}-\d+", name) is not None for name in found
        )
        found.add(f"{slug}-{again}" if again else slug)
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]*)\)", prose(page))
    assert len(links) == prose(page).count("]("), "a link has a space or no end"
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" not in link:
            other = page.parent / target if target else page
            assert other.exists(), link
            assert not anchor or anchor in anchors(other), link


def test_what_texts_name_is_there() -> None:
    """Pages that code and messages name exist; outside links have a scheme and a host.

    Whether an outside link leads anywhere is asked before a release only (`RELEASING.md`): it
    depends on a network and on others.
    """
    outside = 0
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for named in re.findall(r"docs/[\w-]+\.md", text):
            assert (ROOT / named).exists(), f"{path} names {named}"
        for link in re.findall(r"https?:[^\s<>\"'`)\]]+", text):
            host = urlsplit(link).hostname or ""
            assert re.fullmatch(r"([a-z\d-]+\.)+[a-z]{2,}", host), f"{path} links to {link}"
            outside += 1
    assert outside > 5


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# `A_b` & c, d-e\n## Two\n```\n# no\n```\n## Two\n", encoding="utf-8")
    assert anchors(page) == {"a_b--c-d-e", "two", "two-1"}


def test_commands_in_the_documentation_have_the_options_that_they_use() -> None:
    pages = (page.read_text(encoding="utf-8") for page in PAGES)
    text = "\n".join(pages).replace("\\\n", " ")
    names = "|".join(COMMANDS)
    start = r"^\s*(?:\$ )?(?:\S*/)?fxfault[ -]"
    lines = re.findall(rf"{start}((?:{names}) .*)$", text, re.MULTILINE)
    assert {line.split()[0] for line in lines} == set(COMMANDS)
    helps = {name: _help_of(command.main) for name, command in COMMANDS.items()}
    helps["campaign"] += "".join(_help_of(campaign.main, name) for name in campaign.COMMANDS)
    for line in lines:
        name, *words = shlex.split(line.split("|")[0])
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in helps[name], line


def _help_of(main, *words: str) -> str:  # type: ignore[no-untyped-def]
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main([*words, "--help"], "fxfault")
    return out.getvalue()
