"""Peers on the same workloads, each used as its documentation says.

A row that cannot be measured raises ``ImportError`` (not installed) or ``RuntimeError`` (does not
take the workload); the table then says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from workloads import Workload

__all__ = ["PEERS"]

Step = Callable[[], None]


def fastai_scalars(work: Workload) -> Step:
    """``ActivationStats``: mean, standard deviation, share near zero of each layer's output."""
    return _fastai(work, with_hist=False)


def fastai_histograms(work: Workload) -> Step:
    """The same with its histogram of 40 bins."""
    return _fastai(work, with_hist=True)


def _fastai(work: Workload, with_hist: bool) -> Step:
    from fastai.callback.hook import ActivationStats, Hooks, flatten_model, has_params

    stats = ActivationStats(with_hist=with_hist)
    layers = [m for m in flatten_model(work.model) if has_params(m)]  # its own default choice
    hooks = Hooks(layers, stats.hook)

    def step() -> None:
        work.step()
        kept = list(hooks.stored)  # what its after_batch keeps of every step
        assert len(kept) == len(layers)

    return step


def module_monitor(work: Workload) -> Step:
    """``ModuleMonitor`` with the mean and standard deviation of each module's output."""
    from torch_module_monitor import ModuleMonitor

    monitor: Any = ModuleMonitor(monitor_step_fn=lambda step: True)  # its default is 1 in 20
    monitor.set_module(work.model)
    monitor.add_activation_metric("mean", lambda out: out.mean())
    monitor.add_activation_metric("std", lambda out: out.std())
    number = [0]

    def step() -> None:
        monitor.begin_step(number[0])
        work.step()
        monitor.after_micro_batch()
        monitor.end_step()
        number[0] += 1

    return step


def wandb_watch(work: Workload) -> Step:
    """``wandb.watch(log="all", log_freq=1)``, offline: histograms of parameters and gradients."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(mode="offline", project="overhead")
    run.watch(work.model, log="all", log_freq=1)

    def step() -> None:
        work.step()
        run.log({"step": 1})

    return step


PEERS: dict[str, Callable[[Workload], Step]] = {
    "fastai, ActivationStats": fastai_scalars,
    "fastai, ActivationStats with_hist": fastai_histograms,
    "torch-module-monitor, mean and std": module_monitor,
    "wandb, watch all": wandb_watch,
}
