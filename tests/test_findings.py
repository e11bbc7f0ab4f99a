"""Findings against networks whose fault is known, and against healthy ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from standin import measure, mlp
from support import shared_path
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.capture.bare_weights import weights_only
from shiftscope.findings import CAUSES, Evidence, Finding, Thresholds, diagnose, verdict
from shiftscope.findings.finding import percent
from shiftscope.findings.learning import initial_spread
from shiftscope.findings.profile import fit_profile
from shiftscope.findings.reading import Reading, share_error
from shiftscope.findings.units import never_active_bound
from shiftscope.snapshot import Snapshot
from shiftscope.tally import Counts

DEPTH, WIDTH, ROWS = 20, 128, 200


def data(rows: int = ROWS, width: int = WIDTH, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return x, torch.randint(10, (rows,), generator=generator)


def deep(activation: type[nn.Module], depth: int = DEPTH, seed: int = 0) -> nn.Sequential:
    model = mlp([WIDTH] * (depth + 1) + [10], activation, seed)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    return model


def linears(model: nn.Sequential) -> list[nn.Linear]:
    return [module for module in model if isinstance(module, nn.Linear)]


@torch.no_grad()
def rescale(model: nn.Sequential, x: Tensor) -> nn.Sequential:
    """Unit pooled variance of z, layer by layer (Kutsuna 2019, Section 4.3)."""
    value = x
    for module in model:
        if isinstance(module, nn.Linear):
            module.weight /= module(value).std(correction=0)
        value = module(value)
    return model


@torch.no_grad()
def zero_sum(model: nn.Sequential) -> nn.Sequential:
    for layer in linears(model):
        layer.weight -= layer.weight.mean(1, keepdim=True)
    return model


def plain(activation: type[nn.Module]) -> nn.Sequential:
    return rescale(deep(activation), data()[0])


def lcw(activation: type[nn.Module]) -> nn.Sequential:
    return rescale(zero_sum(deep(activation)), data()[0])


@cache
def case(kind: Callable[[type[nn.Module]], nn.Sequential], activation: type[nn.Module]) -> Snapshot:
    """A network of this file, measured once."""
    return measure(kind(activation), *data())


def findings_of(
    kind: Callable[[type[nn.Module]], nn.Sequential], activation: type[nn.Module]
) -> dict[str, Finding]:
    return {finding.cause: finding for finding in diagnose(case(kind, activation))}


def found(model: nn.Sequential, backward: bool = True, **manifest: Any) -> dict[str, Finding]:
    x, y = data()
    findings = diagnose(measure(model, x, y if backward else None, **manifest))
    return {finding.cause: finding for finding in findings}


def severe(findings: dict[str, Finding]) -> set[str]:
    return {c for c, finding in findings.items() if finding.severity in {"serious", "critical"}}


# -- activation shift and the gradient ---------------------------------------------------------


def test_sigmoid_with_standard_weights_is_critical_and_all_else_follows() -> None:
    findings = findings_of(plain, nn.Sigmoid)
    top = next(iter(findings.values()))
    assert (top.cause, top.severity) == ("activation_shift", "critical")
    assert findings["vanishing_gradient"].follows_from == "activation_shift"
    assert "follows from activation shift" in findings["vanishing_gradient"].explanation
    # 19 steps of E f'^2 / E f^2 = 0.152827 (Kutsuna 2019, Section 4; width to infinity)
    rate = findings["vanishing_gradient"].evidence["decades_per_layer"]
    assert float(rate.value) == pytest.approx(0.8158, abs=0.07)
    assert rate.se is not None
    assert 0 < rate.se < 0.05
    assert "lcw" in top.advice
    assert top.sites[0] in {"33", "35", "37", "39"}


def test_sigmoid_with_zero_sum_weights_is_healthy() -> None:
    assert severe(findings_of(lcw, nn.Sigmoid)) == set()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_healthy_deep_networks_have_no_serious_finding(activation: type[nn.Module]) -> None:
    findings = findings_of(plain, activation)
    assert severe(findings) == set()
    assert "vanishing_gradient" not in findings


def test_shift_under_relu_that_costs_no_gradient_is_a_remark() -> None:
    findings = findings_of(plain, nn.ReLU)
    assert findings["activation_shift"].severity == "info"
    assert "phi_bw/phi_fw = 1.467" in findings["activation_shift"].advice


def test_zero_sum_weights_under_relu_explode_and_the_advice_says_why() -> None:
    finding = findings_of(lcw, nn.ReLU)["exploding_gradient"]
    assert finding.severity in {"watch", "serious"}
    # log10(pi / (pi - 1)) = 0.1664 decades a layer (Kutsuna 2019, Proposition 6)
    assert float(finding.evidence["decades_per_layer"].value) == pytest.approx(-0.1664, abs=0.02)
    assert "release" in finding.advice


def test_shift_of_a_shallow_network_is_at_most_worth_watching() -> None:
    x, y = data()
    model = rescale(deep(nn.Sigmoid, depth=3), x)
    findings = {f.cause: f for f in diagnose(measure(model, x, y))}
    assert findings["activation_shift"].severity in {"info", "watch"}
    assert severe(findings) == set()


def test_the_share_must_exceed_its_threshold_by_two_standard_errors() -> None:
    snapshot = case(plain, nn.ReLU)
    share = snapshot.sites.set_index("site")["shift_share"]
    finding = next(f for f in diagnose(snapshot) if f.cause == "activation_shift")
    site = finding.sites[-1]
    error = share_error(Reading(snapshot).rows[int(site)])
    just_above = Thresholds(shift_share=share[site] - error)
    assert site in finding.sites
    again = [f for f in diagnose(snapshot, just_above) if f.cause == "activation_shift"]
    assert site not in (again[0].sites if again else ())


def test_sites_are_told_worst_first() -> None:
    snapshot = case(plain, nn.Sigmoid)
    share = snapshot.sites.set_index("site")["shift_share"]
    sites = diagnose(snapshot)[0].sites
    assert [share[s] for s in sites] == sorted((share[s] for s in sites), reverse=True)


# -- without gradients ---------------------------------------------------------------------------


def test_without_a_loss_the_decay_is_predicted_and_the_verdict_capped() -> None:
    forward = found(plain(nn.Sigmoid), backward=False)
    finding = forward["activation_shift"]
    assert finding.severity == "serious"
    assert "capped at serious" in finding.explanation
    measured = findings_of(plain, nn.Sigmoid)["vanishing_gradient"].evidence["decades_total"]
    predicted = finding.evidence["predicted_decay"]
    assert float(predicted.value) == pytest.approx(float(measured.value), rel=0.05)
    assert "gradients" in forward["coverage"].title


def test_without_a_loss_healthy_networks_stay_healthy() -> None:
    for model in (plain(nn.ReLU), plain(nn.Tanh), lcw(nn.Sigmoid)):
        findings = found(model, backward=False)
        assert severe(findings) == set()
        snapshot = measure(model, data()[0])
        assert "gradients were not measured" in verdict(list(findings.values()), snapshot)[
            "sentence"
        ] or any(f.severity == "watch" for f in findings.values())


# -- scale, units, numbers -----------------------------------------------------------------------


def scaled(model: nn.Sequential, factor: float) -> nn.Sequential:
    with torch.no_grad():
        for layer in linears(model):
            layer.weight *= factor
    return model


def test_small_weights_are_a_fault_of_scale_not_of_shift() -> None:
    findings = found(scaled(deep(nn.Tanh), 0.3))
    assert findings["weight_scale"].severity == "serious"
    assert findings["vanishing_gradient"].follows_from == "weight_scale"
    assert findings["variance_collapse"].follows_from == "weight_scale"
    assert "activation_shift" not in findings


def test_large_weights_explode_under_relu() -> None:
    findings = found(scaled(plain(nn.ReLU), 2.0))
    assert "grows" in findings["weight_scale"].title
    assert findings["weight_scale"].severity == "serious"


def test_decay_under_relu_is_blamed_on_the_scale_and_not_on_shift() -> None:
    """PyTorch's default initialisation: ||w||^2 = 1/3, where ReLU needs 2; biases hold z up."""
    for backward in (True, False):
        findings = found(mlp([WIDTH] * 13 + [10], nn.ReLU), backward)
        assert findings["activation_shift"].severity == "watch"
        assert "another cause" in findings["activation_shift"].explanation
        scale = findings["weight_scale"]
        assert scale.severity == ("critical" if backward else "serious")
        assert float(scale.evidence["eta"].value) == pytest.approx(1 / 3, abs=0.01)
        needed = float(scale.evidence["eta_that_keeps_the_gradient"].value)
        assert needed == pytest.approx(2.0, abs=0.15)
        assert next(iter(findings)) == "weight_scale"
        if backward:
            assert findings["vanishing_gradient"].follows_from == "weight_scale"


