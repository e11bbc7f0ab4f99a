"""The figures of a report: something to see, nothing cut off, nothing of the user's changed."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import pytest
from draw_cases import HOSTILE, blames, make
from matplotlib.figure import Figure
from matplotlib.text import Text
from report_cases import sick

import shiftscope as ss
from shiftscope.draw.gallery import ranked_sites
from shiftscope.snapshot import Snapshot

ALL = ["depth-profile", "layers", "neurons", "stripes", "angles", "predicted"]
CASES = {
    "five layers": lambda: make(5, 20),
    "holes": lambda: make(20, 30, holes=0.3),
    "no loss": lambda: make(5, 20, loss=False),
    "one neuron": lambda: make(1, 1),
    "hostile names": lambda: make(6, 20, prefix=HOSTILE),
}


def shown_texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def cut_off(figure: Figure) -> list[str]:
    """Texts that reach beyond the canvas, after layout."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    tight = [ax.get_tightbbox(renderer) for ax in figure.axes]
    canvas = figure.bbox.padded(1.0)
    boxes = [(f"axes {i}", box) for i, box in enumerate(tight) if box is not None]
    texts = [text for part in (figure, *figure.subfigs) for text in part.texts]
    titles = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    return [
        name
        for name, box in boxes + titles
        if not (canvas.x0 <= box.x0 and box.x1 <= canvas.x1)
        or not (canvas.y0 <= box.y0 and box.y1 <= canvas.y1)
    ]


