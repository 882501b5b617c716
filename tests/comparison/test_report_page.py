"""The report in Chromium: it loads nothing, its tables work, and it fits a phone and paper."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, missing
from reported import comparison, names, photos, recordings

from onnxcam.comparison import report
from onnxcam.comparison.data import Skipped
from onnxcam.comparison.gate import Finding, Judgement

MISSING = missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

COUNT = 120
VALUES = [None if i % 40 == 7 else round((i * 37 % 100) / 100 - 0.2, 2) for i in range(COUNT)]
OTHER = range(0, COUNT, 7)
GATE = Judgement(
    "failed",
    (
        Finding("pearson.mean >= 0.9", 0.9, 0.3, False, "found 0.3", ("a_very_long_name" * 12, "b.png")),
        Finding("js.mean <= 0.5", 0.5, 0.25, True, "found 0.25"),
        Finding("ssim.mean >= 0.5", 0.5, None, None, "ssim was not measured"),
    ),
)
HACK = "</script><script>globalThis.hacked = 1</script><img src=x onerror='globalThis.hacked = 2'>"
HOSTILE = f"{HACK}{{{{ 7 * 7 }}}}"
LONG = "a_very_long_name_without_any_space_in_it_" * 4
NAMED = f"{HOSTILE} photo"
NAMES = (*names(COUNT - 2), NAMED, LONG)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    made = Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with all there is to show."""
    folder = tmp_path_factory.mktemp("report")
    sides = recordings(NAMES, (HOSTILE, LONG), layers=LONG)
    found = comparison(
        sides, VALUES, OTHER, skipped=[Skipped(LONG, "both", LONG), Skipped(HACK, "both", HACK)]
    )
    path = folder / "report.html"
    path.write_bytes(report.html(found, *sides, photos(folder, NAMES), GATE))
    return path.as_uri()


def large(folder: Path, count: int) -> str:
    """The address of a report of many photos."""
    sides = recordings(names(count))
    path = folder / "large.html"
    path.write_bytes(report.html(comparison(sides, [i / count for i in range(count)]), *sides))
    return path.as_uri()


def rows(browser: Browser, table: str = "images") -> list[list[str]]:
    """The cells that a table shows."""
    lines = f"[...document.querySelectorAll('#table-{table} tbody tr')]"
    shown: list[list[str]] = browser(
        "evaluate", f"{lines}.map(r => [...r.cells].map(c => c.textContent.trim()))"
    )
    return shown


def held(browser: Browser, table: str = "images") -> dict[str, Any]:
    """What the script got for a table."""
    found: dict[str, Any] = json.loads(
        browser("evaluate", f"document.querySelector('#table-{table} > script').textContent")
    )
    return found


def status(browser: Browser, table: str = "images") -> str:
    said: str = browser("evaluate", f"document.querySelector('#table-{table} [role=status]').textContent")
    return said


def head(at: int, table: str = "images") -> str:
    return f"#table-{table} thead th:nth-child({at + 1}) button"


def sorts(browser: Browser, table: str = "images") -> list[str | None]:
    heads = f"[...document.querySelectorAll('#table-{table} thead th')]"
    found: list[str | None] = browser("evaluate", f"{heads}.map(h => h.getAttribute('aria-sort'))")
    return found


VIEWS = [
    {"width": 360, "height": 740},
    {"width": 1200},
    {"width": 1200, "dark": True},
    {"width": 360, "dark": True},
]


@pytest.mark.parametrize("view", VIEWS, ids=["phone", "desktop", "dark", "dark phone"])
def test_it_loads_nothing_fits_and_is_readable(browser, page, view):
    browser("open", {**view, "at": page})
    seen = browser("seen")
    assert seen == {"elsewhere": [], "errors": []}
    assert (
        browser(
            "evaluate",
            "performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length",
        )
        == 0
    )
    assert browser("evaluate", "globalThis.hacked") is None
    assert browser("evaluate", "document.documentElement.scrollWidth") <= view["width"]
    assert browser("evaluate", BEYOND) == []
    assert browser("evaluate", PALE) == []


#: What sticks out to the right, unless it lies in a part that scrolls by itself.
BEYOND = """[...document.querySelectorAll('body *')]
  .filter((e) => !e.closest('.wide') || e.matches('.wide'))
  .filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map((e) => e.tagName + '.' + e.className)"""

#: Text whose contrast to what lies behind is below 4.5 : 1 (WCAG 2.2, 1.4.3, and its relative luminance).
PALE = """(() => {
  const channels = (css) => (css.match(/[0-9.]+/g) ?? []).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const luminance = (css) => {
    const [r, g, b] = channels(css).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const css = getComputedStyle(e).backgroundColor;
      const [, , , alpha = 1] = channels(css);
      if (alpha === 1) return css;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = new Set();
  for (const e of document.querySelectorAll('body *')) {
    const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!says || e.closest('script, noscript, title, desc, button:disabled')) continue;
    const style = getComputedStyle(e);
    const one = luminance(e instanceof SVGElement ? style.fill : style.color), other = luminance(behind(e));
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (!(ratio >= 4.5)) found.add(`${e.tagName} ${e.className.baseVal ?? e.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
})()"""