def test_saturation_is_told_with_its_error_and_not_for_softmax() -> None:
    findings = found(scaled(deep(nn.Tanh, depth=4), 30.0))
    finding = findings["saturation"]
    assert finding.severity == "serious"
    fraction = finding.evidence["saturated_fraction"]
    share = float(fraction.value)
    assert fraction.se == pytest.approx(math.sqrt(share * (1 - share) / ROWS))
    model = mlp([WIDTH, WIDTH, WIDTH, 10], nn.Tanh)
    model[1] = nn.Softmax(dim=1)
    assert all("1" not in f.sites for f in found(scaled(model, 30.0)).values())


def test_dead_units_carry_a_bound() -> None:
    model = plain(nn.ReLU)
    with torch.no_grad():
        linears(model)[3].bias[:100] = -1e3
    finding = found(model)["dead_units"]
    assert (finding.severity, finding.sites[0]) == ("serious", "7")
    bound = finding.evidence["probability_active"].high
    assert bound == pytest.approx(stats.binomtest(0, ROWS).proportion_ci(0.90).high)
    assert bound == pytest.approx(3 / ROWS, rel=0.01)


def test_a_dead_layer_is_critical_and_cuts_the_gradient() -> None:
    model = plain(nn.ReLU)
    with torch.no_grad():
        linears(model)[3].bias[:] = -1e3
        for layer in linears(model)[4:]:
            layer.bias.normal_()
    findings = found(model)
    assert findings["dead_units"].severity == "critical"
    assert "No gradient reaches 4 of 20" in findings["vanishing_gradient"].title
    assert findings["vanishing_gradient"].follows_from == "dead_units"


