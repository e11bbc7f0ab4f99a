"""The page in a real browser: quiet, offline, usable; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import Browser
from report_cases import hostile, renamed, sick, wide
from standin import measure, mlp
from torch import nn

import shiftscope as ss
from shiftscope.findings import diagnose
from shiftscope.reporting.page import page
from shiftscope.snapshot import Snapshot

SHARES = (
    "[...document.querySelectorAll('#table tbody tr')].map(tr => tr.cells["
    "[...document.querySelectorAll('#table thead th')].findIndex(th => th.dataset.key === '{}')"
    "].textContent)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def _quiet(browser: Browser) -> Iterator[None]:
    """Whatever a test did: no error, no violation, no request."""
    browser.events.clear()
    yield
    assert browser.complaints() == []
    assert browser.requests() == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    ss.report(sick(), folder)
    return folder / "report.html"


def write(folder: Path, snapshot: Snapshot) -> Path:
    path = folder / "page.html"
    path.write_text(page(snapshot, diagnose(snapshot)), encoding="utf-8")
    return path


def column(browser: Browser, key: str) -> list[str]:
    return list(browser.evaluate(SHARES.format(key)))


def test_figures_are_drawn_and_the_page_fits(browser: Browser, report: Path) -> None:
    for width in (1080, 400, 320):
        browser.show(report, width=width)
        browser.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
        browser.wait("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_a_click_sorts_and_says_so(browser: Browser, report: Path) -> None:
    browser.show(report)
    head = "document.querySelector('th[data-key=z_std]')"
    browser.evaluate(f"{head}.querySelector('button').click()")
    falling = [float(text) for text in column(browser, "z_std")]
    assert falling == sorted(falling, reverse=True)
    assert browser.evaluate(f"{head}.getAttribute('aria-sort')") == "descending"
    browser.evaluate(f"{head}.querySelector('button').click()")
    assert [float(text) for text in column(browser, "z_std")] == falling[::-1]
    assert browser.evaluate(f"{head}.getAttribute('aria-sort')") == "ascending"
    assert "sort=z_std" in browser.evaluate("location.hash")


def test_cells_drawn_by_the_script_equal_those_of_the_file(browser: Browser, report: Path) -> None:
    browser.show(report)
    before = {key: column(browser, key) for key in ("site", "finding", "op", "neurons", "order")}
    browser.evaluate("document.querySelector('th[data-key=order] button').click()")
    browser.evaluate("document.getElementById('reset').click()")
    assert {key: column(browser, key) for key in before} == before


def test_long_names_are_the_same_in_the_script_and_in_the_file(
    browser: Browser, tmp_path: Path
) -> None:
    browser.show(write(tmp_path, renamed(sick(), lambda name: f"{'a' * 60}{name}{'b' * 60}")))
    before = column(browser, "site")
    assert len(set(before)) == 17
    browser.evaluate("document.querySelector('th[data-key=order] button').click()")
    browser.evaluate("document.getElementById('reset').click()")
    assert column(browser, "site") == before


def test_words_beside_long_notes_are_not_broken(browser: Browser, tmp_path: Path) -> None:
    model = mlp([8, 8, 4], nn.Sigmoid)
    nn.init.constant_(model[0].weight, float("nan"))
    x = torch.randn(20, 8, dtype=torch.float64)
    path = write(tmp_path, measure(model, x, torch.zeros(20, dtype=torch.int64)))
    for width in (1080, 400):
        browser.show(path, width=width)
        browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        browser.wait("document.querySelectorAll('dl .wide dt').length === 1")
        heights = "[...document.querySelectorAll('dl dt')].map(e => e.getClientRects()[0].height)"
        assert len(set(browser.evaluate(heights))) == 1


def test_an_address_brings_the_view_back(browser: Browser, report: Path) -> None:
    browser.show(report, "#site=3&sort=z_std&dir=asc&kind=activation&ord=spread")
    assert set(column(browser, "op")) == {"sigmoid"}
    values = [float(text) for text in column(browser, "z_std")]
    assert values == sorted(values)
    title = "document.getElementById('neurons-title').textContent"
    browser.wait(f"{title} === 'Neurons of 3'")
    assert browser.evaluate("document.getElementById('ord').value") == "spread"


def test_filters_count_aloud(browser: Browser, report: Path) -> None:
    browser.show(report)
    browser.evaluate("document.querySelector('button[data-finding=vanishing_gradient]').click()")
    expected = next(f for f in diagnose(sick()) if f.cause == "vanishing_gradient").sites
    assert set(column(browser, "site")) == set(expected)
    count = browser.evaluate("document.getElementById('count').textContent")
    assert count == f"{len(expected)} of 17"
    assert browser.evaluate("document.getElementById('count').getAttribute('aria-live')")


def test_the_strip_shows_the_quantiles_of_the_chosen_site(browser: Browser, report: Path) -> None:
    browser.show(report)
    site = diagnose(sick())[0].sites[0]
    browser.evaluate("document.querySelector('#f-activation_shift a').click()")
    browser.wait(f"document.getElementById('neurons-title').textContent === 'Neurons of {site}'")
    browser.wait("document.getElementById('strip').getAttribute('aria-label').includes('medians')")
    browser.evaluate("document.getElementById('strip').focus()")
    browser.press("Home")
    read = browser.evaluate("document.getElementById('readout').textContent")
    name, values = read.removeprefix("neuron ").split(": ")
    table = sick().quantiles[site]["z"][:, int(name)]
    spread = sick().quantiles[site]["z"].max() - sick().quantiles[site]["z"].min()
    for shown, true in zip(map(float, values.split()), table, strict=True):
        assert shown == pytest.approx(true, abs=spread / 2000 + 0.006 * abs(true))
    browser.press("ArrowRight")
    assert browser.evaluate("document.getElementById('readout').textContent") != read


def test_the_theme_follows_the_system_and_the_button(browser: Browser, report: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.show(report)
    light = browser.evaluate(ground)
    browser.show(report, dark=True)
    dark = browser.evaluate(ground)
    assert light != dark
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(ground) == light
    assert browser.evaluate("document.getElementById('theme').textContent") == "Dark"


def test_print_opens_everything_on_white(browser: Browser, tmp_path: Path) -> None:
    browser.show(write(tmp_path, wide(300)), dark=True)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate("document.querySelectorAll('#table tbody tr').length") == 300
    assert browser.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    browser.call("Emulation.setEmulatedMedia", media="print")
    white = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert white == "rgb(255, 255, 255)"
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate("document.querySelectorAll('#table tbody tr').length") == 200


def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path) -> None:
    browser.show(write(tmp_path, hostile()))
    browser.evaluate("document.querySelector('th[data-key=site] button').click()")
    names = column(browser, "site")
    assert {"<script>alert(1)</script>", "(model)"} <= set(names)
    assert max(map(len, names)) == 72
    browser.evaluate("document.getElementById('reset').click()")
    assert sorted(column(browser, "site")) == sorted(names)
    assert browser.evaluate("document.querySelectorAll('img, i, b b').length") == 0
    assert browser.evaluate("document.scripts.length") == 2


def test_without_scripts_rows_and_links_are_there(browser: Browser, report: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(report)
        assert len(column(browser, "site")) == 17
        hidden = "[...document.querySelectorAll('.needs-script')].every(e => e.hidden)"
        assert browser.evaluate(hidden)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    browser.show(report)


def test_two_thousand_sites_open_fast(browser: Browser, tmp_path: Path) -> None:
    path = write(tmp_path, wide(2000))
    browser.show(path)
    count = "document.querySelectorAll('#table tbody tr').length"
    assert browser.evaluate(count) == 200
    timing = json.loads(
        browser.evaluate("JSON.stringify(performance.getEntriesByType('navigation')[0])")
    )
    assert timing["domComplete"] < 3000
    browser.evaluate("document.getElementById('all').click()")
    assert browser.evaluate(count) == 2000
    text = browser.evaluate("document.getElementById('count').textContent")
    assert text == "2,000 of 2,000" or text == "2000 of 2000"
