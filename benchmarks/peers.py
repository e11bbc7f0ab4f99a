"""Peers on the same workloads, each used at every step as its documentation says.

Each row is made and runs its first step quietly; whatever it raises (not installed, does not take
the workload) comes out as one line of ``RuntimeError``, which the table then tells.
"""

from __future__ import annotations

import atexit
import io
import weakref
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from tempfile import TemporaryDirectory
from types import SimpleNamespace
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
    from fastai.callback.hook import ActivationStats

    stats: Any = ActivationStats(with_hist=with_hist)
    stats.learn = SimpleNamespace(model=work.model, training=True)  # all that it asks of a Learner
    stats.before_fit()

    def step() -> None:
        work.step()
        stats.after_batch()

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


def torchlens_watch(work: Workload) -> Step:
    """``watch`` into memory: count, zero share, mean, std, norm and range of each leaf's output.

    Its names are prefixes: on ``resnet``, naming leaf ``1`` watches block ``10`` as well.
    """
    from torchlens.observability import WatchSettings
    from torchlens.trackers import MemorySink, watch

    session: Any = watch(
        work.model,
        to=MemorySink(),
        signals=("activations",),
        select=[name for name, m in work.model.named_modules() if not list(m.children())],
        example_input=work.x,
        every=1,
        settings=WatchSettings(ram_capacity=10**9),  # its default refuses step 257
    )
    number = [0]

    def step() -> None:
        with session.step(number[0]):
            work.step()
        number[0] += 1

    weakref.finalize(step, session.close, unwinding=True)
    return step


def observatory(work: Workload) -> Step:
    """``Observatory``, ``stats_only_mode``: mean, std, range, mean magnitude and norm of each
    module's output and of its gradient, and the output's share near zero; norm layers are left
    out, as by default.
    """
    from neural_observatory import Observatory, ObservatoryConfig

    config = ObservatoryConfig(
        activation_sample_rate=1, gradient_sample_rate=1, stats_only_mode=True
    )
    watcher: Any = Observatory(work.model, config=config)
    watcher.watch()

    def step() -> None:
        watcher.step()
        work.step()

    return step


def torchmortem_autopsy(work: Workload) -> Step:
    """``Autopsy(sampling="balanced")``, the loss not passed: mean, std, dead and saturated share of
    the output of each layer and activation; norm, mean, maximum and zero share of each layer's
    gradient; norms of its weight and update. The rank of each layer's output, kept at each 50th
    step, is computed by SVD at every one.
    """
    from torchmortem import Autopsy

    autopsy: Any = Autopsy(work.model, optimizer=work.optimizer, sampling="balanced")
    autopsy.attach()
    atexit.unregister(autopsy._atexit_handler)  # it would write a crash report at exit

    def step() -> None:
        work.step()
        autopsy.step()

    return step


def wandb_watch(work: Workload) -> Step:
    """``wandb.watch(log="all", log_freq=1)``, offline: histograms of parameters and gradients."""
    import wandb

    closing = ExitStack()
    folder = closing.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
    settings = wandb.Settings(silent=True, console="off")
    run = wandb.init(mode="offline", project="overhead", dir=folder, settings=settings)
    closing.callback(run.finish)
    run.watch(work.model, log="all", log_freq=1)

    def step() -> None:
        work.step()
        run.log({"step": 1})

    weakref.finalize(step, closing.close)
    return step


def _one_reason(make: Callable[[Workload], Step]) -> Callable[[Workload], Step]:
    """``make`` and a first step without their prints, their error as one line."""

    def made(work: Workload) -> Step:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            try:
                step = make(work)
                step()
            except Exception as error:
                sentence = str(error).partition("\n")[0].partition(". ")[0]
                raise RuntimeError(f"{type(error).__name__}: {sentence}") from error
        return step

    return made


_MAKERS: dict[str, Callable[[Workload], Step]] = {
    "fastai, ActivationStats": fastai_scalars,
    "fastai, ActivationStats with_hist": fastai_histograms,
    "torch-module-monitor, mean and std": module_monitor,
    "torchlens, watch activations": torchlens_watch,
    "neural-observatory, stats only": observatory,
    "torchmortem, balanced": torchmortem_autopsy,
    "wandb, watch all": wandb_watch,
}
PEERS = {row: _one_reason(make) for row, make in _MAKERS.items()}
