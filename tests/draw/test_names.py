"""Site names in figures: inert, of bounded width, never empty."""

from __future__ import annotations

import unicodedata

import pytest
from draw_cases import HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from shiftscope.draw.elide import elide
from shiftscope.draw.names import FONT, display_name, display_names, plain_name, strided, thinned


def width(text: str, points: float = 10.0) -> float:
    path = TextPath((0, 0), text, size=points, prop=FontProperties(family=FONT))
    return float(path.get_extents().width)


@given(st.text(max_size=60) | st.just(HOSTILE))
def test_any_name_becomes_one_short_printable_line(name: str) -> None:
    shown = plain_name(name, 24)
    assert shown.strip()
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Mn"} for c in shown)
    assert width(shown.replace("$", r"\$")) <= 24 * 0.55 * 10 + 5


def test_dollars_are_no_mathtext() -> None:
    from matplotlib.cbook import is_math_text

    assert not is_math_text(display_name("a$x_{1$ and $y$"))
    assert plain_name("a$b") == "a$b"


@pytest.mark.parametrize("name", ["layer1.0.conv1:relu", "é", "fc"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert display_name(name) == name


def test_long_names_keep_both_ends() -> None:
    shown = plain_name("encoder." + "block." * 40 + "mlp.fc1:gelu", 28)
    assert shown.startswith("enc")
    assert shown.endswith("fc1:gelu")
    assert "…" in shown


def test_names_that_stand_together_keep_what_differs() -> None:
    names = [f"enc.layers.{k}.self_attn.{part}" for k in (0, 1, 10) for part in ("in", "out_proj")]
    shown = display_names(names, 16)
    assert len(set(shown)) == len(names)
    assert shown[1] == "…0…out_proj"
    assert all(width(name) <= 16 * 0.55 * 10 + 5 for name in shown)


LONG = [
    [f"decoder.{k}.attn.{q}_proj.lora_{c}.default" for k in (0, 31) for q in "qk" for c in "AB"],
    [f"{'a' * 40}{c}{'b' * 40}" for c in "xyz"],
    ["a" * k for k in range(30, 34)],
    ["stage.0.block", "stage.0.block", "stage.1.block", "s"],
    [f"{k}{'.same' * 9}.{9 - k}" for k in range(9)],
]


@pytest.mark.parametrize("names", LONG, ids=len)
@pytest.mark.parametrize("room", [8, 12, 18, 30])
def test_different_names_never_look_alike(names: list[str], room: int) -> None:
    shown = elide(names, room)
    assert all(len(text) <= room for text in shown)
    assert len(set(zip(names, shown, strict=True))) == len(set(names)) == len(set(shown))


def test_names_that_fit_are_left_alone() -> None:
    assert elide(["a.b", "a.b", "a.c"], 3) == ["a.b", "a.b", "a.c"]


def test_scripts_that_the_font_lacks_become_escapes() -> None:
    assert display_name("编码器.0") == r"\u7f16\u7801\u5668.0"
    assert "□" not in plain_name("编码器", 8)
    assert set(plain_name("编" * 9 + ".0", 16).split("…")[0].split("\\")) <= {"", "u7f16"}


@pytest.mark.parametrize("name", ["", "\n\t", "\u202e\u200b"])
def test_a_name_of_nothing_says_so(name: str) -> None:
    assert plain_name(name) == "(unnamed)"


@given(st.integers(0, 5000), st.integers(2, 60))
def test_thinning_keeps_the_ends(count: int, limit: int) -> None:
    kept = thinned(count, limit)
    assert len(kept) <= limit or len(kept) == count <= limit
    assert kept == sorted(set(kept))
    assert not count or (kept[0], kept[-1]) == (0, count - 1)


@given(st.integers(0, 5000), st.integers(1, 60))
def test_strides_are_even_and_few(count: int, limit: int) -> None:
    kept = strided(count, limit)
    assert len(kept) <= limit
    assert bool(kept) == bool(count)
