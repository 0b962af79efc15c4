"""Training loop, shared by SFT and GRPO: trainer settings, resuming, reporting during training, and
the out."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, save_fsdp_optimizer
from peft import PeftModel
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback

from stages.domain.core.records import Checkpoint
from stages.lib.models.harmless import NO_CODE, NO_PICKLE
from stages.lib.models.processor import SECONDS
from stages.lib.models.sharded import load_whole, own_class, under_own_class
from stages.lib.training import checkpoints
from stages.lib.training.lora import load_adapters, save_merged
from stages.lib.training.watching import Watch, Watcher, kept
from stages.params import Precision, TrainingRow
from stages.runtime.ranks import distributed
from stages.runtime.ranks.placement import PlacementError, placement

OnMetrics = Callable[[int, dict[str, float]], None]
OnCheckpoint = Callable[[Checkpoint, Path], None]
#: Raises if another process has taken over the scratch folder.
Check = Callable[[], None]


def unshared() -> None:
    """Check nothing: for a scratch folder that no other process can take over."""


@dataclass(frozen=True)
class Hooks:
    """Callbacks of training.

    Attributes:
        on_metrics: called on the first process, at each logged step.
        on_checkpoint: called on the first process, with each checkpoint and its model folder.
        still_ours: called before every write to the scratch folder, and before the out is made from
            it.
    """

    on_metrics: OnMetrics
    on_checkpoint: OnCheckpoint
    still_ours: Check = unshared


def settings(row: TrainingRow, *, seed: int, scratch: Path, per_device: int, rounds: int) -> dict[str, Any]:
    """Build the keyword arguments that SFTConfig and GRPOConfig have in common.

    Raises:
        ValueError: the environment's settings cannot train, or cannot save what they trained.
    """
    distributed.check_saving()
    return {
        "output_dir": str(scratch / "state"),
        "max_steps": row.steps,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": rounds,
        "learning_rate": row.learning_rate,
        "warmup_steps": row.warmup_steps,
        "lr_scheduler_type": row.schedule,
        "weight_decay": row.weight_decay,
        "adam_beta2": row.adam_beta2,
        "max_grad_norm": row.max_grad_norm,
        "bf16": row.precision == "bf16",
        "activation_checkpointing": row.gradient_checkpointing,
        "gradient_checkpointing": None,  # TRL would switch it on; the other name is its successor
        "save_strategy": "steps",
        "save_steps": row.save_steps,
        "save_total_limit": 2,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **distributed.trainer_placement(),
    }


class Resumes:
    """Mixin for a trainer of TRL: corrects what transformers 5.23 saves, omits or computes
    wrongly."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        model = self.model  # type: ignore[attr-defined]
        with _to_be_used(model.config):
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            if isinstance(model, PeftModel):
                # So far only adapters are saved. A merged model beside them means that no later
                # step has to make it after a crash.
                state = self.accelerator.get_state_dict(self.model_wrapped)  # type: ignore[attr-defined]  # on all processes
                if self.args.should_save:  # type: ignore[attr-defined]
                    save_merged(model, state, Path(output_dir or self.args.output_dir))  # type: ignore[attr-defined]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model = self.model  # type: ignore[attr-defined]
        if self.is_fsdp_enabled and state_dict and not isinstance(model, PeftModel):  # type: ignore[attr-defined]
            # Gathered, a weight with two names is two tensors.
            state_dict = {name: each for name, each in state_dict.items() if name not in model.all_tied_weights_keys}
        with under_own_class(model):
            super()._save(output_dir, state_dict)  # type: ignore[misc]

    def _prepare_input(self, data: Any) -> Any:
        prepared = super()._prepare_input(data)  # type: ignore[misc]
        if isinstance(data, Mapping) and SECONDS in data:
            # DeepSpeed casts every float to the weights' precision, and positions in time are
            # products of these values: bfloat16 has no odd number above 256.
            prepared[SECONDS] = data[SECONDS].to(self.args.device)  # type: ignore[attr-defined]
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # Qwen-VL models are saved under the names of the published weights. The stock method loads
        # those into modules with other names, warns of missing keys, and continues *from the
        # initial weights* with the last optimiser.
        model = self.model if model is None else model  # type: ignore[attr-defined]
        if isinstance(model, PeftModel):
            load_adapters(model, Path(resume_from_checkpoint))
            return
        saved = own_class(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype, **NO_CODE, **NO_PICKLE)
        load_whole(model, saved.state_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:  # type: ignore[attr-defined]
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        # The stock method saves all weights a second time, as a pickle.
        plugin = self.accelerator.state.fsdp_plugin  # type: ignore[attr-defined]
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)  # type: ignore[attr-defined]
        if self.args.should_save:  # type: ignore[attr-defined]
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)  # type: ignore[attr-defined]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card: it would name hosts, users and links."""


