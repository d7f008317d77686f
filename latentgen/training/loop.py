"""The training loop: accelerate, and the order of one step. It knows nothing of what is trained.

The order is always the same: gradients (accumulated) -> clip -> finite? -> optimizer -> EMA -> log -> sample pictures
-> checkpoint -> done? So a checkpoint of step n holds everything that n optimizer steps did, and nothing else.

One process, or several under torch's DistributedDataParallel (`accelerate launch`, `torchrun`): sample k of a step is
computed by process k modulo their number, so two processes take the step that one takes with twice the batch. The first
process alone writes files; all decide alike when to stop.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn

from latentgen.checkpoints.io import is_finite
from latentgen.config import TrainConfig
from latentgen.errors import InputError, RuntimeFailure
from latentgen.training.ema import EMA
from latentgen.training.optimizer import make_optimizer
from latentgen.training.processes import device_of, join_processes
from latentgen.training.rng import Draw, SampleOrder, seed_for
from latentgen.training.run_dir import Checkpoint, RunDir
from latentgen.training.scaler_state import load_scaler, scaler_tensors

DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Every process holds all the weights, so the first one can save them."""


class Objective(Protocol):
    """What is trained: a network, its batches and its loss."""

    @property
    def network(self) -> nn.Module:
        """The trainable module. Its forward is what `loss` calls, so that DDP can wrap it."""
        ...

    @property
    def items(self) -> int:
        """Size of the data set."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Everything besides TrainConfig that a resumed run must share: data fingerprint, shapes, loss weights."""
        ...

    def batch(self, draws: Sequence[Draw]) -> Any:
        """The inputs of `loss` for these samples: a NamedTuple of CPU tensors, random through the draws alone."""
        ...

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean loss over the batch, and metrics to log (detached scalars)."""
        ...

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        """Draw pictures that show how far training has come."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    images_seen: int
    interrupted_by: int | None
    """The signal that ended it early, or None."""
    is_main_process: bool = True
    """Whether this process is the one that writes files."""


