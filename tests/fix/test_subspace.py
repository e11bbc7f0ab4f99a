"""The hyperplane's basis: golden values, exactness in every dtype, derivatives, transforms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.linalg import helmert
from support import golden
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from shiftscope.fix import zerosum
from shiftscope.fix.subspace import coordinates, embed, project, unit

# torch's own forward-mode rules still go through torch.jit
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def basis(m: int, normal: Tensor | None = None) -> Tensor:
    """The columns that the structured form stands for."""
    return embed(torch.eye(m - 1, dtype=torch.float64), normal).T


@pytest.mark.parametrize("case", range(4))
def test_zero_sum_basis_is_the_golden_one(case: int) -> None:
    gold = golden("bases")["zero_sum"][case]
    m, w = gold["m"], double(gold["w"])
    torch.testing.assert_close(
        basis(m), double(gold["householder_B_columns_basis"]), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(coordinates(w), double(gold["v_householder"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(project(w), double(gold["w_projected"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        basis(m) @ basis(m).T, double(gold["projector_BBt"]), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("case", range(4))
def test_helmert_spans_the_same_space(case: int) -> None:
    gold = golden("bases")["zero_sum"][case]
    columns = torch.from_numpy(helmert(gold["m"]).T.copy())
    expected = double(gold["helmert_B_columns_basis"])
    torch.testing.assert_close(columns, expected, atol=1e-12, rtol=0)
    w = double(gold["w"])
    torch.testing.assert_close(columns.T @ w, double(gold["v_helmert"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(columns @ columns.T @ w, project(w), atol=1e-12, rtol=0)
    rotation = columns.T @ basis(gold["m"])  # BR is the full freedom of a basis
    torch.testing.assert_close(
        rotation @ rotation.T, torch.eye(gold["m"] - 1, dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("case", range(2))
def test_data_aware_basis_is_the_golden_one(case: int) -> None:
    gold = golden("bases")["data_aware"][case]
    mean, w = double(gold["mu_hat"]), double(gold["w"])
    n = unit(mean)
    torch.testing.assert_close(basis(4, n), double(gold["householder_B"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(coordinates(w, n), double(gold["v"]), atol=1e-12, rtol=0)
    torch.testing.assert_close(project(w, n), double(gold["w_projected"]), atol=1e-12, rtol=0)
    residual = project(w) @ mean
    assert abs(float(residual)) == pytest.approx(
        abs(gold["residual_shift_of_plain_lcw"]), abs=1e-12
    )


@pytest.mark.parametrize("m", [2, 3, 7, 64, 301])
@pytest.mark.parametrize("given", [False, True])
def test_basis_is_orthonormal_and_orthogonal_to_the_normal(m: int, given: bool) -> None:
    torch.manual_seed(m)
    normal = unit(torch.randn(m, dtype=torch.float64)) if given else None
    columns = basis(m, normal)
    n = torch.full((m,), m**-0.5, dtype=torch.float64) if normal is None else normal
    identity = torch.eye(m - 1, dtype=torch.float64)
    torch.testing.assert_close(columns.T @ columns, identity, atol=1e-13, rtol=0)
    torch.testing.assert_close(columns.T @ n, torch.zeros_like(n[1:]), atol=1e-13, rtol=0)


def draws(m: int) -> dict[str, Tensor]:
    """Vectors of length m, benign and not: along the normal, one-sided, with one large entry."""
    torch.manual_seed(0)
    spike = torch.full((16, m), 1e-3)
    spike[:, 0] = 1.0
    return {
        "normal": torch.randn(16, m),
        "one-sided": torch.rand(16, m),
        "far mean": torch.randn(16, m) + 10,
        "constant": torch.ones(16, m) * torch.rand(16, 1),
        "spike": spike,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [2, 17, 256, 4608])
@pytest.mark.parametrize("name", draws(2))
def test_sum_is_within_rounding_of_zero(dtype: torch.dtype, m: int, name: str) -> None:
    w = embed(draws(m - 1)[name].to(dtype)).double()
    bound = torch.finfo(dtype).eps * math.sqrt(m) * w.norm(dim=1)
    assert bool((w.sum(1).abs() <= bound).all())
    p = project(draws(m)[name].to(dtype)).double()
    bound = torch.finfo(dtype).eps * math.sqrt(m) * p.norm(dim=1)
    assert bool((p.sum(1).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [2, 17, 256, 4608])
@pytest.mark.parametrize("name", ["normal", "one-sided", "far mean", "spike"])
def test_product_with_a_mean_is_within_rounding_of_zero(
    dtype: torch.dtype, m: int, name: str
) -> None:
    torch.manual_seed(1)
    mean = (torch.rand(m) + 0.1 * torch.randn(m)).to(torch.promote_types(dtype, torch.float32))
    for w in (
        embed(draws(m - 1)[name].to(dtype), unit(mean)).double(),
        project(draws(m)[name].to(dtype), unit(mean)).double(),
    ):
        bound = torch.finfo(dtype).eps * math.sqrt(m) * w.norm(dim=1) * mean.double().norm()
        assert bool(((w @ mean.double()).abs() <= bound).all())


@pytest.mark.parametrize("function", [embed, coordinates, project])
@pytest.mark.parametrize("given", [False, True])
def test_first_and_second_derivatives(function: Callable[..., Tensor], given: bool) -> None:
    torch.manual_seed(2)
    normal = unit(torch.randn(3, 6, dtype=torch.float64)) if given else None
    x = torch.randn(3, 5 if function is embed else 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(
        function,
        (x, normal),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(function, (x, normal), check_batched_grad=True)


def test_function_transforms() -> None:
    v = torch.randn(4, 5, dtype=torch.float64)
    normals = unit(torch.randn(4, 6, dtype=torch.float64))
    one_by_one = torch.stack([embed(a, n) for a, n in zip(v, normals, strict=True)])
    torch.testing.assert_close(torch.func.vmap(embed)(v, normals), one_by_one)
    torch.testing.assert_close(
        torch.func.vmap(embed, in_dims=(1, None), out_dims=1)(v.T, None), embed(v).T
    )
    torch.testing.assert_close(torch.func.jacrev(embed)(v[0]), basis(6))
    torch.testing.assert_close(torch.func.jacfwd(embed)(v[0]), basis(6))


def test_backward_keeps_no_activation() -> None:
    kept = []
    v = torch.randn(8, 31, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        embed(v)
    assert kept == []


@pytest.mark.parametrize("shape", [(40, 30), (39, 30), (12, 7, 8), (3, 500), (3000,)])
@pytest.mark.parametrize("strided", [False, True])
def test_pieces_for_the_cache_make_what_the_whole_makes(
    shape: tuple[int, ...], strided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    v = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] if strided else torch.randn(shape)
    v.requires_grad_()
    whole = embed(v.detach())
    monkeypatch.setattr(zerosum, "_zerosum", None)
    pieces, made = zerosum._pieces, []
    monkeypatch.setattr(zerosum, "_CACHE", 2**8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(
        zerosum, "_pieces", lambda *tensors: made.extend(pieces(*tensors)) or list(made)
    )
    w = embed(v)
    assert len(made) == {(40, 30): 20, (39, 30): 20, (12, 7, 8): 12, (3, 500): 3}.get(shape, 1)
    torch.testing.assert_close(w, whole)
    bound = torch.finfo(w.dtype).eps * math.sqrt(w.shape[-1]) * w.detach().norm(dim=-1)
    assert bool((w.detach().double().sum(-1).abs() <= bound).all())
    w.backward(whole)
    assert v.grad is not None
    torch.testing.assert_close(v.grad, v.detach())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_unit_survives_squares_that_would_not(scale: float) -> None:
    n = unit(torch.tensor([3.0, -4.0]) * scale)
    torch.testing.assert_close(n, torch.tensor([0.6, -0.8]))
