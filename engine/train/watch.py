"""The callback between a trainer's loop and the runner: metrics up, cancel and pause down."""

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from engine.plan import Evaluated, Saved, Stepped, Warned
from engine.train import spread
from engine.train.errors import StopRequested, TrainingFailed
from engine.train.link import Link

ZERO_STEPS = 3

_SPEEDS = (
    "_runtime",
    "_per_second",
    "_preparation_time",
)  # of an evaluation: nothing that a client asked for


class Watch(TrainerCallback):
    """Reports every step, evaluation and checkpoint.

    `asked` is the directive that ended the loop, if any; `evaluated` what the last evaluation
    found, after `evaluated_step` steps. `passes` is how many epochs one of the trainer's is; only
    after a multiple of `stride` steps can a run go on as if it had not been stopped. A loss of
    exactly 0 over ZERO_STEPS steps is warned of where `zero_is_odd`: there is nothing to learn.
    """

    def __init__(
        self, link: Link, *, passes: float = 1.0, stride: int = 1, zero_is_odd: bool = True
    ) -> None:
        self._link, self._passes, self._stride = link, passes, stride
        self._zeros, self._zero_is_odd = 0, zero_is_odd
        self._save_due = False
        self._metrics: dict[str, float] = {}
        self._tokens_before = 0.0
        self.asked: str | None = None
        self.evaluated: dict[str, float] = {}
        self.evaluated_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        counts = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        starts_anew = not state.num_input_tokens_seen  # a trainer that counts there goes on
        self._tokens_before = counts[-1] if counts and starts_anew else 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        asked = spread.agreed(self._link.directive)
        if asked == "cancel":
            raise StopRequested("cancel")
        if state.global_step >= state.max_steps:
            control.should_save = False  # the adapter comes next, and is worth more
            return
        pause = asked == "pause"
        self._save_due |= control.should_save or pause
        control.should_save = self._save_due and state.global_step % self._stride == 0
        if control.should_save:
            self._save_due = False
        if control.should_save and pause:
            self.asked = "pause"
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "num_tokens" in logs:  # most trainers count anew where a run was resumed
            logs["num_tokens"] += self._tokens_before
            state.log_history[-1]["num_tokens"] = logs["num_tokens"]
        numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        if "eval_loss" in numbers:
            self._note_evaluation(numbers, state.global_step)
        if "loss" not in numbers:  # the summary at the end
            return
        bad = sorted(k for k in ("loss", "grad_norm") if not math.isfinite(numbers.get(k, 0.0)))
        if bad:
            raise TrainingFailed(
                "diverged",
                f"{bad[0]} is {numbers[bad[0]]} at step {state.global_step}; "
                "lower `method.learning_rate`, or raise `method.warmup_ratio`.",
            )
        self._heed_zero(numbers["loss"], state.global_step)
        epoch = numbers.pop("epoch", state.epoch or 0.0) * self._passes
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self._metrics = numbers
        step, total = state.global_step, state.max_steps
        self._link.send(Stepped(step=step, total_steps=total, epoch=epoch, metrics=numbers))

    def _heed_zero(self, loss: float, step: int) -> None:
        """Tell once of a loss that says nothing any more."""
        self._zeros = self._zeros + 1 if loss == 0 else 0
        if self._zeros == ZERO_STEPS and self._zero_is_odd:
            self._zero_is_odd = False
            message = (
                f"The loss was exactly 0 for {ZERO_STEPS} steps, up to step {step}: nothing is "
                "learned there. Look at the rows' preview for what is trained, and lower "
                "`method.learning_rate` if they are right."
            )
            self._link.send(Warned(message=message))

    def _note_evaluation(self, numbers: dict[str, float], step: int) -> None:
        kept = {k: v for k, v in numbers.items() if k.startswith("eval_") and math.isfinite(v)}
        self.evaluated = {k: v for k, v in kept.items() if not k.endswith(_SPEEDS)}
        self.evaluated_step = step
        self._link.send(Evaluated(step=step, metrics=self.evaluated))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        assert args.output_dir is not None
        path = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        spread.bring(path, f"rng_state_{spread.rank()}.pth")
        if not spread.is_first():
            return
        for extra in filter(Path.is_dir, list(path.iterdir())):
            shutil.rmtree(extra)  # a tokenizer's other templates: nothing that a resumed run reads
        self._link.send(Saved(step=state.global_step, path=path, metrics=self._metrics))