@contextmanager
def _to_be_used(config: Any) -> Iterator[None]:
    """Set the configuration for use of the weights while saving: with the cache that a trainer
    switches off."""
    own, config.use_cache = config.use_cache, True
    try:
        yield
    finally:
        config.use_cache = own


def weights_precision(row: TrainingRow) -> Precision:
    """Precision in which the weights are loaded.

    DeepSpeed keeps float32 master copies of bf16 weights; without it the weights themselves are the
    masters. Under LoRA the weights need no masters, and the adapters are float32.
    """
    return row.precision if placement().deepspeed is not None or row.lora is not None else "fp32"


def train(
    trainer: Any,
    *,
    stage: str,
    steps: int,
    scratch: Path,
    out: Path,
    summary: dict[str, Any],
    hooks: Hooks,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train to ``steps``, from the newest complete state in ``scratch`` if there is one, and write
    the result to ``out``.

    Args:
        watch: measures the policy while it is trained, and says which checkpoint is kept; None: it
            is not measured, and the last one is kept.

    Returns:
        The summary that was written, plus ``resumed_from``, ``engine``, ``deepspeed_stage`` and
            ``cpu_s_elsewhere`` (CPU seconds of the other processes), which describe the run and are
            not written.

    Raises:
        PlacementError: the engine is not the one that the environment requests, or the state in
            ``scratch`` is of another engine.
        CheckpointGone: a checkpoint that this training saved, before or after a resumption, is
            missing from ``scratch``.
        InputError: the best checkpoint is to be kept, and none has a score.
    """
    states, saved = scratch / "state", scratch / "saved"
    # Which one is the row's policy is known at the end only.
    final_step = None if watch is not None and watch.keep == "best" else steps
    first = trainer.accelerator.is_main_process
    if first:
        resume = checkpoints.newest_whole(states)
        if resume is not None and not (saved / f"{resume.name}.json").is_file():
            # Killed between saving the state and making its model folder.
            checkpoints.export(resume, saved, checkpoints.record_of(resume, stage, final_step))
    trainer.accelerator.wait_for_everyone()
    resume = checkpoints.newest_whole(states)
    resumed_from = 0 if resume is None else int(resume.name.rpartition("-")[2])
    saved_files = {} if resume is None else checkpoints.read_saved(resume)
    if first:
        checkpoints.check_saved(saved, saved_files)
    if resume is not None and resumed_from < steps:
        _same_engine(resume)

    reporter = _Reporter(trainer, saved_files, final_step, stage=stage, scratch=scratch, hooks=hooks)
    trainer.add_callback(reporter)
    if watch is not None:
        trainer.add_callback(Watcher(trainer, watch, stage=stage, scratch=scratch, hooks=hooks))
    trainer.remove_callback(PrinterCallback)
    if resumed_from < steps:
        with warnings.catch_warnings():
            # TRL 1.16 calls transformers 5.23 by a deprecated name.
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    last = states / f"checkpoint-{steps}"
    if first:
        hooks.still_ours()
        if watch is not None:
            choice = kept(watch.keep, checkpoints.read_history(last), sorted(reporter.saved_files), steps)
            final_step, summary = choice.step, {**summary, "kept": choice._asdict()}
        records = checkpoints.publish(saved, last, out, summary, reporter.saved_files, final_step or steps)
        if watch is not None and watch.keep == "best":
            # Reported as one of many while training. Its metrics have been.
            policy = next(record for record in records if record.final)
            hooks.on_checkpoint(policy.model_copy(update={"metrics": {}}), saved / f"checkpoint-{policy.step}")
    trainer.accelerator.wait_for_everyone()
    engine = reporter.engine
    _, *others = gather_object([time.process_time()])
    return {
        **summary,
        "resumed_from": resumed_from,
        "engine": engine.name,
        "deepspeed_stage": engine.stage,
        "cpu_s_elsewhere": float(sum(others)),
    }


def _same_engine(state: Path) -> None:
    """Refuse to resume from a state whose optimiser this run cannot read: transformers would
    silently start with an empty one."""
    saved, current = checkpoints.engine_of_state(state), placement()
    if current.deepspeed is not None:
        now = checkpoints.with_deepspeed(current.ranks)
    else:
        now = checkpoints.NO_ENGINE if current.fsdp is None else checkpoints.FSDP
    if saved != now:
        raise PlacementError(
            "VIDBRIDGE_DEEPSPEED, VIDBRIDGE_FSDP, VIDBRIDGE_RANKS",
            f"training was interrupted with {saved} and cannot go on with {now}",
            f"set them as they were, or delete {state.parent} to begin again",
        )


class _Reporter(TrainerCallback):
    """Reports metrics and checkpoints as they occur, and draws a progress bar; on the first process
    only."""

    def __init__(
        self,
        trainer: Any,
        saved_files: checkpoints.Saved,
        final_step: int | None,
        *,
        stage: str,
        scratch: Path,
        hooks: Hooks,
    ) -> None:
        self.trainer = trainer
        #: All model folders that this training has saved, also before it was resumed.
        self.saved_files = saved_files
        #: Step of the row's policy; None: it is chosen at the end.
        self.final_step = final_step
        self.stage = stage
        self.scratch = scratch
        self.hooks = hooks
        self.engine = distributed.TrainingEngine(
            "none", 0
        )  # until training begins; where nothing is left to train it never does
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.engine = distributed.engine_of(self.trainer)
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.stage,
                unit="step",
                file=sys.stderr,
                mininterval=1.0,
            )
            if self.engine.stage:
                self.hooks.on_metrics(state.global_step, {"deepspeed_stage": float(self.engine.stage)})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        if control.should_save:
            # Otherwise the trainer writes into another process's folder and deletes states there.
            self.hooks.still_ours()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:  # noqa: ARG002
        values = checkpoints.metrics(logs or {})
        if values and state.is_world_process_zero:
            self.hooks.on_metrics(state.global_step, values | checkpoints.clock_metrics(logs or {}))
            if self.bar is not None:
                self.bar.set_postfix({k: f"{values[k]:.3g}" for k in ("loss", "reward") if k in values}, refresh=False)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.trainer.accelerator.wait_for_everyone()  # every process has written its part
        if state.is_world_process_zero:
            self.hooks.still_ours()  # saving takes minutes
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            saved = self.scratch / "saved"
            earlier = {step: files for step, files in self.saved_files.items() if step != state.global_step}
            checkpoints.check_saved(saved, earlier)
            self.saved_files = checkpoints.note_saved(folder, self.saved_files)
            checkpoints.seal(folder)
            record = checkpoints.record_of(folder, self.stage, self.final_step)
            self.hooks.on_checkpoint(record, checkpoints.export(folder, saved, record))
        self.trainer.accelerator.wait_for_everyone()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self.bar is not None:
            self.bar.close()


def count_parameters(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Count the values of the parameters; also correct for parameters that ZeRO-3 partitions."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def trained(model: torch.nn.Module) -> Iterable[torch.nn.Parameter]:
    """Parameters that training changes, each shared one once."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
