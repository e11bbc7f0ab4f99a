"""The page without a browser: policy, escapes, budgets."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from report_cases import HOSTILE, hostile, renamed, sick, wide
from standin import measure, mlp
from torch import nn

from shiftscope.draw.output import to_png_bytes
from shiftscope.findings import diagnose
from shiftscope.reporting.page import page, script_json
from shiftscope.reporting.pictures import Picture
from shiftscope.reporting.premises import premise_section
from shiftscope.reporting.table import FIRST_ROWS, SiteTable
from shiftscope.reporting.text import plain_summary
from shiftscope.snapshot import Snapshot

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Reader(HTMLParser):
    """Tags, attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._inside, []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(snapshot: Snapshot, **options: Any) -> str:
    pictures = [Picture("a", "A", "caption <b>", 'alt "<i>"', PNG)]
    return page(snapshot, diagnose(snapshot), pictures, **options)


def embedded(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1], parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def test_the_policy_names_the_hashes_of_what_stands_inline() -> None:
    text = written(sick())
    (policy,) = [
        str(a["content"])
        for a in Reader(text).attributes("meta")
        if a.get("http-equiv") == "Content-Security-Policy"
    ]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    for kind, content in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert policy.endswith("img-src data:; base-uri 'none'; form-action 'none'")
    assert "unsafe" not in policy


@pytest.mark.parametrize("snapshot", [sick(), hostile(), Snapshot(records={})])
def test_no_inline_style_no_handler_no_address(snapshot: Snapshot) -> None:
    reader = Reader(written(snapshot))
    allowed = {"img", "link", "a"}
    for tag, attributes in reader.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            value = attributes.get(name)
            if value is not None:
                assert tag in allowed
                assert value.startswith(("#", "data:")), value
    script = files("shiftscope.reporting").joinpath("report.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script


def test_hostile_names_stand_as_text() -> None:
    text = written(hostile())
    reader = Reader(text)
    assert len(reader.attributes("script")) == 2
    assert len(reader.attributes("img")) == 1
    assert not reader.attributes("i")
    assert "49" not in "".join(reader.texts["a"])
    assert "{{7*7}}{% raw %}" in reader.texts["a"]
    assert "<script>alert(1)</script>" in reader.texts["a"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u2029\u202e]", text)


def test_data_hold_the_names_and_no_markup() -> None:
    data = embedded(written(hostile()))
    at = data["keys"].index("site")
    names = {row[at] for row in data["rows"]}
    assert HOSTILE[0] in names
    assert r"nul\x00byte" in names
    assert script_json("</script>&\u2028") == r'"\u003c/script\u003e\u0026\u2028"'


def test_worst_first_and_first_finding_open() -> None:
    text = written(sick())
    details = [a for a in Reader(text).attributes("details") if "finding" in str(a.get("class"))]
    assert ["open" in a for a in details] == [True] + [False] * (len(details) - 1)
    assert str(details[0]["id"]) == "f-activation_shift"
    rows = re.findall(r'<tr id="row-(\d+)"', text)
    names = [r.info.order for r in sick().records.values()]
    worst = sick().records[diagnose(sick())[0].sites[0]].info.order
    assert int(rows[0]) == worst
    assert sorted(map(int, rows)) == names


def test_links_lead_to_rows_of_the_page() -> None:
    text = written(wide(500))
    ids = set(re.findall(r' id="([^"]+)"', text))
    links = set(re.findall(r'href="#([^"]+)"', text))
    assert links <= ids
    assert text.count("<tr id=") == FIRST_ROWS
    assert len(embedded(text)["rows"]) == 500


def test_every_figure_has_words() -> None:
    text = written(sick())
    (image,) = Reader(text).attributes("img")
    assert image["alt"] == 'alt "<i>"'
    assert (image["width"], image["height"]) == ("1", "1")
    assert "caption &lt;b&gt;" in text


def test_inline_figures_look_the_same_and_weigh_less() -> None:
    figure = Figure(figsize=(6, 4))
    ax = figure.subplots()
    ax.pcolormesh(np.random.default_rng(0).normal(size=(20, 30)), cmap="magma")
    ax.plot(np.arange(30), np.linspace(1, 19, 30), "o-", label="a line and its words")
    ax.legend()
    picture = Picture("a", "A", "", "", to_png_bytes(figure))
    light = picture.inline()
    assert len(light) < len(picture.png) / 2
    exact, back = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)
        for png in (picture.png, light)
    )
    assert np.quantile(np.abs(exact - back), 0.99) <= 6
    assert np.abs(exact - back).max() <= 15  # a colour of few pixels counts as well
    assert picture.size == back.shape[1::-1]


def test_budgets_hold_at_five_hundred_sites() -> None:
    folder = files("shiftscope.reporting")
    code = sum(
        len(folder.joinpath(f"report.{kind}").read_bytes()) for kind in ("html", "css", "js")
    )
    assert code <= 40_000
    text = written(wide(500))
    assert len(text.encode()) <= 800_000
    small = written(wide(500), budget=10_000)
    assert "are left out" in small
    assert len(embedded(small)["strips"]) < 500
    assert len(embedded(written(wide(500), budget=None))["strips"]) == 500


def test_gaps_and_manifest_are_told() -> None:
    text = written(hostile())
    assert "&lt;/script&gt;&lt;b&gt;gap" in text
    assert "because &amp; &lt;i&gt;why" in text
    assert "&lt;key&gt;" in text
    assert "1 module not measured" in text


def long(name: str) -> str:
    return f"{'encoder.' * 6}{name}{'.attention' * 6}"


def test_long_names_stay_distinct_in_every_table() -> None:
    snapshot = renamed(sick(), long)
    table = SiteTable(snapshot, [])
    assert len(set(table.labels)) == len(table.labels)
    assert max(map(len, table.labels)) <= 72
    labels = [row[0] for row in premise_section(snapshot)["rows"]]
    assert len(set(labels)) == len(labels) > 1
    links = re.findall(r'<a href="#row-\d+">([^<]*)</a>', written(snapshot))
    assert len(set(links)) > 1
    told = re.findall("^ *(…\\S*|encoder\\S*) ", plain_summary(snapshot, []), re.MULTILINE)
    assert len(set(told)) == len(told) == 10


def test_a_network_of_nan_keeps_the_columns_of_data() -> None:
    model = mlp([8, 8, 4], nn.Sigmoid)
    nn.init.constant_(model[0].weight, float("nan"))
    x = torch.randn(20, 8, dtype=torch.float64)
    snapshot = measure(model, x, torch.zeros(20, dtype=torch.int64))
    assert not snapshot.sites["shift_share"].notna().any()
    table = SiteTable(snapshot, [])
    assert "shift_share" in [column.key for column in table.columns]
    assert dict(table.cells()[0]["cells"])["shift_share"] == "–"
    assert "shift" in plain_summary(snapshot, [])