def test_the_checks_of_width_and_contrast_can_fail(browser, page):
    browser("open", {"width": 360, "at": page})
    browser("evaluate", "document.querySelector('h1').insertAdjacentHTML('beforeend', '<u>x</u>')")
    browser(
        "evaluate", "Object.assign(document.querySelector('u').style, {color: '#999', paddingLeft: '500px'})"
    )
    assert any(found.startswith("U") for found in browser("evaluate", PALE))
    assert "U." in browser("evaluate", BEYOND)


def test_its_policy_is_obeyed(browser, page):
    browser("open", {"at": page})
    browser(
        "evaluate",
        "document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 3'}))",
    )
    browser(
        "evaluate", "document.body.append(Object.assign(new Image(), {src: 'https://example.org/x.png'}))"
    )
    fetched = browser("evaluate", "fetch('https://example.org/').then(() => 'fetched', () => 'refused')")
    assert fetched == "refused"
    assert browser("evaluate", "globalThis.hacked") is None
    seen = browser("seen")
    assert seen["elsewhere"] == []  # refused before any request is made
    assert sum("Content Security Policy" in error for error in seen["errors"]) >= 3


def test_rows_are_the_same_with_and_without_the_script(browser, page):
    text = Path(page.removeprefix("file://")).read_text()
    browser("open", {"at": page})
    live = browser(
        "evaluate", "document.querySelector('#table-images tbody').innerHTML.replace(/\\\\s+/g, '')"
    )
    browser("evaluate", "globalThis.text = null")
    still = browser(
        "evaluate",
        f"new DOMParser().parseFromString({json.dumps(text)}, 'text/html')"
        ".querySelector('#table-images tbody').innerHTML.replace(/\\\\s+/g, '')",
    )
    assert re.sub(r"\s+", "", live) == re.sub(r"\s+", "", still)


@pytest.mark.parametrize("table", ["images", "classes"])
def test_every_column_sorts_both_ways(browser, page, table):
    browser("open", {"at": page})
    data = held(browser, table)
    first = len(data["columns"])
    for at, column in enumerate(data["columns"]):
        values = [row[at] for row in data["rows"]]
        known = (
            sorted(v for v in values if v is not None) if column["kind"] not in ("text", "verdict") else None
        )
        for descending in (False, True):
            if at == data["sorted"] and not descending:
                browser("click", head((at + 1) % first, table))  # it is the one that is sorted by already
            browser("click", head(at, table))
            expected = [None] * first
            expected[at] = "descending" if descending else "ascending"
            assert sorts(browser, table) == expected
            shown = [row[at] for row in rows(browser, table)]
            if known is not None:
                empty = ["–"] * values.count(None)
                written = {
                    "count": str,
                    "share": report.percent,
                    "number": report.number,
                }[column["kind"]]
                ordered = [written(v) for v in known]
                ordered = empty + ordered if column["empty"] == "low" else ordered + empty
                assert shown == (ordered[::-1] if descending else ordered)[: len(shown)]
            elif column["kind"] == "verdict":
                assert shown == sorted(values, reverse=descending)[: len(shown)]
            else:
                assert natural(shown) == sorted(natural(shown), reverse=descending)


def natural(texts: list[str]) -> list[list[Any]]:
    """Keys by which numbers in names come in their order; for names that differ in their numbers alone."""
    regular = [text for text in texts if text.startswith("day")]
    return [[int(part) for part in re.findall(r"[0-9]+", text)] for text in regular]


def test_the_keyboard_sorts_and_pages(browser, page):
    browser("open", {"at": page})
    browser("evaluate", f"document.querySelector('{head(0)}').focus()")
    browser("press", "Enter")
    assert sorts(browser)[0] == "ascending"
    browser("press", "Space")
    assert sorts(browser)[0] == "descending"
    browser("press", "Tab")
    browser("press", "Enter")
    assert sorts(browser)[:2] == [None, "ascending"]
    assert browser("evaluate", "document.activeElement.textContent") == "Verdict"
    browser("evaluate", "document.querySelectorAll('#table-images .pages button')[1].focus()")
    browser("press", "Enter")
    assert status(browser) == "51 to 100 of 120"
    # What scrolls sideways can be reached, and so scrolled, by keys.
    unreachable = (
        "[...document.querySelectorAll('.wide')].filter((e) => e.tabIndex !== 0 || !e.ariaLabel).length"
    )
    assert browser("evaluate", unreachable) == 0


