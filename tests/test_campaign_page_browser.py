"""The report's page in a real Chromium: figures, tables, keyboard, phone, dark, print."""

from __future__ import annotations

import base64
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from campaign_page_tools import HOSTILE, SITES, page_of, residual, write_store

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no chromium or no chromedriver on the path"
    ),
    # What selenium leaves to the garbage collector is not ours.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LONG = "features." + "very_long_name_" * 8 + "act"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a new profile."""
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With the path of the driver selenium looks for none, and downloads none.
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with a hostile and a very long name."""
    folder = tmp_path_factory.mktemp("page")
    sites = (SITES[0], HOSTILE, LONG, SITES[3])
    write_store(folder / "study.sqlite", residual(sites), sites)
    page_of(folder / "study.sqlite", folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    """The page as it is when it is opened on a wide screen."""
    show(browser, report)
    return browser


def show(
    browser: Any, report: Path, width: int = 1200, scheme: str = "light", media: str = ""
) -> None:
    """Open the page on a screen of some width; it does not scroll smoothly, which takes time."""
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    asked = [{"name": name, "value": value} for name, value in features.items()]
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": asked})
    browser.get(report.as_uri())


def press(browser: Any, *keys: str) -> None:
    """Press keys where the focus is."""
    from selenium.webdriver.common.action_chains import ActionChains

    actions = ActionChains(browser)
    for key in keys:
        actions.send_keys(key)
    actions.perform()


def column(browser: Any, table: str, number: int) -> list[str]:
    """The texts of a column, from the top."""
    script = (
        f"return Array.from(document.querySelectorAll('#{table} tbody tr'),"
        f" (row) => row.cells[{number}].textContent)"
    )
    return list(browser.execute_script(script))


def test_nothing_is_complained_of_and_nothing_is_asked_for(browser: Any, report: Path) -> None:
    handler = partial(_Quiet, directory=str(report.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(f"http://127.0.0.1:{server.server_port}/report.html")
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
        complaints, events = browser.get_log("browser"), browser.get_log("performance")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert complaints == []
    asked = [
        match[1]
        for event in events
        if '"Network.requestWillBeSent"' in event["message"]
        and (match := re.search(r'"request":\{.*?"url":"(.*?)"', event["message"]))
    ]
    assert [url for url in asked if not url.startswith("data:")] == [
        f"http://127.0.0.1:{server.server_port}/report.html"
    ]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_every_figure_is_there_and_seen(page: Any) -> None:
    script = (
        "return Array.from(document.querySelectorAll('figure svg'))"
        ".filter((svg) => svg.checkVisibility()).map((svg) => {"
        " const box = svg.getBoundingClientRect();"
        " const inner = svg.querySelector('g').getBBox();"
        " return [box.width, box.height, inner.width, inner.height,"
        "  svg.querySelectorAll('text').length] })"
    )
    figures = page.execute_script(script)

    assert len(figures) == 4
    for width, height, *inner, texts in figures:
        assert width > 250
        assert height > 100
        assert min(inner) > 50
        assert texts > 5


def test_a_click_sorts_numbers_as_numbers_and_what_is_missing_last(page: Any) -> None:
    heads = page.find_elements("css selector", "#sites thead button")
    lost = len(heads) - 1
    before = column(page, "sites", lost)
    assert before[0] == "-"

    heads[lost].click()
    up = column(page, "sites", lost)
    state = page.execute_script(
        "return Array.from(document.querySelectorAll('#sites th[aria-sort]'),"
        " (head) => [head.cellIndex, head.getAttribute('aria-sort')])"
    )
    heads[lost].click()
    down = column(page, "sites", lost)

    known = sorted(before[1:], key=float)
    assert up == [*known, "-"]
    assert down == [*reversed(known), "-"]
    assert state == [[lost, "ascending"]]
    assert sorted(known) != known  # As text they would have another order.


def test_the_keyboard_sorts_too(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    before = column(page, "cells", 1)
    page.execute_script("document.querySelectorAll('#cells thead button')[1].focus()")
    press(page, Keys.ENTER)
    up = column(page, "cells", 1)
    press(page, Keys.SPACE)
    down = column(page, "cells", 1)

    assert up == sorted(before)
    assert down == sorted(before, reverse=True)
    assert up != before


def test_tab_reaches_everything_in_the_order_of_the_page_and_shows_where_it_is(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    places, outlines = [], set()
    for _ in range(120):
        press(page, Keys.TAB)
        found = page.execute_script(
            "const e = document.activeElement; if (e === document.body) return null;"
            " const s = getComputedStyle(e);"
            " const all = Array.from(document.querySelectorAll('*'));"
            " return [all.indexOf(e), e.tagName.toLowerCase(), e.className.baseVal ?? e.className,"
            "  s.outlineStyle + ' ' + parseFloat(s.outlineWidth)]"
        )
        if found is None:
            break
        places.append(found)
        outlines.add(found[3])

    order = [place[0] for place in places]
    assert order == sorted(set(order))
    tags = [place[1] for place in places]
    assert places[0][1:3] == ["a", "skip"]
    assert tags.count("summary") == 5
    assert tags.count("input") == 1
    assert tags.count("button") == page.execute_script(
        "return Array.from(document.querySelectorAll('thead button'))"
        ".filter((button) => button.checkVisibility()).length"
    )
    assert [place for place in places if place[2] == "site"] != []
    assert all(re.fullmatch(r"(solid|auto) [123]", outline) for outline in outlines), outlines


def test_the_first_link_skips_to_the_results(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.TAB)
    box = page.execute_script("return document.activeElement.getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["width"] > 50
    press(page, Keys.ENTER)
    press(page, Keys.TAB)

    first = "return document.getElementById('main').contains(document.activeElement)"
    assert page.execute_script(first)


def test_arrow_keys_go_from_site_to_site_and_tell_of_each(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    names = "return document.activeElement.getAttribute('aria-label').split(':')[0]"
    page.execute_script("document.querySelector('a.site').focus()")
    seen = [page.execute_script(names)]
    for key in (Keys.ARROW_DOWN, Keys.END, Keys.ARROW_UP, Keys.HOME):
        press(page, key)
        seen.append(page.execute_script(names))
    press(page, Keys.ARROW_DOWN)
    tip = page.find_element("css selector", ".tip")
    label = page.execute_script("return document.activeElement.getAttribute('aria-label')")
    assert tip.is_displayed()
    assert tip.text == label
    assert re.search(r": 8 bits, accuracy lost [\d.]+ \[.*\] points, rank 1 to 1, SDC", label)
    press(page, Keys.ENTER)

    assert seen == [SITES[0], HOSTILE.partition(":")[0], SITES[3], LONG, SITES[0]]
    assert page.execute_script("return location.hash") == "#site-1"
    target = "return document.querySelector(':target').cells[0].textContent"
    assert page.execute_script(target) == HOSTILE


def test_hover_tells_of_a_site(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    site = page.find_elements("css selector", "a.site")[3]
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", site)
    ActionChains(page).move_to_element(site.find_element("css selector", "path")).perform()
    tip = page.find_element("css selector", ".tip")
    assert tip.text.startswith("head.act: 8 bits, accuracy lost ")

    ActionChains(page).move_by_offset(0, 200).perform()

    assert not tip.is_displayed()


def test_cells_can_be_filtered(page: Any) -> None:
    field = page.find_element("id", "filter")
    field.send_keys("msb_flip ALL")

    shown = "return document.querySelectorAll('#cells tbody tr:not([hidden])').length"
    assert page.execute_script(shown) == 2
    assert page.find_element("css selector", "output").text == "2 of 16 cells"
    field.clear()
    field.send_keys(" ")
    assert page.execute_script(shown) == 16


def test_a_hostile_name_is_shown_as_text(page: Any) -> None:
    assert page.title == "Fault study: quant_digits on digits"
    assert HOSTILE in column(page, "sites", 0)
    assert len(page.find_elements("tag name", "script")) == 1
    drawn = "return document.querySelectorAll('a.site')[1].querySelector('text').textContent"
    assert page.execute_script(drawn).startswith("<script>document.")


@pytest.mark.parametrize("width", [320, 360, 768])
def test_the_page_itself_never_scrolls_sideways(browser: Any, report: Path, width: int) -> None:
    show(browser, report, width)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")

    room, needed, boxes = browser.execute_script(
        "const root = document.documentElement;"
        " return [root.clientWidth, root.scrollWidth,"
        "  Array.from(document.querySelectorAll('.box'),"
        "   (box) => [box.scrollWidth > box.clientWidth, getComputedStyle(box).overflowX])]"
    )

    assert width - 20 < room <= width  # Beside a scroll bar, on a screen that has one.
    assert needed <= room
    if width < 400:
        assert not any(scrolls for scrolls, _ in boxes)  # Nothing is cut off.
    sizes = browser.execute_script(
        "return Array.from(document.querySelectorAll('figure svg'))"
        ".filter((svg) => svg.checkVisibility())"
        ".map((svg) => svg.getBoundingClientRect().width / svg.getAttribute('width'))"
    )
    assert len(sizes) == 4
    assert min(sizes) > 0.74  # Still to be read.


def test_the_dark_scheme_changes_page_and_figures(browser: Any, report: Path) -> None:
    seen = {}
    for name in ("light", "dark"):
        show(browser, report, scheme=name)
        seen[name] = browser.execute_script(
            "const look = (query, what) =>"
            " getComputedStyle(document.querySelector(query))[what];"
            " return [look('body', 'backgroundColor'), look('body', 'color'),"
            "  look('#figure-ranking-axes_1 text', 'fill'),"
            "  look('#figure-network-site-0 path', 'fill')]"
        )

    (paper, ink, drawn, grey), (dark_paper, dark_ink, dark_drawn, dark_grey) = seen.values()
    assert luminance(paper) > 0.9 > 0.05 > luminance(dark_paper)
    assert luminance(ink) < 0.05 < 0.6 < luminance(dark_ink)
    assert luminance(drawn) < 0.05 < 0.6 < luminance(dark_drawn)
    assert luminance(grey) > luminance(dark_grey)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Any, report: Path, name: str) -> None:
    show(browser, report, scheme=name)
    script = (
        "const behind = (e) => { for (; e; e = e.parentElement) {"
        "  const c = getComputedStyle(e).backgroundColor;"
        "  if (c !== 'rgba(0, 0, 0, 0)') return c } };"
        " return Array.from(document.querySelectorAll("
        "  'h1,h2,h3,p,li,a:not(.site),dt,dd,figcaption,caption span,th,td,summary,pre,output,"
        "button,footer,svg text'"
        " ), (e) => [e.textContent.slice(0, 40), e.closest('svg') && e.textContent,"
        "  e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color, behind(e)])"
    )
    on_heat_map = re.compile(r"\d+\.\d|100")  # These stand on colours of their own.

    weak = {
        (text, front, back)
        for text, drawn, front, back in browser.execute_script(script)
        if not (drawn and on_heat_map.fullmatch(drawn)) and contrast(front, back) < 4.5
    }

    assert weak == set()


def luminance(colour: str) -> float:
    """Relative luminance, by the Web Content Accessibility Guidelines 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(front: str, back: str) -> float:
    """Contrast ratio, by the same."""
    low, high = sorted((luminance(front), luminance(back)))
    return (high + 0.05) / (low + 0.05)