def test_layers_of_zeros_are_named_as_what_stops_the_gradient() -> None:
    x, y = data()
    model = rescale(deep(nn.Tanh, depth=4), x)
    nn.init.zeros_(linears(model)[-1].weight)
    finding = {f.cause: f for f in diagnose(measure(model, x, y))}["vanishing_gradient"]
    assert (finding.severity, finding.title[:34]) == ("watch", "No gradient reaches 4 of 4 hidden ")
    assert "weights right behind are all zero (at 8)" in finding.explanation
    assert "--trial" in finding.advice
    with torch.no_grad():
        linears(model)[1].bias.fill_(-1e6)  # and dead units, which zeros do not explain
        linears(model)[-1].weight.normal_()
    finding = {f.cause: f for f in diagnose(measure(model, x, y))}["vanishing_gradient"]
    assert finding.severity == "critical"


def test_few_samples_allow_no_verdict_on_dead_units() -> None:
    model = plain(nn.ReLU)
    with torch.no_grad():
        linears(model)[3].bias[:100] = -1e3
    x, y = data(rows=8)
    findings = {f.cause: f for f in diagnose(measure(model, x, y))}
    assert findings["dead_units"].severity == "info"
    assert never_active_bound(0) == 1.0


def test_non_finite_values_come_first_with_the_first_site() -> None:
    model = plain(nn.Tanh)
    with torch.no_grad():
        linears(model)[5].weight[3] = math.nan
    findings = list(found(model).values())
    assert (findings[0].cause, findings[0].severity) == ("non_finite", "critical")
    assert findings[0].sites[0] == "10"