def fit(
    objective: Objective,
    config: TrainConfig,
    run: RunDir,
    *,
    resume: str | None,
    report: Callable[[Mapping[str, Any]], None],
) -> Outcome:
    """Train until `config.max_steps` or `config.max_minutes`, resuming exactly where the run stood.

    The last checkpoint is of the last step, whatever ended the run.
    Raises RuntimeFailure when a loss, a gradient or a weight is not finite: nothing of that step is saved.
    """
    accelerator = _make_accelerator(config)
    lock = run.locked() if accelerator.is_main_process else nullcontext()
    with lock, _signals_noted() as stop:
        outcome = _Run(objective, config, run, report, accelerator).train(resume, stop)
        accelerator.wait_for_everyone()
    return outcome


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Raise InputError for fp16 without a GPU: accelerate would compute in float32 and say nothing."""
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise InputError("--mixed-precision fp16 needs a GPU", hint="bf16 is for every device")


def _make_accelerator(config: TrainConfig) -> Accelerator:
    check_precision(config, device_of(join_processes()))
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.grad_accum, adjust_scheduler=False, sync_with_dataloader=False
        ),
    )
    if accelerator.distributed_type not in DATA_PARALLEL:
        raise InputError(
            f"training runs in one process or data-parallel, not under {accelerator.distributed_type.value}",
            hint="launch with torchrun, or set up `accelerate config` for multi-GPU",
        )
    return accelerator


class _Run:
    """A run in progress: what is trained, and how far it is."""

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        run: RunDir,
        report: Callable[[Mapping[str, Any]], None],
        accelerator: Accelerator,
    ) -> None:
        self.objective, self.config, self.run, self.report = objective, config, run, report
        self.accelerator = accelerator
        self.bare_network = objective.network.to(accelerator.device)
        self.raw_optimizer = make_optimizer(
            self.bare_network,
            lr=config.lr,
            muon_lr=config.muon_lr,
            weight_decay=config.weight_decay,
            beta2=config.adam_beta2,
        )
        self.parameters: dict[str, nn.Parameter] = dict(self.bare_network.named_parameters())
        self.ema = EMA(self.bare_network, config.ema_decay) if config.ema_decay is not None else None
        self.order = SampleOrder(objective.items, config.seed)
        self.step = 0
        self.images_seen = 0
        self.interrupted_by: int | None = None
        self.saved_at: int | None = None
        self.sampled_at: int | None = None

    def train(self, resume: str | None, stop: _Stop) -> Outcome:
        config = self.config
        self.start(resume)
        # The names of the weights are those of the bare network; `network` may be wrapped.
        network, optimizer = self.accelerator.prepare(self.bare_network, self.raw_optimizer)
        network.train()
        clock = _Clock(self.images_seen)
        while not self.ends(clock, stop):
            loss, metrics, grad_norm = self.one_step(network, optimizer)
            if self.step % config.log_every_steps == 0:
                self.log(loss, metrics, grad_norm, clock)
            if config.sample_every_steps and self.step % config.sample_every_steps == 0:
                self.write_samples()
            if self.step % config.save_every_steps == 0:
                self.save()
        self.save()
        if self.interrupted_by is None:
            self.write_samples()
        return Outcome(self.step, self.images_seen, self.interrupted_by, self.accelerator.is_main_process)

    def start(self, resume: str | None) -> None:
        """The first process checks the run's folder and begins it; then all take up the same checkpoint, if any."""
        accelerator = self.accelerator
        described = {**asdict(self.config), **self.objective.describe(), "processes": accelerator.num_processes}
        checkpoint = self.run.start(described, resume=resume) if accelerator.is_main_process else None
        accelerator.wait_for_everyone()
        if not accelerator.is_main_process:
            checkpoint = self.run.latest()
        if checkpoint is not None:
            self.restore(checkpoint)
        if accelerator.is_main_process:
            self.run.log({"start": True, "step": self.step, "processes": accelerator.num_processes})

    def one_step(self, network: nn.Module, optimizer: Any) -> tuple[float, Mapping[str, Tensor], float]:
        """One optimizer step; gives back mean loss, mean metrics and the gradient's norm before clipping."""
        config, accelerator = self.config, self.accelerator
        for group in self.raw_optimizer.param_groups:
            group["lr"] = group["peak_lr"] * config.lr_factor(self.step)
        loss_sum = torch.zeros((), device=accelerator.device)
        metric_sums: dict[str, Tensor] = {}
        loss_mean, grad_norm = math.nan, math.nan
        for _ in range(config.grad_accum):
            batch = self.next_batch()
            with accelerator.accumulate(network):
                with accelerator.autocast():
                    loss, metrics = self.objective.loss(network, batch)
                accelerator.backward(loss)
                loss_sum += loss.detach()
                for name, value in metrics.items():
                    metric_sums[name] = metric_sums.get(name, torch.zeros_like(value)) + value.detach()
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(network.parameters(), config.max_grad_norm)
                    loss_mean = float(self.over_processes(loss_sum / config.grad_accum))
                    grad_norm = float(norm) if norm is not None else math.nan
                    self.check_finite(loss_mean, grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.bare_network, self.step)
        return loss_mean, {name: value / config.grad_accum for name, value in metric_sums.items()}, grad_norm

    def next_batch(self) -> Any:
        """This process's share of the next samples, on its device, with the global generator seeded for dropout."""
        accelerator = self.accelerator
        processes, mine = accelerator.num_processes, accelerator.process_index
        indices = range(self.images_seen, self.images_seen + self.config.batch_size * processes)
        batch = self.objective.batch([self.order.draw(i) for i in indices if i % processes == mine])
        torch.manual_seed(seed_for(self.config.seed, "dropout", self.images_seen, mine))
        self.images_seen += len(indices)
        return batch._make(part.to(accelerator.device, non_blocking=True) for part in batch)

    def over_processes(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        reduced = self.accelerator.reduce(value, reduction="mean")
        assert isinstance(reduced, Tensor), "a tensor is reduced to a tensor"
        return reduced

    def check_finite(self, loss: float, grad_norm: float) -> None:
        """Stop before the optimizer takes in what is not finite. Both numbers are the same in every process."""
        # With fp16 the scaler looks for infinite gradients, and skips the step: they are how it finds its scale.
        if math.isfinite(loss) and (math.isfinite(grad_norm) or self.accelerator.scaler is not None):
            return
        what = f"the gradient's norm became {grad_norm}" if math.isfinite(loss) else f"the loss became {loss}"
        if self.accelerator.is_main_process:
            self.run.log({"step": self.step + 1, "loss": loss, "grad_norm": grad_norm, "failed": True})
        raise RuntimeFailure(f"{what} at step {self.step + 1}", hint="lower --lr; the last checkpoint is intact")

    def ends(self, clock: _Clock, stop: _Stop) -> bool:
        """Whether the run is over, by its steps, its time or a signal; the same answer in every process."""
        config = self.config
        if config.max_steps is not None and self.step >= config.max_steps:
            return True
        late = config.max_minutes is not None and clock.elapsed_s >= 60 * config.max_minutes
        any_late, signal_number = self.largest_over_processes(int(late), stop.signal_number or 0)
        self.interrupted_by = signal_number or None
        return bool(any_late or signal_number)

    def largest_over_processes(self, *values: int) -> list[int]:
        if self.accelerator.num_processes == 1:
            return list(values)
        shared = torch.tensor(values, device=self.accelerator.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return shared.tolist()

    def log(self, loss: float, metrics: Mapping[str, Tensor], grad_norm: float, clock: _Clock) -> None:
        shown = {name: round(float(self.over_processes(value)), 6) for name, value in metrics.items()}
        event = {
            "step": self.step,
            "images_seen": self.images_seen,
            "loss": loss,
            **shown,
            "grad_norm": round(grad_norm, 4),
            "lr": self.config.lr * self.config.lr_factor(self.step - 1),
            "samples_per_s": round(clock.samples_per_s(self.images_seen), 2),
            "elapsed_s": round(clock.elapsed_s, 1),
        }
        if self.accelerator.is_main_process:
            self.run.log(event)
            self.report(event)

    def save(self) -> None:
        """Publish a checkpoint of this step, once."""
        if not self.accelerator.is_main_process or self.saved_at == self.step:
            return
        model = {name: value.detach().cpu() for name, value in self.bare_network.state_dict().items()}
        ema = {name: value.cpu() for name, value in self.ema.shadow.items()} if self.ema is not None else {}
        optimizer = {
            f"{name}:{key}": torch.as_tensor(value).detach().cpu()
            for name, parameter in self.parameters.items()
            for key, value in self.raw_optimizer.state.get(parameter, {}).items()
        }
        optimizer |= scaler_tensors(self.accelerator.scaler)
        for tensors in (model, ema, optimizer):
            for name, value in tensors.items():
                if not is_finite(value):
                    hint = "lower --lr; the last checkpoint is intact"
                    raise RuntimeFailure(f"{name} is not finite after step {self.step}", hint=hint)
        self.run.save(Checkpoint(self.step, self.images_seen, model, ema, optimizer), keep=self.config.keep)
        self.saved_at = self.step

    def restore(self, checkpoint: Checkpoint) -> None:
        self.step, self.images_seen = checkpoint.step, checkpoint.images_seen
        self.saved_at = checkpoint.step
        self.bare_network.load_state_dict(checkpoint.model, strict=True)
        if self.ema is not None:
            self.ema.load(checkpoint.ema)
        for key, value in load_scaler(self.accelerator.scaler, checkpoint.optimizer).items():
            name, _, field = key.rpartition(":")
            parameter = self.parameters[name]
            self.raw_optimizer.state[parameter][field] = value.to(parameter.device)

    def write_samples(self) -> None:
        """Sample pictures from the averaged weights, then put the training weights back; once a step."""
        if not self.accelerator.is_main_process or self.sampled_at == self.step:
            return
        network = self.bare_network
        network.eval()
        try:
            with averaged_weights(network, self.ema), torch.inference_mode():
                self.objective.write_samples(network, self.run.samples, self.step)
        except OSError as error:
            raise RuntimeFailure(f"cannot write sample pictures: {error.strerror or error}") from None
        network.train()
        self.sampled_at = self.step


@contextmanager
def averaged_weights(network: nn.Module, ema: EMA | None) -> Generator[None]:
    """Run the block with the EMA's weights in the network."""
    if ema is None:
        yield
        return
    kept = {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(ema.shadow)
    try:
        yield
    finally:
        network.load_state_dict(kept)


class _Clock:
    """Time since this start, and the rate since the last log line."""

    def __init__(self, images_seen: int) -> None:
        self._started = self._logged = time.monotonic()
        self._logged_at = images_seen

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def samples_per_s(self, images_seen: int) -> float:
        now = time.monotonic()
        rate = (images_seen - self._logged_at) / max(now - self._logged, 1e-9)
        self._logged, self._logged_at = now, images_seen
        return rate


class _Stop:
    """The first SIGINT or SIGTERM asks for a clean end after the step; a second one ends at once."""

    signal_number: int | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        print("stopping after this step, then saving (again to stop at once)", file=sys.stderr)


@contextmanager
def _signals_noted() -> Generator[_Stop]:
    """Within the block signals are noted; only the main thread of a program may ask for that."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