def overlapping_titles(figure: Figure) -> list[str]:
    """Titles that run into the legend of their panel or the title of the next one."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    bad, boxes = [], []
    for ax in figure.axes:
        box = ax._left_title.get_window_extent(renderer)  # type: ignore[attr-defined]
        legend = ax.get_legend()
        if legend is not None and box.overlaps(legend.get_window_extent(renderer)):
            bad.append(ax.get_title(loc="left"))
        if ax.get_title(loc="left"):
            bad += [ax.get_title(loc="left") for other in boxes if box.overlaps(other)]
            boxes.append(box)
    return bad


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_whole(case: str) -> None:
    snapshot = CASES[case]()
    drawn = ss.draw.figures(snapshot, blames(snapshot))
    assert [item.name for item in drawn] == ALL
    for item in drawn:
        assert cut_off(item.figure) == [], item.name
        assert overlapping_titles(item.figure) == [], item.name
        assert any(ax.has_data() for ax in item.figure.axes), item.name
        for ax in item.figure.axes:
            assert ax.has_data() or ax.texts, (item.name, ax.get_title(loc="left"))
        assert item.title
        assert item.caption.endswith(".")
        assert item.alt.endswith(".")
        assert re.fullmatch(r"[a-z-]+", item.name)


def test_an_empty_snapshot_has_no_figure() -> None:
    assert ss.draw.figures(Snapshot(records={})) == []


def test_nothing_measured_still_says_so() -> None:
    snapshot = make(3, holes=1.0)
    (profile, stripes) = ss.draw.figures(snapshot)
    assert (profile.name, stripes.name) == ("depth-profile", "stripes")
    assert cut_off(profile.figure) == []


def test_hostile_names_are_inert() -> None:
    snapshot = make(4, 8, prefix=HOSTILE)
    for item in ss.draw.figures(snapshot, blames(snapshot)):
        texts = [text.get_text() for text in shown_texts(item.figure)] + [item.alt]
        assert not any(c in text for text in texts for c in "\x1b\u202e日")
        assert not any("aaa\n" in text or "\n\x1b" in text for text in texts)
        for text in shown_texts(item.figure):
            assert text._preprocess_math(text.get_text())[1] is False  # type: ignore[attr-defined]


def test_nothing_global_changes() -> None:
    before = copy.deepcopy(dict(mpl.rcParams))
    with mpl.rc_context({"font.size": 31, "axes.grid": False, "text.usetex": True}):
        user = dict(mpl.rcParams)
        for item in ss.draw.figures(make(2, 4)):
            item.figure.draw_without_rendering()
        ss.draw.to_png_bytes(item.figure)
        assert dict(mpl.rcParams) == user
    assert dict(mpl.rcParams) == before


def test_the_users_style_does_not_reach_the_figures() -> None:
    snapshot = make(2, 4)
    plain = ss.draw.to_png_bytes(ss.draw.layer_boxes(snapshot))
    with mpl.rc_context({"font.size": 31, "text.usetex": True, "axes.facecolor": "black"}):
        styled = ss.draw.to_png_bytes(ss.draw.layer_boxes(snapshot))
    assert plain == styled


def test_no_figure_is_registered_with_pyplot() -> None:
    from matplotlib import _pylab_helpers

    ss.draw.figures(make(2, 4))
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []


def test_drawing_does_not_change_the_tables() -> None:
    snapshot = make(4, holes=0.1)
    sites, neurons = snapshot.sites.copy(), snapshot.neurons.copy()
    ss.draw.figures(snapshot, blames(snapshot))
    assert snapshot.sites.equals(sites)
    assert snapshot.neurons.equals(neurons)


def test_the_sites_of_findings_come_first() -> None:
    snapshot = make(5)
    ranked = ranked_sites(snapshot, blames(snapshot))
    assert ranked[:4] == ["net.0", "net.2", "net.6", "net.8"]
    assert sorted(ranked) == sorted(snapshot.sites["site"])
    rest = snapshot.sites.set_index("site").loc[ranked[4:], "shift_share"]
    assert rest.is_monotonic_decreasing


def test_a_collapsed_layer_does_not_get_a_scale_of_its_own() -> None:
    snapshot = make(3, 10, shifted=False)
    last = snapshot.neurons["site"] == "net.5:sigmoid"
    snapshot.neurons.loc[last, [f"a_q{q}" for q in ("01", "25", "50", "75", "99")]] = 0.5
    (item,) = [item for item in ss.draw.figures(snapshot) if item.name == "neurons"]
    assert len({ax.get_ylim() for ax in item.figure.axes}) == 1


def test_five_hundred_sites_are_drawn_in_time() -> None:
    snapshot = make(250, 256)
    assert len(snapshot.sites) == 500
    start = time.process_time()
    drawn = ss.draw.figures(snapshot, blames(snapshot))
    for item in drawn:
        ss.draw.to_png_bytes(item.figure)
    assert time.process_time() - start < 8
    for item in drawn:
        assert cut_off(item.figure) == [], item.name
        assert overlapping_titles(item.figure) == [], item.name


def test_a_png_is_written_whole(tmp_path: Path) -> None:
    figure = ss.draw.depth_profile(make(2))
    ss.draw.save_png(figure, tmp_path / "deep" / "profile.png")
    content = (tmp_path / "deep" / "profile.png").read_bytes()
    assert content == ss.draw.to_png_bytes(figure)
    assert content.startswith(b"\x89PNG")
    assert b"Software" not in content
    assert int.from_bytes(content[16:20]) == 1080
    with pytest.raises(ss.UsageError, match="cannot write"):
        ss.draw.save_png(figure, tmp_path / "deep")


def test_names_resolve_lazily() -> None:
    code = (
        "import sys, shiftscope as ss\n"
        "ss.draw.__all__, dir(ss.draw), ss.draw.COLORS\n"
        "print({'matplotlib', 'seaborn', 'pandas', 'torch'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
    for name in ss.draw.__all__:
        assert getattr(ss.draw, name).__doc__
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ss.draw.nonsense


def test_a_measured_network_is_drawn_over_its_predicted_profile() -> None:
    snapshot = sick(depth=4)
    (item,) = [i for i in ss.draw.figures(snapshot) if i.name == "depth-prediction"]
    assert "5 layers" in item.alt
    assert re.search(r"predicted 0\.\d+, measured 0\.\d+", item.alt)
    assert cut_off(item.figure) == []
    assert overlapping_titles(item.figure) == []
    labels = [line.get_label() for ax in item.figure.axes for line in ax.lines]
    assert labels == ["predicted", "measured"] * 2


def test_stripes_show_the_most_shifted_site_not_the_first_blamed() -> None:
    import torch
    from torch import nn

    import shiftscope as ss

    torch.manual_seed(0)
    layers = [m for _ in range(4) for m in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(32, 3))
    data = [(torch.randn(200, 32), torch.arange(200) % 3)]
    snapshot = ss.analyze(model, data, nn.functional.cross_entropy)
    named = {f.name: f for f in ss.draw.figures(snapshot, ss.diagnose(snapshot))}
    shares = snapshot.sites.set_index("site").shift_share
    assert shares["0"] < 0.2
    # The later layers are all shift; the output layer is narrower than they are.
    assert named["stripes"].alt.rstrip(".").rsplit(" ", 1)[-1] in {"4", "6"}