def test_a_gradient_that_is_not_finite_is_told_from_the_loss_on() -> None:
    x, y = data()
    snapshot = measure(plain(nn.Tanh), x, y)
    records = dict(snapshot.records)
    for name in ("0", "8"):
        streams = dict(records[name].streams)
        streams["grad_z"] = replace(
            streams["grad_z"], counts=Counts.of(torch.full((ROWS, WIDTH), math.inf))
        )
        records[name] = replace(records[name], streams=streams)
    top = diagnose(replace(snapshot, records=records))[0]
    assert (top.cause, top.sites) == ("non_finite", ("8", "0"))


def test_rounding_noise_is_flagged_and_kept_out_of_the_profiles() -> None:
    model = plain(nn.Sigmoid).float()
    x, y = data()
    findings = {f.cause: f for f in diagnose(measure(model, x.float(), y))}
    finding = findings["below_resolution"]
    assert finding.sites
    assert "float64" in finding.advice
    exact = findings_of(plain, nn.Sigmoid)["variance_collapse"].evidence["decades_per_layer"]
    noisy = findings["variance_collapse"].evidence["decades_per_layer"]
    assert float(noisy.value) == pytest.approx(float(exact.value), rel=0.1)


# -- learning ------------------------------------------------------------------------------------


def test_untouched_weights_are_a_remark_until_something_blocks_learning() -> None:
    fresh = mlp([64, 64, 64, 10], nn.ReLU)
    x, y = data(width=64)
    findings = {f.cause: f for f in diagnose(measure(fresh, x, y, accuracy=0.1, loss=2.3026))}
    assert findings["not_learning"].severity == "info"
    blocked = mlp([64] * 8 + [10], nn.Sigmoid)
    findings = {f.cause: f for f in diagnose(measure(blocked, x, y, accuracy=0.1, loss=2.3026))}
    assert findings["not_learning"].severity == "serious"
    assert findings["not_learning"].follows_from == "activation_shift"
    findings = {f.cause: f for f in diagnose(measure(blocked, x, y, accuracy=0.9, loss=0.1))}
    assert findings["not_learning"].severity == "info"


def test_trained_weights_at_chance_point_at_the_data() -> None:
    x, y = data(width=64)
    fresh, trained = (mlp([64, 64, 64, 10], nn.ReLU) for _ in range(2))
    with torch.no_grad():
        for layer in linears(fresh):
            nn.init.kaiming_normal_(layer.weight)
        trained[0].weight *= torch.linspace(0.5, 2, 64)[:, None]
    told = {f.cause: f for f in diagnose(measure(trained, x, y, accuracy=0.1))}
    assert told["not_learning"].severity == "watch"
    assert "inputs" in told["not_learning"].advice
    assert told["not_learning"].follows_from == ""
    for model, accuracy in ((fresh, 0.1), (trained, 0.9)):
        causes = {f.cause for f in diagnose(measure(model, x, y, accuracy=accuracy))}
        assert "not_learning" not in causes


def test_one_trained_layer_is_enough_to_count_as_touched() -> None:
    model = mlp([64, 64, 64, 10], nn.ReLU)
    with torch.no_grad():
        model[2].weight += 0.05 * torch.randn(64, 64, dtype=torch.float64)
    x, y = data(width=64)
    assert "not_learning" not in {f.cause for f in diagnose(measure(model, x, y))}


def test_a_head_of_zeros_is_judged_without_a_warning() -> None:
    model = mlp([64, 64, 10], nn.ReLU)
    nn.init.zeros_(model[2].weight)
    x, y = data(width=64)
    assert "not_learning" not in {f.cause for f in diagnose(measure(model, x, y))}


def test_the_spread_of_row_norms_is_one_at_initialisation() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(-1, 1, (20000, 50)) / math.sqrt(50)
    assert initial_spread((weights**2).sum(1), 50) == pytest.approx(1.0, abs=5 * 0.01)


# -- the pieces ----------------------------------------------------------------------------------


