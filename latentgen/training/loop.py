"""The training loop: accelerate, and the order of one step. It knows nothing of what is trained.

The order is always the same: gradients (accumulated) -> clip -> finite? -> optimizer -> attention cap -> EMA -> log ->
checkpoint -> validate -> sample pictures -> done? So a checkpoint of step n holds everything that n optimizer steps
did, and nothing else, and what fails in drawing samples does not cost it.

One process, or several (`torchrun`, `accelerate launch`) under torch's DistributedDataParallel or FSDP: sample k of a
step is computed by process k modulo their number, so two processes take the step that one takes with twice the batch
(but for the attention cap, which watches one sample of each).
The first process alone writes files; all decide alike when to stop.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    patch_environment,
)
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from latentgen import __version__
from latentgen.checkpoints.io import check_fit, is_finite
from latentgen.config import TrainConfig
from latentgen.diffusion.denoiser import may_run_ahead
from latentgen.diffusion.seeds import seed_for
from latentgen.errors import InputError, ModelLoadError, RuntimeFailure
from latentgen.kernels import gpu
from latentgen.training.attention_cap import AttentionCap
from latentgen.training.ema import EMA
from latentgen.training.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from latentgen.training.processes import current_watch, device_of, failures_told, join_processes
from latentgen.training.rng import Draw, Order
from latentgen.training.run_dir import Checkpoint, RunDir
from latentgen.training.scaler_state import load_scaler, scaler_tensors
from latentgen.training.sharding import SWITCH, check_can_shard, is_sharding_asked, shard, unsharded, whole
from latentgen.training.signals import Stop, StopNow, noted

logger = logging.getLogger(__name__)

LAUNCHES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""One process, or several that hold all the weights (DDP) or a part of them each (`sharding`)."""


