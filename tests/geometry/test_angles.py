"""Angles, norms and predicted shift against golden values and naive formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden

from shiftscope import geometry as geo
from shiftscope.errors import UsageError

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def close(got: torch.Tensor, want: Any, atol: float = 1e-12, rtol: float = 1e-12) -> None:
    expected = torch.as_tensor(np.asarray(want, dtype=np.float64))
    torch.testing.assert_close(got, expected, atol=atol, rtol=rtol, equal_nan=True)


def test_golden_angles() -> None:
    for case in golden("angles")["cases"]:
        w, mu = (torch.tensor(case[key], dtype=torch.float64) for key in ("w", "mu"))
        want = np.nan if case["theta_rad"] is None else case["theta_rad"]
        close(geo.angle(w, mu), want, atol=1e-10 if "nearly" in case["case"] else 1e-12)
        close(geo.shift(w[None], mu), [case["E_z"]])


def test_golden_propositions() -> None:
    data = golden("propositions")
    w = torch.tensor(data["W"], dtype=torch.float64)
    mu = torch.tensor(data["A_columns_are_samples"], dtype=torch.float64).mean(1)
    first, second = data["prop1_gamma_pos"], data["prop2_empirical"]
    close(geo.angle_to_ones(w), [row["theta_to_ones"] for row in first])
    close(geo.row_norms(w), [row["norm_w"] for row in first])
    close(geo.angle_to_mean(w, mu), [row["theta_to_mu"] for row in second])
    close(geo.shift(w, mu), [row["E_z"] for row in second])
    close(geo.row_norms(mu[None]), [second[0]["norm_mu"]])
    close(geo.xi(w), data["prop5"]["xi"])
    fan = data["fan_identity"]
    close(geo.eta(w).mean(), fan["mean_eta"])
    close(geo.xi(w).mean(), fan["mean_xi"])
    close(geo.eta(w).sum(), fan["frobenius2"])
    zero_sum = torch.tensor(data["prop3"]["W_lcw"], dtype=torch.float64)
    close(geo.lcw_residual(zero_sum), 0.0)
    close(geo.eta(zero_sum), data["prop4"]["eta"])
    close(geo.shift(zero_sum, torch.ones(4)), data["prop3"]["E_z_for_gamma_1"])
    for name, rows in (("prop4", zero_sum), ("prop4_general_w", w)):
        part = data[name]
        close(geo.shift(rows, torch.full((4,), part["gamma"])), part["E_z"])
        close(part["sigma2"] * geo.eta(rows), part["V_z"])
    close(data["prop5"]["sigma2_grad"] * geo.xi(w), data["prop5"]["V_grad_a"])


@pytest.mark.parametrize("sign", ["pos", "neg", "zero"])
def test_golden_proposition_one_with_every_sign_of_gamma(sign: str) -> None:
    data = golden("propositions")
    w = torch.tensor(data["W"], dtype=torch.float64)
    for i, row in enumerate(data[f"prop1_gamma_{sign}"]):
        mu = torch.full((4,), row["gamma"], dtype=torch.float64)
        close(geo.shift(w[i : i + 1], mu), [row["E_z"]])
        want = row["theta_to_gamma_ones"]
        close(geo.angle(w[i], mu), np.nan if want is None else want)


def test_golden_gradient_shift() -> None:
    data = golden("propositions")
    part = data["prop5_general_empirical"]
    columns = torch.tensor(data["W"], dtype=torch.float64).T
    mean = torch.tensor(part["grad_z_columns_are_samples"], dtype=torch.float64).mean(1)
    close(geo.angle_to_mean(columns, mean), part["angle_column_to_mean_grad"])
    close(geo.shift(columns, mean), part["E_grad_a"])


def test_golden_p_gamma_index_is_the_squared_cosine() -> None:
    mu = torch.tensor([[2.0, 2.0, 2.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    close(geo.p_gamma_index(mu), [1.0, 0.0, np.nan, 1 / 3])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_angles_do_not_depend_on_the_scale(scale: float) -> None:
    u, v = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([4.0, 3.0, 1.0])
    want = np.arccos(24 / (5 * np.sqrt(26)))
    close(geo.angle(u * scale, v), want, atol=1e-6)
    close(geo.angle(u * scale, v / scale), want, atol=1e-6)
    close(geo.lcw_residual((u * scale)[None]), 7 / (5 * np.sqrt(3)), atol=1e-6)


def test_angle_of_vectors_that_are_not_finite_is_nan() -> None:
    u = torch.tensor([[1.0, torch.inf], [torch.nan, 1.0], [0.0, 0.0], [1.0, 0.0]])
    close(geo.angle(u, torch.tensor([1.0, 0.0])), [np.nan, np.nan, np.nan, 0.0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(7, 5), (3, 2, 2), (0, 4), (2, 0)])
def test_rows_in_pieces_equal_one_pass(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftscope.geometry.angles._BLOCK", 11)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = w.flatten(1).double()
    close(geo.eta(w), (rows**2).sum(1))
    close(geo.xi(w), (rows**2).sum(0))
    close(geo.row_norms(w), rows.norm(dim=1))
    mu = torch.arange(rows.shape[1], dtype=torch.float32) + 1
    close(geo.shift(w, mu), rows @ mu.double())
    cos = (rows @ mu.double()) / (rows.norm(dim=1) * mu.double().norm())
    close(geo.angle_to_mean(w, mu), cos.arccos(), atol=1e-9)
    close(geo.angle_to_ones(w), (rows.sum(1) / rows.norm(dim=1) / rows.shape[1] ** 0.5).arccos())


@settings(max_examples=60, deadline=None)
@given(
    # Below about 1e-280 the factor itself would round the vector, or take it to zero.
    st.lists(
        st.floats(-1e30, 1e30).filter(lambda value: value == 0 or abs(value) > 1e-280),
        min_size=2,
        max_size=6,
    ),
    st.floats(1e-20, 1e20),
)
def test_angle_is_symmetric_scale_free_and_turns_round(u: list[float], factor: float) -> None:
    a = torch.tensor(u, dtype=torch.float64)
    b = torch.arange(len(u), dtype=torch.float64) + 1
    forth, back, turned = geo.angle(a, b), geo.angle(b, a * factor), geo.angle(-a, b)
    if bool(forth.isnan()):
        assert bool((a == 0).all())
        return
    assert 0 <= float(forth) <= np.pi
    close(back, forth, atol=1e-9)
    close(forth + turned, np.pi, atol=1e-12)


def test_lcw_residual_leaves_zero_rows_out() -> None:
    close(geo.lcw_residual(torch.tensor([[0.0, 0.0], [1.0, -1.0], [3.0, 4.0]])), 7 / (5 * 2**0.5))
    close(geo.lcw_residual(torch.zeros(2, 3)), np.nan)
    close(geo.lcw_residual(torch.zeros(0, 3)), np.nan)


def test_misfits_are_told() -> None:
    for call in (
        lambda: geo.eta(torch.zeros(3)),
        lambda: geo.angle(torch.zeros(3), torch.zeros(4)),
        lambda: geo.angle(torch.tensor(1.0), torch.tensor(1.0)),
        lambda: geo.shift(torch.zeros(2, 3), torch.zeros(4)),
        lambda: geo.shift(torch.zeros(2, 3), torch.zeros(2, 3)),
        lambda: geo.PatchMap.of_conv((4, 4), 5),
        lambda: geo.PatchMap.of_conv((4, 4), (1, 1, 1)),
        lambda: geo.PatchMap.of_conv((4, 4), 3, padding=(1, 1, 1)),
        lambda: geo.PatchMap.of_conv((4, 4), 3, padding="both"),
        lambda: geo.PatchMap.of_conv((4, 4), 3, padding_mode="mirror"),
        lambda: geo.PatchMap.of_conv((4, 4), 3, transposed=True, padding_mode="circular"),
        lambda: geo.PatchMap.of_conv((), 3),
        lambda: geo.PatchMap.of_conv((4, 4), 3).patch_mean(torch.zeros(1, 4, 5)),
        lambda: geo.PatchMap.of_conv((4, 4), 3, groups=2).patch_mean(torch.zeros(3, 4, 4)),
        lambda: geo.PatchMap.of_conv((4, 4), 3).unroll(torch.zeros(1, 1, 2, 2)),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.reason
        assert caught.value.remedy
