"""Published checkpoints through the command line: a right report, or the right refusal."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from support import shared_path

import shiftscope as ss

MODELS = Path(__file__).with_name("checkpoint_models.py")
SPRITE = "data/fashion_sprite/fashion-mnist-sprite.png"
SMALL = "0.4914,0.4822,0.4465/0.2023,0.1994,0.2010"
BASE = "0.485,0.456,0.406/0.225"
UVA_CIFAR = "0.49139968,0.48215841,0.44653091/0.24703223,0.24348513,0.26158784"


class Case(NamedTuple):
    """One checkpoint, how to run it, and what a right report says."""

    file: str
    model: str
    data: str
    normalize: str = "none"
    accuracy: float | None = None
    batches: int | None = None


FASHION = f"sprite:{{shared}}/{SPRITE}:28x28:10"
CIFAR = "cifar10:{shared}/data/cifar10"
MNIST = "mnist:{shared}/data/mnist"

# Accuracies are those measured independently on the same images; on a part of them, a 3 standard
# error bound applies instead.
HEALTHY = (
    Case("uva_mlp_fashion_relu.tar", "mlp:relu", FASHION, "half", 0.9511),
    Case("uva_mlp_fashion_tanh.tar", "mlp:tanh", FASHION, "half", 0.9011),
    Case("akamaster_resnet20.th", "resnet20", CIFAR, "imagenet", 0.9163),
    Case("akamaster_resnet32.th", "resnet32", CIFAR, "imagenet", 0.9303, 1),
    Case("uva_cifar_resnet.ckpt", "TutorialResNet", CIFAR, UVA_CIFAR, 0.9077, 1),
    Case("uva_cifar_googlenet.ckpt", "GoogleNet", CIFAR, UVA_CIFAR, 0.9013, 1),
    Case("uva_transformer_reverse.ckpt", "ReverseTransformer", "sequences", "none", 1.0),
    Case("mnist_6_100.pth", "mlp:relu", MNIST, "none", 0.9629, 2),
    Case("mnist_9_200.pth", "mlp:relu", MNIST, "none", 0.9495, 2),
    Case("cifar_conv_small_sigmoid.pth", "conv_small_sigmoid", CIFAR, SMALL, 0.6513),
    Case("cifar_base.pth", "conv_base", CIFAR, BASE, 0.6052),
    Case("ppo_lunarlander.pth", "mlp:tanh@actor", "normal:8"),
    Case("ppo_cartpole.pth", "mlp:tanh@critic", "normal:4"),
    Case("uva_autoencoder_64.ckpt", "AutoEncoder", "reconstruction"),
)


def run(case: Case, out: Path, *extra: str) -> int:
    """``shiftscope analyze`` on one case, in this process."""
    shared = shared_path("checkpoints").parent
    model = case.model if ":" in case.model else f"{MODELS}:{case.model}"
    data = case.data.format(shared=shared)
    data = data if ":" in data else f"{MODELS}:{data}"
    arguments = ["analyze", str(shared_path(f"checkpoints/{case.file}")), "--model", model]
    arguments += ["--data", data, "--normalize", case.normalize, "--out", str(out), "--quiet"]
    if case.batches is not None:
        arguments += ["--batches", str(case.batches)]
    (script,) = entry_points(group="console_scripts", name="shiftscope")
    status: int = script.load()([*arguments, "--format", "json", *extra])
    return status


def document(out: Path) -> Any:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.file)
def test_a_healthy_checkpoint_is_measured_whole_and_called_healthy(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(case, tmp_path) == 0
    report = document(tmp_path)
    for kind in ("parameters", "modules", "activations"):
        assert report["coverage"][kind]["seen"] == report["coverage"][kind]["total"]
    assert report["gaps"] == []
    check_accuracy(case, report["manifest"])
    # ppo networks are fed random numbers: what they say about such inputs is no verdict.
    if not case.file.startswith("ppo"):
        severities = {finding["severity"] for finding in report["findings"]}
        assert severities <= {"info", "watch"}, report["findings"]
    snapshot = ss.load(tmp_path / "snapshot.npz")
    check_identity(snapshot)
    if case.file == "akamaster_resnet20.th":
        # No mean is near zero here, so that the plain relative error means something.
        neurons = snapshot.neurons.dropna(subset="shift_predicted")
        predicted = neurons.shift_predicted + neurons.bias.fillna(0.0)
        np.testing.assert_allclose(neurons.z_mean, predicted, rtol=1e-5)
    assert capsys.readouterr().out


def check_accuracy(case: Case, manifest: Any) -> None:
    if case.accuracy is None:
        return
    rows = manifest["accuracy_rows"]
    sampled = 3 * np.sqrt(case.accuracy * (1 - case.accuracy) / rows)
    allowed = 5e-5 + 0.5 / rows if case.batches is None else sampled
    assert manifest["accuracy"] == pytest.approx(case.accuracy, abs=allowed)


def check_identity(snapshot: ss.Snapshot) -> None:
    """E(z) = w . mu + b at every linear site, to 1e-5 of the size of what is added."""
    neurons = snapshot.neurons.dropna(subset="shift_predicted")
    bias = neurons.bias.fillna(0.0)
    size = neurons.shift_predicted.abs() + bias.abs() + neurons.z_var**0.5
    error = (neurons.z_mean - neurons.shift_predicted - bias).abs()
    assert (error <= 1e-5 * size).all()


def test_resnet20_names_every_functional_relu(tmp_path: Path) -> None:
    case = HEALTHY[2]._replace(batches=1)
    assert run(case, tmp_path, "--batch-size", "64") == 0
    sites = {site["site"] for site in document(tmp_path)["sites"]}
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    relus = {":relu"} | {f"{b}:relu{suffix}" for b in blocks for suffix in ("", ".2")}
    convs = {"conv1", "linear"} | {f"{b}.conv{k}" for b in blocks for k in (1, 2)}
    assert sites == relus | convs


def test_the_sigmoid_network_that_never_learned_is_explained(tmp_path: Path) -> None:
    case = Case("uva_mlp_fashion_sigmoid.tar", "mlp:sigmoid", FASHION, "half", 0.10)
    assert run(case, tmp_path, "--fail-on", "serious") == 1
    report = document(tmp_path)
    first = report["findings"][0]
    assert (first["cause"], first["severity"]) == ("activation_shift", "critical")
    text = json.dumps(first["evidence"])
    assert "shift_share" in text
    check_accuracy(case, report["manifest"])
    shares = {row["site"]: row["shift_share"] for row in report["sites"]}
    assert shares["layers.7"] > 0.999
    causes = {finding["cause"] for finding in report["findings"]}
    assert {"vanishing_gradient", "not_learning"} <= causes


def test_weights_alone_are_reported_without_a_model(tmp_path: Path) -> None:
    (script,) = entry_points(group="console_scripts", name="shiftscope")
    path = str(shared_path("checkpoints/uva_cifar_resnet.ckpt"))
    status = script.load()(["analyze", path, "--out", str(tmp_path), "--format", "json", "--quiet"])
    assert status == 0
    sites = document(tmp_path)["sites"]
    assert len(sites) == 22
    assert all(site["eta"] > 0 and site["shift_share"] is None for site in sites)


def test_an_lfs_pointer_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("lfs_pointer.bin", "mlp:relu", "normal:8")
    assert run(case, tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert "git lfs pull" in captured.err
    assert not (tmp_path / "out").exists()
