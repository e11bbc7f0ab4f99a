"""Several processes measure shards; the merged numbers are those of one process."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import shiftscope as ss

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

ROWS = 24


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.conv(x)).mean(dim=2))  # type: ignore[no-any-return]


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(ROWS, 2, 7, generator=generator, dtype=torch.float64)
    y = torch.arange(ROWS) % 3
    return list(zip(x.split(6), y.split(6), strict=True))


def analysed(data: list[tuple[Tensor, Tensor]], model: nn.Module) -> ss.Snapshot:
    return ss.analyze(model, data, nn.functional.cross_entropy)


def worker(rank: int, port: int, folder: str, task: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        model: nn.Module = Model().double()
        if task == "ddp":
            model = nn.parallel.DistributedDataParallel(model)
        data = batches()[rank::2]
        if task == "fault" and rank == 1:
            data = [(torch.rand(2, 9, 7, dtype=torch.float64), torch.zeros(2))]
        analysed(data, model).save(Path(folder) / f"{rank}.npz")
    except ss.ShiftscopeError as error:
        Path(folder, f"{rank}.txt").write_text(str(error))
    with contextlib.suppress(RuntimeError):
        dist.barrier()  # nobody leaves while the other still talks to it
    os._exit(0)  # at once: on the way out torch's own threads abort a process now and then


def run(folder: Path, task: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder), task), nprocs=2)


@pytest.mark.parametrize("task", ["plain", "ddp"])
def test_two_processes_give_the_numbers_of_one(tmp_path: Path, task: str) -> None:
    run(tmp_path, task)
    one = analysed(batches(), Model().double())
    first, second = (ss.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    for table in ("neurons", "sites", "input_neurons"):
        want = getattr(one, table).select_dtypes("number")
        for got in (getattr(first, table), getattr(second, table)):
            columns = [c for c in want.columns if c not in ("shift_share_se", "calls")]
            np.testing.assert_allclose(
                got[columns].to_numpy(dtype=float),
                want[columns].to_numpy(dtype=float),
                rtol=1e-10,
                atol=1e-14,
            )
    assert list(first.records) == list(one.records)
    assert first.manifest["samples"] == ROWS
    assert first.manifest["ranks"] == 2
    assert first.manifest["accuracy"] == pytest.approx(one.manifest["accuracy"])
    assert first.manifest["loss"] == pytest.approx(one.manifest["loss"])


def test_a_fault_on_one_rank_stops_all_with_its_reason(tmp_path: Path) -> None:
    run(tmp_path, "fault")
    texts = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert "rank 1" in texts[0]
    assert "batch 0" in texts[1]