class Objective(Protocol):
    """What is trained: a network, its batches and its loss."""

    @property
    def network(self) -> nn.Module:
        """The trainable module. Its forward is what `loss` calls, so that DDP can wrap it."""
        ...

    def order(self, seed: int, samples_per_step: int) -> Order:
        """Which item the n-th sample of the run is: a function of (seed, n) alone."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Everything besides TrainConfig that a resumed run must share: data fingerprint, shapes, loss weights."""
        ...

    def batch(self, draws: Sequence[Draw]) -> Any:
        """The inputs of `loss` for these samples: a NamedTuple of CPU tensors, random through the draws alone."""
        ...

    def loss(self, network: nn.Module, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean loss over the batch, and metrics to log (detached scalars); `step` optimizer steps were made before."""
        ...

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Figures of the network as it stands, on samples and draws that are the same every time."""
        ...

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        """Draw pictures that show how far training has come, into files of `folder`; none if there are none to draw."""
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
    override: Sequence[str] = (),
    report: Callable[[Mapping[str, Any]], None],
) -> Outcome:
    """Train until `config.max_steps` or `config.max_minutes`, resuming exactly where the run stood.

    report: called in the first process with each line of the log, and with {"told": "step" | "samples" | "checkpoint"}
    after every step, sheet of samples and checkpoint.
    override: settings that may differ from those the run was started with. The last checkpoint is of the last step,
    whatever ended the run.
    Raises RuntimeFailure when a loss, a gradient or a weight is not finite: nothing of that step is saved. With several
    processes each ends when one fails, and the failure names it; what all fail at, the first one raises and the others
    end silently (SystemExit).
    """
    with failures_told():
        accelerator = _make_accelerator(config)
        with run.locked() if accelerator.is_main_process else nullcontext(), noted() as stop:
            under_way = _Run(objective, config, run, report, accelerator, stop)
            try:
                outcome = under_way.train(resume, override)
            finally:
                under_way.close()
            accelerator.wait_for_everyone()
    if watch := current_watch():
        watch.close()
    return outcome


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Raise InputError for fp16 without a GPU: accelerate would compute in float32 and say nothing."""
    if config.mixed_precision == "fp16" and device.type == "cpu":
        raise InputError("--mixed-precision fp16 needs a GPU", hint="bf16 is for every device")


def _make_accelerator(config: TrainConfig) -> Accelerator:
    check_precision(config, device_of(join_processes()))
    # accelerate must not shard as well.
    with patch_environment(**{SWITCH: "false"}):
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=config.grad_accum, adjust_scheduler=False, sync_with_dataloader=False
            ),
            # Otherwise DDP shares gradients out to its buckets anew after the first step of every start, and the terms
            # of a sum over three processes are added in another order than in the run that was never stopped.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    if accelerator.distributed_type not in LAUNCHES:
        raise InputError(
            f"training runs in one process, data-parallel or sharded, not under {accelerator.distributed_type.value}",
            hint="launch with torchrun, or set up `accelerate config` for multi-GPU",
        )
    return accelerator


def works_ahead(device: torch.device) -> bool:
    """Whether batches are made while the device computes; a CPU would do both at once, slower."""
    return device.type != "cpu"


class _Run:
    """A run in progress: what is trained, and how far it is."""

    raw_optimizer: torch.optim.AdamW
    parameters: dict[str, nn.Parameter]
    ema: EMA | None
    attention_cap: AttentionCap | None = None

    def __init__(
        self,
        objective: Objective,
        config: TrainConfig,
        run: RunDir,
        report: Callable[[Mapping[str, Any]], None],
        accelerator: Accelerator,
        stop: Stop,
    ) -> None:
        self.objective, self.config, self.run, self.report = objective, config, run, report
        self.accelerator, self.stop, self.watch = accelerator, stop, current_watch()
        self.is_main, self.processes = accelerator.is_main_process, accelerator.num_processes
        self.sharded = self.processes > 1 and is_sharding_asked()
        self.bare_network = objective.network.to(accelerator.device)
        if self.sharded:
            check_can_shard(self.bare_network, config)
        self.samples_per_step = config.batch_size * config.grad_accum * self.processes
        self.order = objective.order(config.seed, self.samples_per_step)
        self.maker = ThreadPoolExecutor(1) if works_ahead(accelerator.device) else None
        self.batches_ahead: deque[Future[Any]] = deque()
        self.step = 0
        self.images_seen = 0
        self.interrupted_by: int | None = None
        self.saved_at: int | None = None
        self.sampled_at: int | None = None
        self.validated_at: int | None = None

    def train(self, resume: str | None, override: Sequence[str]) -> Outcome:
        config = self.config
        network, optimizer = self.prepare(self.start(resume, override))
        network.train()
        clock = _Clock(self.images_seen)
        latest: tuple[float, Mapping[str, Tensor], float] | None = None
        from_a_step = resume is not None and resume.isdigit()
        while not self.ends(clock):
            is_first = latest is None
            with gpu.compiler_failures_named() if config.compile else nullcontext():
                latest = self.one_step(network, optimizer)
            if is_first and from_a_step and self.is_main:  # only now: a step that fails leaves what there was
                with self.alone():
                    self.run.go_on_from(self.step - 1)
            self.tell("step", loss=latest[0])
            if self.step % config.log_every_steps == 0:
                self.log(*latest, clock)
            if self.step % config.save_every_steps == 0:
                self.save()
            if config.validate_every_steps and self.step % config.validate_every_steps == 0:
                self.validate()
            if config.sample_every_steps and self.step % config.sample_every_steps == 0:
                self.write_samples()
        if latest is not None and self.step % config.log_every_steps:
            self.log(*latest, clock)  # the last step, so that the shortest run has a loss to show
        self.save()
        if self.interrupted_by is None:
            self.validate()
            self.write_samples()
            # A signal at the very end, too, is answered by ending: resuming draws what is missing.
            (number,) = self.largest_numbers(self.stop.signal_number or 0)
            self.interrupted_by = number or None
        return Outcome(self.step, self.images_seen, self.interrupted_by, self.is_main)

    def close(self) -> None:
        if self.maker is not None:
            self.maker.shutdown(cancel_futures=True)
        if self.attention_cap is not None:
            self.attention_cap.close()

    def start(self, resume: str | None, override: Sequence[str]) -> Checkpoint | None:
        """The first process checks the run's folder and begins it; then all take up the same checkpoint, if any."""
        accelerator = self.accelerator
        described = {**asdict(self.config), **self.objective.describe(), "processes": self.processes}
        if self.sharded:
            described["sharded"] = True
        if accelerator.device.type == "cpu":  # where threads share out the terms of a sum
            described["threads"] = torch.get_num_threads()
        checkpoint = None
        if self.is_main:
            checkpoint = self.run.start(described, resume=resume, override=override, check=self.check_network)
        accelerator.wait_for_everyone()
        if not self.is_main:
            checkpoint = self.run.chosen(resume)
        self.step = checkpoint.step if checkpoint is not None else 0
        self.images_seen = checkpoint.images_seen if checkpoint is not None else 0
        # Where an override changed their number, the next step begins at a multiple of it, so that it has one shape.
        self.images_seen += -self.images_seen % self.samples_per_step
        self.saved_at = checkpoint.step if checkpoint is not None else None
        furthest, least = self.largest_numbers(self.step, -self.step)
        if furthest != -least:
            raise InputError(
                f"the processes do not see the same checkpoint in {self.run.path}",
                hint="put --out on a disk that all machines share",
            )
        if self.is_main:
            event = {"start": True, "step": self.step, "images_seen": self.images_seen, **self.surroundings()}
            self.run.log(event)
            self.report(event)
        return checkpoint

    def tell(self, what: str, **more: Any) -> None:
        """Report what happened at this step and is not in the log."""
        if self.is_main:
            self.report({"told": what, "step": self.step, "images_seen": self.images_seen, **more})

    def surroundings(self) -> Mapping[str, Any]:
        """What trains where: for people, and no condition of a resume."""
        parameters = list(self.bare_network.parameters())
        return {
            "processes": self.processes,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "parameters": sum(each.numel() for each in parameters),
            "trainable": sum(each.numel() for each in parameters if each.requires_grad),
            "device": self.accelerator.device.type,
            "latentgen": __version__,
            "torch": torch.__version__,
        }

    def check_network(self, checkpoint: Checkpoint) -> None:
        """Raise InputError if a checkpoint is not of this network."""
        network = self.bare_network
        try:
            check_fit(network.state_dict(), checkpoint.model, "its checkpoint", type(network).__name__)
        except ModelLoadError as error:
            message = f"{self.run.path} is a run of another network: {error.message}"
            raise InputError(message, hint="choose another --out") from None

    def prepare(self, checkpoint: Checkpoint | None) -> tuple[nn.Module, Any]:
        """The network as it is called in a step, and its optimizer, in the state of the checkpoint.

        The names of the weights are those of the bare network; what is called may be wrapped.
        """
        config, bare = self.config, self.bare_network
        if checkpoint is not None:
            bare.load_state_dict(checkpoint.model, strict=True)
        if self.sharded:
            shard(bare, self.accelerator.device, self.processes)
        self.parameters = dict(bare.named_parameters())
        self.ema = EMA(bare, config.ema_decay) if config.ema_decay is not None else None
        self.attention_cap = AttentionCap(bare, config.attention_cap) if config.attention_cap is not None else None
        self.raw_optimizer = make_optimizer(
            bare, lr=config.lr, muon_lr=config.muon_lr, weight_decay=config.weight_decay, beta2=config.adam_beta2,
            shares=1 if self.sharded else self.processes,
        )  # fmt: skip
        if checkpoint is not None:
            if self.ema is not None and checkpoint.ema:
                self.ema.load(checkpoint.ema)
            state = load_scaler(self.accelerator.scaler, checkpoint.optimizer)
            if fresh := load_optimizer(self.raw_optimizer, self.parameters, state):
                logger.warning("%d parameters begin with a fresh optimizer state: they have another one now", fresh)
        if config.compile:
            bare.compile(backend=gpu.COMPILER)  # in place: the names stay
        if self.sharded:
            return bare, self.accelerator.prepare_optimizer(self.raw_optimizer, device_placement=False)
        # Where pictures are channels_last, so is the gradient of a 1x1 kernel; to copy it costs nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        network, optimizer = self.accelerator.prepare(bare, self.raw_optimizer)
        return network, optimizer

    def one_step(self, network: nn.Module, optimizer: Any) -> tuple[float, Mapping[str, Tensor], float]:
        """One optimizer step; gives back mean loss, mean metrics and the gradient's norm before clipping."""
        config, accelerator = self.config, self.accelerator
        for group in self.raw_optimizer.param_groups:
            group["lr"] = group["peak_lr"] * config.lr_factor(self.step)
        loss_sum = torch.zeros((), device=accelerator.device)
        metric_sums: dict[str, Tensor] = {}
        loss_mean, grad_norm = math.nan, math.nan
        if self.attention_cap is not None:
            self.attention_cap.before_step(self.step)
        for _ in range(config.grad_accum):
            batch = self.next_batch()
            self.advance()
            with accelerator.accumulate(network):
                if isinstance(network, FSDPModule):
                    network.set_requires_gradient_sync(accelerator.sync_gradients)
                with accelerator.autocast():
                    loss, metrics = self.objective.loss(network, batch, self.step)
                self.advance()
                accelerator.backward(loss)
                loss_sum += loss.detach()
                for name, value in metrics.items():
                    metric_sums[name] = metric_sums.get(name, torch.zeros_like(value)) + value.detach()
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(network.parameters(), config.max_grad_norm)
                    loss_mean = float(self.over_processes(loss_sum / config.grad_accum))
                    grad_norm = float(whole(norm)) if norm is not None else math.nan
                    self.check_finite(loss_mean, grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        if self.attention_cap is not None:
            self.attention_cap.after_step(self.largest_over_processes)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.bare_network, self.step)
        return loss_mean, {name: value / config.grad_accum for name, value in metric_sums.items()}, grad_norm

    def next_batch(self) -> Any:
        """This process's share of the next samples, on its device, with the global generator seeded for dropout.

        While a GPU computes, a thread makes the batch after this one: made in turn, batches of small latents take as
        long as the step itself. What a batch holds depends on the numbers of its samples alone.
        """
        accelerator = self.accelerator
        ahead = self.batches_ahead
        batch = ahead.popleft().result() if ahead else self.objective.batch(self.draws(self.images_seen))
        torch.manual_seed(seed_for(self.config.seed, "dropout", self.images_seen, accelerator.process_index))
        self.images_seen += self.config.batch_size * self.processes
        if self.maker is not None:
            ahead.append(self.maker.submit(self.objective.batch, self.draws(self.images_seen)))
        ahead_of_it = may_run_ahead(accelerator.device)
        return batch._make(part.to(accelerator.device, non_blocking=ahead_of_it) for part in batch)

    def draws(self, first: int) -> list[Draw]:
        """This process's share of the samples of the step that begins with this one."""
        indices = range(first, first + self.config.batch_size * self.processes)
        mine = self.accelerator.process_index
        return [self.order.draw(index) for index in indices if index % self.processes == mine]

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
        if self.watch is not None:  # nobody is lost: all stop here
            self.watch.close()
        if not self.is_main:
            raise SystemExit(RuntimeFailure.exit_code)
        self.run.log({"step": self.step + 1, "loss": loss, "grad_norm": grad_norm, "failed": True})
        raise RuntimeFailure(f"{what} at step {self.step + 1}", hint="lower --lr; the last checkpoint is intact")

    def advance(self) -> None:
        """Tell the other processes that this one comes on."""
        if self.watch is not None:
            self.watch.advance()

    def alone(self) -> AbstractContextManager[None]:
        """A block in which this process works while the others wait, however long."""
        return self.watch.out_of_loop() if self.watch is not None else nullcontext()

    def ends(self, clock: _Clock) -> bool:
        """Whether the run is over, by its steps, its time or a signal; the same answer in every process."""
        config = self.config
        if config.max_steps is not None and self.step >= config.max_steps:
            return True
        late = config.max_minutes is not None and clock.elapsed_s >= 60 * config.max_minutes
        any_late, signal_number = self.largest_numbers(int(late), self.stop.signal_number or 0)
        self.interrupted_by = signal_number or None
        return bool(any_late or signal_number)

    def largest_over_processes(self, values: Tensor) -> Tensor:
        """Of each of some numbers the largest that any process has; the same in all of them."""
        shared = values.clone()
        if self.processes > 1:
            torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return shared

    def largest_numbers(self, *values: int) -> list[int]:
        """As `largest_over_processes`; one process alone does not ask its device for them."""
        if self.processes == 1:
            return list(values)
        return self.largest_over_processes(torch.tensor(values, device=self.accelerator.device)).tolist()

    def log(self, loss: float, metrics: Mapping[str, Tensor], grad_norm: float, clock: _Clock) -> None:
        shown = {name: round(float(self.over_processes(value)), 6) for name, value in metrics.items()}
        if self.attention_cap is not None and self.attention_cap.largest is not None:
            shown["attention"] = round(self.attention_cap.largest, 3)
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
        if self.is_main:
            self.run.log(event)
            self.report(event)

    def save(self) -> None:
        """Publish a checkpoint of this step, once. Sharded tensors are put together, which takes all processes."""
        if self.saved_at == self.step or not (self.is_main or self.sharded):
            return
        with self.alone():
            model = self.on_cpu(self.bare_network.state_dict())
            ema = self.on_cpu(self.ema.shadow) if self.ema is not None else {}
            optimizer = self.on_cpu(optimizer_tensors(self.raw_optimizer, self.parameters))
            optimizer |= scaler_tensors(self.accelerator.scaler)
            if self.is_main:
                self.write(Checkpoint(self.step, self.images_seen, model, ema, optimizer))
        self.saved_at = self.step
        self.tell("checkpoint")

    def write(self, checkpoint: Checkpoint) -> None:
        for tensors in (checkpoint.model, checkpoint.ema, checkpoint.optimizer):
            for name, value in tensors.items():
                if not is_finite(value):
                    hint = "lower --lr; the last checkpoint is intact"
                    raise RuntimeFailure(f"{name} is not finite after step {self.step}", hint=hint)
        self.run.save(checkpoint, keep=self.config.keep)

    def on_cpu(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors in the first process; nothing in the others, whose parts go into them."""
        gathered = ((name, whole(value.detach())) for name, value in tensors.items())
        return {name: value.cpu() for name, value in gathered if self.is_main}

    def write_samples(self) -> None:
        """Sample pictures from the averaged weights, then put the training weights back; once a step."""
        if self.sampled_at == self.step or not (self.is_main or self.sharded):
            return
        self.sampled_at = self.step
        try:
            kept = self.run.sample_folder() if self.is_main else TemporaryDirectory()
            with self.averaged_network() as network, kept as folder, self.stop.breaking():
                self.objective.write_samples(network, Path(folder), self.step)
                drawn = any(Path(folder).iterdir())
        except OSError as error:
            raise RuntimeFailure(f"cannot write sample pictures: {error.strerror or error}") from None
        except StopNow:
            return
        if drawn:
            self.tell("samples")

    def validate(self) -> None:
        """Log the objective's figures of the averaged weights; once a step."""
        if self.validated_at == self.step or not (self.is_main or self.sharded):
            return
        self.validated_at = self.step
        try:
            with self.averaged_network() as network, self.stop.breaking():
                figures = self.objective.validate(network)
        except StopNow:
            return
        if figures and self.is_main:
            event = {"step": self.step, "images_seen": self.images_seen, "validation": True, **figures}
            self.run.log(event)
            self.report(event)

    @contextmanager
    def averaged_network(self) -> Generator[nn.Module]:
        """The bare network with the averaged weights, as it is used after training, in training's precision.

        The first process uses it alone. Of a sharded network all processes make the same use: FSDP takes note in each
        of the order in which blocks run, and orders its collectives by it.
        """
        network = self.bare_network
        network.eval()
        gathered = unsharded(network) if self.sharded else nullcontext()
        # accelerate turns autocast on in the network's own forward, but not in that of its parts.
        precision = self.accelerator.autocast()
        with self.alone(), averaged_weights(network, self.ema), gathered, torch.inference_mode(), precision:
            yield network
        network.train()


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
