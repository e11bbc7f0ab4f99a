"""Watching under two processes: one merged snapshot, equal to that of one process."""

from __future__ import annotations

import os
import socket
import traceback
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import shiftscope as ss

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))


def data() -> Tensor:
    return torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(3))


def trained(net: nn.Module, batches: Tensor) -> tuple[list[Any], list[Tensor]]:
    """Snapshots of the first step, of the second, and of both others together."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    snapshots = []
    with ss.watch(net, optimizer, every=1, window=2) as probe:
        for step, x in enumerate(batches):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            if step != 2:
                snapshots.append(probe.snapshot())
        assert [w.manifest["steps"] for w in (v.snapshot for v in probe.trace)] == [1, 1, 2]
    return snapshots, [p.detach() for p in net.parameters()]


def save(snapshots: list[Any], folder: str, name: str) -> None:
    for number, snapshot in enumerate(snapshots):
        snapshot.save(Path(folder) / f"{name}-{number}.npz")


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        mine = data()[:, rank * 6 : rank * 6 + 6]
        wrapped = nn.parallel.DistributedDataParallel(model())
        snapshots, weights = trained(wrapped, mine)
        save(snapshots, folder, f"ddp{rank}")
        if rank == 0:
            torch.save(weights, Path(folder) / "ddp.pt")
        for kind, sharded in (("fsdp", shard(model())), *flat()):
            if sharded is not None:
                save(trained(sharded, mine)[0], folder, f"{kind}{rank}")
    except BaseException:
        Path(folder, f"{rank}.txt").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


def shard(net: nn.Module) -> nn.Module | None:
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        return None
    mesh = init_device_mesh("cpu", (2,))
    for layer in net:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def flat() -> list[tuple[str, nn.Module]]:
    """Models whose weights are views of one flat parameter that is freed behind each forward."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    cpu = torch.device("cpu")
    return [
        (
            f"flat{int(keep)}-",
            FullyShardedDataParallel(model(), use_orig_params=keep, device_id=cpu),
        )
        for keep in (False, True)
    ]


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.start_processes(worker, args=(port, str(tmp_path)), nprocs=2, start_method="spawn")
    wholes, weights = trained(model(), data())
    kinds = ["ddp", "flat0-", "flat1-"] + ["fsdp"] * (tmp_path / "fsdp0-0.npz").exists()
    for kind, (number, whole) in product(kinds, enumerate(wholes)):
        one, two = (ss.load(tmp_path / f"{kind}{rank}-{number}.npz") for rank in (0, 1))
        expected = whole.neurons
        assert list(one.records) == list(whole.records)
        for name in ("count", "z_mean", "z_var", "z_q50", "grad_z_mean", "weight_norm"):
            np.testing.assert_array_equal(one.neurons[name], two.neurons[name])
        np.testing.assert_allclose(one.neurons.z_mean, expected.z_mean, rtol=1e-4, atol=1e-6)
        if number < 2:
            np.testing.assert_allclose(one.neurons.z_var, expected.z_var, rtol=1e-4, atol=1e-6)
        else:  # of several steps each rank knows the deviations from its own means only
            part = one.neurons.z_var / expected.z_var
            assert part.between(0.6, 1.0 + 1e-4)[expected.z_var > 1e-9].all()
        # The mean loss of half a batch is scaled by two in its own process.
        got = one.neurons.grad_z_mean / 2.0
        np.testing.assert_allclose(got, expected.grad_z_mean, rtol=1e-3, atol=1e-7)
        assert one.manifest["ranks"] == 2
        assert one.gaps == ()
        assert one.manifest["steps"] == whole.manifest["steps"]
        notes = "; ".join(one.sites["notes"])
        assert notes.count("not in the variances") == (len(one.records) if number == 2 else 0)
        assert number == 2 or set(one.sites["notes"]) == {""}
        norms = one.neurons.weight_norm.dropna()
        np.testing.assert_allclose(norms, expected.weight_norm.dropna(), rtol=0.05)
        assert set(one.neurons["count"]) == {12 * (1 + (number == 2))}
    for mine, theirs in zip(weights, torch.load(tmp_path / "ddp.pt"), strict=True):
        torch.testing.assert_close(mine, theirs)