def test_the_rate_is_the_textbook_regression() -> None:
    rng = np.random.default_rng(3)
    logs = 0.4 * np.arange(12) + rng.normal(0, 0.3, 12)
    rows = [{"site": str(i), "samples": 10**9} for i in range(12)]
    profile = fit_profile(rows, list(logs), rising=True)
    line = stats.linregress(np.arange(12), logs)
    assert profile is not None
    assert profile.rate == pytest.approx(line.slope)
    assert profile.rate_se == pytest.approx(line.stderr, rel=1e-4)


def test_one_odd_layer_alone_raises_no_alarm() -> None:
    rows = [{"site": str(i), "samples": 1000} for i in range(10)]
    profile = fit_profile(rows, [-9.0] + [0.0] * 9, rising=True)
    assert profile is not None
    assert profile.measured == 9.0
    assert not profile.exceeds(3.3, 2.0)


def test_the_bound_of_the_share_covers_its_spread() -> None:
    """Share over 200 draws of few samples, against the worst-case error where none was measured."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        z = rng.normal(size=200) + rng.normal(size=(30, 200))
        within, between = z.var(0).mean(), z.mean(0).var() - z.var(0).mean() / 30
        shares.append(between / (between + within))
    error = share_error({"shift_share": float(np.mean(shares)), "samples": 30, "count": 30})
    assert np.std(shares) < error < 1


def test_every_threshold_has_a_source_and_every_finding_names_one() -> None:
    limits = Thresholds()
    assert all(len(limits.source(item.name)) > 10 for item in fields(limits))
    for snapshot in (case(plain, nn.Sigmoid), case(lcw, nn.ReLU)):
        for finding in diagnose(snapshot):
            assert finding.cause in CAUSES
            assert finding.source
            assert finding.advice
            assert finding.title[-1] != "."


def test_findings_are_sorted_and_told_once_per_cause() -> None:
    findings = list(findings_of(plain, nn.Sigmoid).values())
    ranks = [finding.rank for finding in findings]
    assert ranks == sorted(ranks)
    assert len({f.cause for f in findings}) == len(findings)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.5, "50 %"),
        (0.985, "98 %"),
        (0.9987, "99 %"),
        (0.9997, "99.9 %"),
        (0.99998, "99.99 %"),
        (0.99999999, "over 99.9999 %"),
        (1.0, "over 99.9999 %"),
    ],
)
def test_shares_near_one_keep_their_nines(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (Evidence(0.7312, se=0.0123), "0.731 ± 0.012"),
        (Evidence(5.0, se=0.2, unit="decades", rows=900), "5.00 ± 0.20 decades from 900 rows"),
        (Evidence(0, high=0.003, site="a"), "0 (below 0.003 at 95 % confidence) at a"),
        (Evidence(math.nan), "not measured"),
    ],
)
def test_evidence_shows_the_digits_its_error_leaves(evidence: Evidence, text: str) -> None:
    assert evidence.text() == text


def test_the_verdict_of_nothing_and_of_weights_alone() -> None:
    empty = Snapshot(records={})
    assert "Nothing was measured" in verdict(diagnose(empty), empty)["sentence"]
    full = case(plain, nn.Tanh)
    bare = {n: replace(r, streams={}, samples=0) for n, r in full.records.items()}
    weights = Snapshot(records=bare, manifest={})
    findings = diagnose(weights)
    assert "Weights only" in verdict(findings, weights)["sentence"]
    assert {f.severity for f in findings} <= {"info"}


def test_where_no_site_was_seen_a_loss_that_was_given_is_not_asked_for() -> None:
    gaps = (("", "a TorchScript module: no hook and no mode sees its inside"),)
    told = diagnose(Snapshot({}, gaps, {"gradients": True}))
    assert [(f.title, f.advice) for f in told] == [
        ("Not measured: 1 module", "Nothing, if these parts do not matter here.")
    ]


def test_a_file_without_weights_to_read_asks_for_a_model() -> None:
    nothing = weights_only({"0.scale": torch.ones(1)}, left_out=["0._packed_params"])
    findings = diagnose(nothing)
    assert "no weights were found" in verdict(findings, nothing)["sentence"]
    assert [f.title for f in findings] == ["Not measured: 1 module, signals and gradients"]
    assert "--model" in findings[0].advice


def test_the_verdict_counts_what_follows() -> None:
    snapshot = case(plain, nn.Sigmoid)
    told = verdict(diagnose(snapshot), snapshot)
    assert told["severity"] == "critical"
    assert "follow from it" in told["sentence"]


def test_gaps_are_told_as_a_notice() -> None:
    snapshot = replace(case(plain, nn.Tanh), gaps=(("rnn", "fused kernel"),))
    findings = diagnose(snapshot)
    assert [(f.cause, f.severity, f.sites) for f in findings] == [("coverage", "info", ("rnn",))]


def test_the_public_names() -> None:
    assert ss.diagnose is diagnose
    assert ss.Finding is Finding


# -- published checkpoints -------------------------------------------------------------------------


def sprite() -> tuple[Tensor, Tensor]:
    image = pytest.importorskip("PIL.Image")
    path: Path = shared_path("data/fashion_sprite/fashion-mnist-sprite.png")
    pixels = np.asarray(image.open(path).convert("L"), dtype=np.float64)
    tiles = pixels.reshape(30, 28, 30, 28).transpose(0, 2, 1, 3).reshape(900, 784)
    return torch.from_numpy(tiles / 127.5 - 1), torch.arange(10).repeat_interleave(90)


@pytest.fixture(scope="module")
def fashion() -> Callable[[str, type[nn.Module]], list[Finding]]:
    x, y = sprite()

    def diagnosed(name: str, activation: type[nn.Module]) -> list[Finding]:
        model = mlp([784, 512, 256, 256, 128, 10], activation)
        path = shared_path(f"checkpoints/uva_mlp_fashion_{name}.tar")
        state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict({key.removeprefix("layers."): w for key, w in state.items()})
        with torch.no_grad():
            accuracy = float((model(x).argmax(1) == y).double().mean())
        return diagnose(measure(model, x, y, accuracy=accuracy))

    return diagnosed


def test_the_checkpoint_that_never_learned_is_explained(
    fashion: Callable[[str, type[nn.Module]], list[Finding]],
) -> None:
    findings = fashion("sigmoid", nn.Sigmoid)
    assert (findings[0].cause, findings[0].severity) == ("activation_shift", "critical")
    assert float(findings[0].evidence["gradient_decay"].value) == pytest.approx(5.1, abs=0.2)
    by_cause = {finding.cause: finding for finding in findings}
    assert by_cause["not_learning"].severity == "serious"
    assert float(by_cause["not_learning"].evidence["accuracy"].value) == pytest.approx(0.1)


@pytest.mark.parametrize(("name", "activation"), [("relu", nn.ReLU), ("tanh", nn.Tanh)])
def test_its_healthy_siblings_have_no_finding(
    fashion: Callable[[str, type[nn.Module]], list[Finding]],
    name: str,
    activation: type[nn.Module],
) -> None:
    assert [finding.cause for finding in fashion(name, activation)] == []


def test_the_verdict_names_the_cause_of_what_it_leads_with() -> None:
    model = deep(nn.ReLU, depth=10)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=0.1 * (2 / layer.in_features) ** 0.5)
    snapshot = measure(model, *data())
    findings = diagnose(snapshot)
    assert (findings[0].cause, findings[0].follows_from) == ("vanishing_gradient", "weight_scale")
    sentence = verdict(findings, snapshot)["sentence"]
    scale = next(finding for finding in findings if finding.cause == "weight_scale")
    assert sentence.startswith(f"{findings[0].title}. The cause: {scale.title}.")


def test_weights_alone_ask_for_a_model_and_data() -> None:
    snapshot = weights_only({"0.weight": torch.randn(8, 4), "2.weight": torch.randn(3, 8)})
    finding = next(f for f in diagnose(snapshot) if f.cause == "coverage")
    assert finding.title == "Not measured: signals and gradients"
    assert "--data" in finding.advice