def test_text_and_verdict_filter(browser, page):
    browser("open", {"at": page})
    assert status(browser) == "1 to 50 of 120"
    words, verdict = "#table-images input", "#table-images select"
    browser("fill", words, "DAY 1/")
    wanted = [row for row in held(browser)["rows"] if row[0].startswith("day 1/")]
    assert [row[0] for row in rows(browser)] == [row[0] for row in wanted]
    assert status(browser) == f"1 to {len(wanted)} of {len(wanted)} that match, of 120"
    browser("select", verdict, "other answer")
    both = [row for row in wanted if row[1] == "other answer"]
    assert 0 < len(both) < len(wanted)
    assert [row[0] for row in rows(browser)] == [row[0] for row in both]
    browser("fill", words, "")
    assert len(rows(browser)) == len(OTHER)
    browser("fill", words, "no such photo")
    assert rows(browser) == []
    assert status(browser) == "None of 120 matches"
    browser("select", verdict, "")
    browser("fill", words, "{{ 7 * 7 }} PHOTO")
    assert [row[0] for row in rows(browser)] == [NAMED]
    assert browser("evaluate", "globalThis.hacked") is None
    assert browser("seen") == {"elsewhere": [], "errors": []}


def test_a_filter_keeps_the_order_and_a_link_leads_to_the_photo(browser, page):
    browser("open", {"at": page})
    browser("click", head(0))
    browser("fill", "#table-images input", "day 2/")
    shown = natural([row[0] for row in rows(browser)])
    assert shown == sorted(shown)
    browser("fill", "#table-images input", "")
    browser("click", head(2))
    browser("click", "#table-images tbody tr:nth-child(2) a")
    name = rows(browser)[1][0]
    assert browser("evaluate", "document.querySelector('.card:target h3').textContent") == name


def test_ten_thousand_photos(browser, tmp_path):
    browser("open", {"at": large(tmp_path, 10_000)})
    back, on = (f"#table-images .pages button:nth-child({i})" for i in (1, 2))
    assert status(browser) == "1 to 50 of 10000"
    assert browser("evaluate", f"document.querySelector('{back}').disabled") is True
    browser("click", on)
    assert status(browser) == "51 to 100 of 10000"
    assert rows(browser)[0][0] == names(51)[50]
    browser("click", head(2))
    browser("click", head(0))
    browser("click", head(0))
    assert rows(browser)[0][0] == "day 2/photo 9998.png"
    assert len(rows(browser)) == report.PAGE
    browser("fill", "#table-images input", "photo 12")
    assert status(browser) == "1 to 50 of 111 that match, of 10000"
    browser("click", on)
    browser("click", on)
    assert status(browser) == "101 to 111 of 111 that match, of 10000"
    assert browser("evaluate", f"document.querySelector('{on}').disabled") is True
    browser("click", back)
    assert status(browser) == "51 to 100 of 111 that match, of 10000"


def test_a_table_of_one_page_has_no_pager(browser, page):
    browser("open", {"at": page})
    hidden = "[...document.querySelectorAll('#table-%s .pages button')].map((b) => b.hidden)"
    assert browser("evaluate", hidden % "images") == [False, False]
    assert browser("evaluate", hidden % "classes") == [True, True]
    assert status(browser, "classes") == "1 to 2 of 2"


def test_it_prints(browser, page, tmp_path):
    browser("open", {"at": page, "dark": True})
    browser("click", "#table-images .pages button:nth-child(2)")
    path = tmp_path / "report.pdf"
    browser("pdf", str(path))
    data = path.read_bytes()
    assert data.startswith(b"%PDF")
    assert len(re.findall(rb"/Type */Page\b", data)) >= 6  # a section begins a page
    assert len(rows(browser)) == report.PAGE  # as it was before
    assert status(browser) == "51 to 100 of 120"
    browser("evaluate", "dispatchEvent(new Event('beforeprint'))")
    assert len(rows(browser)) == COUNT
    browser("media", "print")
    for hidden in ("nav", ".controls"):
        assert browser("evaluate", f"getComputedStyle(document.querySelector('{hidden}')).display") == "none"
    # A head that holds controls is not repeated on the next page.
    assert (
        browser("evaluate", "getComputedStyle(document.querySelector('thead button')).display") == "contents"
    )
    assert browser("evaluate", "getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser("evaluate", PALE) == []
    breaks = (
        "[...document.querySelectorAll('section:not(.flows)')].map((s) => getComputedStyle(s).breakBefore)"
    )
    assert set(browser("evaluate", breaks)) == {"page"}


def test_charts_and_pictures_have_names(browser, page):
    browser("open", {"at": page})
    nameless = """[...document.querySelectorAll('svg, img, input, select, button, table')].filter((e) => {
      if (e.ariaHidden === 'true') return false;
      const by = e.getAttribute('aria-labelledby')?.split(' ');
      if (by) return !by.every((id) => document.getElementById(id)?.textContent);
      return !(e.alt || e.ariaLabel || e.labels?.length || e.textContent.trim());
    }).map((e) => e.outerHTML.slice(0, 80))"""
    assert browser("evaluate", nameless) == []
    levels = browser(
        "evaluate", "[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
