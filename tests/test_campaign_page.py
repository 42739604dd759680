"""The report's page as a file: what it holds, that it is whole, and that it asks for nothing."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from campaign_page_tools import HOSTILE, SITES, page_of, residual, write_store

from fxfault.campaign import Cell, Study
from fxfault.campaign.records.store import Store
from fxfault.cli import campaign
from fxfault.results.page import html as campaign_page
from fxfault.results.page.figures import inlined

VOID = {"meta", "link", "input", "br", "hr", "img"}
SECTIONS = [
    *("verdict", "weak", "faults", "accuracy", "network"),
    *("all-sites", "all-cells", "run", "repeat"),
]


class Page(HTMLParser):
    """Reads a page; fails where an element is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a small study."""
    folder = tmp_path_factory.mktemp("page")
    write_store(folder / "study.sqlite", residual())
    return page_of(folder / "study.sqlite", folder / "report.html")


def test_the_page_has_every_section_with_its_headings_in_order(text: str) -> None:
    page = Page(text)

    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(second <= first + 1 for first, second in pairwise(levels))
    assert [heading["id"] for heading in page.of("h2")] == SECTIONS
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    links = [link["href"] for link in page.of("a")]
    assert all(link is not None and link[0] == "#" and link[1:] in ids for link in links)
    assert {f"#{name}" for name in SECTIONS} <= set(links)
    named = [
        name
        for _, attributes in page.elements
        for key in ("aria-labelledby", "for")
        for name in (attributes.get(key) or "").split()
    ]
    assert set(named) <= set(ids)


def test_the_page_names_no_address_outside_itself(text: str) -> None:
    page = Page(text)

    # Not even a name space, which would be no request.
    assert re.findall(r"[a-z]+://", text) == []
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:")), value
    assert not re.search(r"@import|url\((?!#)", text)
    policy = page.of("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy


def test_figures_are_named_and_follow_the_scheme_of_the_page(text: str) -> None:
    page = Page(text)

    figures = page.of("svg")
    # One for wide and one for narrow screens; the network is narrow anyway.
    assert [figure["role"] for figure in figures] == [*["img"] * 6, "group"]
    assert len(page.of("figcaption")) == 4
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "#000000" not in drawn
    assert "var(--c000000)" in drawn
    used = set(re.findall(r"var\((--c[0-9a-f]{6})\)", drawn))
    both = [set(re.findall(r"(--c[0-9a-f]{6}):", rule)) for rule in text.split(":root {")[-2:]]
    assert used <= both[0] == both[1]
    assert "font-family" not in drawn


def test_tables_have_captions_and_scopes_and_the_numbers_of_the_store(tmp_path: Path) -> None:
    write_store(tmp_path / "s.sqlite", residual())
    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")
    page = Page(text)

    tables = page.of("table")
    assert len(page.of("caption")) == len(tables) == 7
    assert all(head["scope"] in ("col", "row") for head in page.of("th"))
    rows = rows_of(text, "sites")
    assert rows[0][:7] == [
        "Site", "#", "Layer", "Bits", "Signed", "Elements", "Share",
    ]  # fmt: skip
    never, weak = rows[1], rows[2]
    assert never == [SITES[0], "0", "QuantReLU", "4", "no", "64", "10.00", "0", *["-"] * 6]
    with Store.open(tmp_path / "s.sqlite") as store:
        mine = [row for row in store.rows() if Cell.from_key(row.cell).layers == (SITES[1],)]
    struck, sdc = sum(row.struck for row in mine), sum(row.sdc for row in mine)
    assert weak[:-1] == [
        SITES[1], "1", "QuantReLU", "8", "yes", "128", "20.00", "16", "800", "1",
        f"{struck / 80:.2f}", f"{100 - 100 * sdc / struck:.2f}", f"{sdc / 80:.2f}",
    ]  # fmt: skip
    ranked = rows_of(text, "ranking")
    assert [row[0] for row in ranked[1:]] == [SITES[1], SITES[2], SITES[3]]
    assert ranked[1][3].startswith(weak[-1])
    assert len(rows_of(text, "cells")) == 1 + 4 * 4


def rows_of(text: str, table: str) -> list[list[str]]:
    """The texts of a table, row by row."""
    found = re.search(rf'<table id="{table}".*?</table>', text, re.DOTALL)
    assert found is not None
    rows = re.findall(r"<tr.*?</tr>", found[0], re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_page_says_how_to_repeat_the_study(tmp_path: Path) -> None:
    study = write_store(tmp_path / "s.sqlite", residual())

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html", "--confidence", "99")

    commands, content = re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    assert commands.splitlines() == [
        "fxfault campaign run study.yaml --store study.sqlite --device cuda --threads 1",
        "fxfault campaign report --store study.sqlite --html report.html --confidence 99",
    ]
    assert Study.from_dict(yaml.safe_load(content.replace("&#39;", "'"))) == study
    assert ["torch", "2.13.0"] in rows_of(text, "code")
    assert ["networks bundled:digits state", "cd" * 32] in rows_of(text, "fingerprint")
    assert "2026-11-22 05:00:00 UTC" in text
    assert "99 % intervals" in text


def test_what_comes_from_the_store_is_text(tmp_path: Path) -> None:
    sites = (*SITES[:2], HOSTILE, SITES[3])
    store = tmp_path / "<img src=x onerror=alert(1)>.sqlite"
    write_store(store, residual(sites), sites)

    text = page_of(store, tmp_path / "r.html")

    page = Page(text)
    assert len(page.of("script")) == 1
    assert page.of("img") == []
    assert "&lt;script&gt;document.title" in text
    assert "&lt;img src=x onerror" in text
    assert [key for _, a in page.elements for key in a if key.startswith("on")] == []


def test_a_store_of_an_earlier_version_has_a_page_without_a_drawing(tmp_path: Path) -> None:
    write_store(tmp_path / "s.sqlite")

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    assert len(Page(text).of("svg")) == 6
    assert "made by a version that did not note the network" in text
    assert [row[:4] for row in rows_of(text, "sites")[1:]] == [
        [name, str(index), "-", "-"] for index, name in enumerate(SITES[1:])
    ]


def test_sites_struck_together_have_no_ranking_on_the_page(tmp_path: Path) -> None:
    axes = {"layers": "all", "probability": [1, 5]}
    write_store(tmp_path / "s.sqlite", residual(), axes=axes)

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    headings = [heading["id"] for heading in Page(text).of("h2")]
    assert headings == [name for name in SECTIONS if name not in ("weak", "faults")]
    assert len(Page(text).of("svg")) == 3


def test_faults_that_strike_together_and_counted_ones_have_a_page(tmp_path: Path) -> None:
    several = [{"injection_type": name, "probability": 1} for name in ("random", "msb_flip")]
    write_store(tmp_path / "k.sqlite", residual(), axes={"layers": "each", "num_faults": 3})
    write_store(tmp_path / "s.sqlite", residual(), axes={"faults": {"both": several}})

    counted = page_of(tmp_path / "k.sqlite", tmp_path / "k.html")
    together = page_of(tmp_path / "s.sqlite", tmp_path / "s.html")

    assert "Accuracy lost (percentage points) at 3 faults per sample" in counted
    assert [row[2] for row in rows_of(counted, "cells")[1:]] == ["k = 3"] * 3
    assert rows_of(together, "cells")[1][:3] == ["all", "both", "-"]
    assert len(Page(together).of("svg")) == 1


def test_a_table_of_very_many_cells_is_cut_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "s.sqlite", residual())
    monkeypatch.setattr(campaign_page, "MOST_ROWS", 3)

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    assert len(rows_of(text, "cells")) == 4
    assert "It has 13 cells more, too." in text


def test_pictures_of_the_page_are_those_of_the_folder(tmp_path: Path) -> None:
    write_store(tmp_path / "s.sqlite", residual())
    options = ["--figures", str(tmp_path / "pictures")]

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html", *options)

    names = ["accuracy", "ranking", "heat_map", "network"]
    files = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert files == {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    assert [f'id="figure-{n.replace("_", "-")}-title"' in text for n in names] == [True] * 4


@pytest.mark.parametrize(
    ("html", "part"),
    [
        ("no/r.html", "--html: no/r.html cannot be written: the folder"),
        ("s.sqlite", "--html: s.sqlite is the store; name another file"),
        (".", "--html: . is a folder: name a file in it"),
    ],
)
def test_a_page_that_cannot_be_written_is_one_line_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    html: str,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_store(Path("s.sqlite"), residual())
    before = Path("s.sqlite").read_bytes()

    status = campaign.main(["report", "--store", "s.sqlite", "--html", html])

    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {part}")
    assert err.count("\n") == 1
    assert Path("s.sqlite").read_bytes() == before


def test_without_matplotlib_the_flag_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert campaign.main(["report", "--store", "s", "--html", str(tmp_path / "r.html")]) == 2

    expected = '--html: matplotlib is not installed; pip install "fxfault[cli]"'
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "loaded"), [([], []), (["--html", "r.html"], ["matplotlib", "jinja2"])]
)
def test_a_report_loads_only_what_it_needs(
    tmp_path: Path, options: list[str], loaded: list[str]
) -> None:
    write_store(tmp_path / "s.sqlite", residual())
    code = (
        "import sys\nfrom fxfault.cli import campaign\n"
        f"campaign.main(['report', '--store', 's.sqlite', *{options}])\n"
        "print([m for m in ('matplotlib', 'jinja2', 'brevitas') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == str(loaded)


def test_a_picture_on_a_page_has_ids_of_its_own_and_no_foreign_parts() -> None:
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        b'width="72pt" height="36pt" viewBox="0 0 72 36" version="1.1">'
        b'<metadata><a/></metadata><defs><style>* {color: red}</style><path id="m"/></defs>'
        b'<g id="part"><use xlink:href="#m" style="stroke: #0072B2; fill: #123456"/></g>'
        b'<g clip-path="url(#m)"/></svg>'
    )
    links = {"part": ("#row", "a < b"), "none": ("#row", "is not there")}

    text = inlined(svg, "f", "Title", "More", scheme={"#0072b2": "#ffffff"}, links=links)

    assert text == (
        '<svg width="96" height="48" viewBox="0 0 72 36" style="min-width: 72px" role="group" '
        'aria-labelledby="f-title f-desc"><title id="f-title">Title</title>'
        '<desc id="f-desc">More</desc><defs><path id="f-m" /></defs>'
        '<a href="#row" class="site"><title>a &lt; b</title><g id="f-part">'
        '<use href="#f-m" style="stroke: var(--c0072b2); fill: #123456" /></g></a>'
        '<g clip-path="url(#f-m)" /></svg>'
    )


def test_a_learned_width_is_told_of(tmp_path: Path) -> None:
    background = residual()
    learned = [dataclasses.replace(site, bit_width=None) for site in background.sites]
    write_store(tmp_path / "s.sqlite", dataclasses.replace(background, sites=learned))

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    assert "head.act: bit width learned, accuracy lost " in text
    assert "stem.act: bit width learned, not struck alone" in text


@pytest.mark.parametrize(
    ("weakness", "headline", "title"),
    [
        (
            (0.0,) * 4,
            "No fault changed a prediction in any of 16 cells: an SDC rate of 0.00 [0.00, 0.",
            "No site lost accuracy",
        ),
        (
            (0.0, 0.1, 0.02, 0.1),
            "Of 3 sites, the weakest is body.0.act or one of head.act, which cannot be told apart",
            "Tied for weakest: body.0.act, head.act",
        ),
    ],
)
def test_a_tie_has_no_single_weakest_site(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    weakness: tuple[float, ...],
    headline: str,
    title: str,
) -> None:
    monkeypatch.setattr("campaign_page_tools.WEAKNESS", weakness)
    write_store(tmp_path / "s.sqlite", residual(), trials=12)

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    assert headline in text
    assert " is the weakest: faults" not in text
    assert (title in text.partition('id="figure-ranking-title"')[2]) is any(weakness)
    assert f"{title}.\n" in capsys.readouterr().out
    ranks = {row[0]: row[1:3] for row in rows_of(text, "ranking")[1:]}
    assert ranks["body.0.act"] == ranks["head.act"]
    assert ranks["head.act"] == (["1", "1–2"] if any(weakness) else ["1", "1–3"])


def test_where_no_prediction_changed_no_cell_has_the_most_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("campaign_page_tools.WEAKNESS", (0.0,) * 4)
    write_store(tmp_path / "s.sqlite", residual(), axes={"layers": "each", "probability": [1, 5]})

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    assert "Faults changed no prediction in any cell." in text
    assert "Most predictions change" not in text


def test_nothing_is_said_of_widths_that_the_network_does_not_have(tmp_path: Path) -> None:
    own = {"model": {"name": "mine:net"}, "quantization": None, "checkpoint": {"path": "a.pt"}}
    write_store(tmp_path / "own.sqlite", residual(), **own)
    write_store(tmp_path / "built_in.sqlite", residual())

    theirs = page_of(tmp_path / "own.sqlite", tmp_path / "own.html")
    ours = page_of(tmp_path / "built_in.sqlite", tmp_path / "built_in.html")

    assert "bit_width" not in theirs
    assert "weight_bit_width 4, act_bit_width 4" in ours
    for text in (theirs, ours):
        assert "8 (3 sites), 4 (1 site)" in text
        assert "learning_rate" not in text


def test_a_network_that_guesses_and_sites_that_are_never_called_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = dataclasses.replace(residual(), classes=1, never_called=(SITES[0],))
    write_store(tmp_path / "s.sqlite", seen)

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    out = capsys.readouterr().out
    doubt = "olden accuracy 96.0% is no better than chance (1 class): wrong weights, labels or"
    assert f"No verdict: g{doubt}" in text
    assert f"Note: g{doubt}" in out
    named = f"Never called in this evaluation: {SITES[0]}"
    assert f"{named}." in text
    assert f"{named}\n" in out
    assert f"{SITES[0]}: 4 bits, never called in this evaluation" in text


def test_a_page_begins_with_title_verdict_and_notes(tmp_path: Path) -> None:
    labels = {"name": "first", "title": "Where is it weak?", "notes": "One.\n\n<Two>."}
    write_store(tmp_path / "s.sqlite", residual(), **labels)

    text = page_of(tmp_path / "s.sqlite", tmp_path / "r.html")

    assert "<h1>Fault study: Where is it weak?</h1>" in text
    main = text.partition("<main")[2]
    for earlier, later in pairwise(["Protect first: body.0.act", "&lt;Two&gt;.", "<svg"]):
        assert 0 < main.index(earlier) < main.index(later)
    loose = page_of(tmp_path / "s.sqlite", tmp_path / "l.html", "--tolerance", "90")
    assert "a loss of at most 90 points" in loose
    assert "a loss of at most 1 point," in text