def test_paper_is_white_and_has_no_controls(browser: Any, report: Path) -> None:
    show(browser, report, scheme="dark", media="print")

    seen = browser.execute_script(
        "const look = (query, what) => getComputedStyle(document.querySelector(query))[what];"
        " return [look('body', 'backgroundColor'), look('body', 'color'), look('nav', 'display'),"
        "  look('.filter', 'display'), look('.skip', 'display'), look('.box', 'overflowX')]"
    )
    dispatch = "dispatchEvent(new Event(arguments[0]));"
    folded = "return document.querySelectorAll('details:not([open])').length"
    during = browser.execute_script(f"{dispatch} {folded}", "beforeprint")
    after = browser.execute_script(f"{dispatch} {folded}", "afterprint")
    content = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})

    assert luminance(seen[0]) == 1
    assert luminance(seen[1]) < 0.05
    assert seen[2:] == ["none", "none", "none", "visible"]
    assert (during, after) == (0, 4)
    assert base64.b64decode(content["data"]).startswith(b"%PDF")


def test_without_scripts_the_tables_are_plain(browser: Any, report: Path) -> None:
    try:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        show(browser, report)
        assert browser.find_elements("css selector", "thead button") == []
        assert not browser.find_element("css selector", ".filter").is_displayed()
        titles = browser.find_elements("css selector", "a.site title")
        assert len(titles) == 8  # The drawing is there for wide and for narrow screens.
        heads = [head.text for head in browser.find_elements("css selector", "#ranking thead th")]
        assert heads[:2] == ["Site", "Rank"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
