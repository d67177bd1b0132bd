"""What follows each update: the record, the evaluation, the checkpoints and the progress bar."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.processes.stall import StallWatch
from dynexit.core.settings import Training
from dynexit.core.shapes import Array, Shaped
from dynexit.training import evals
from dynexit.training.checkpointing.saver import Best, Saver
from dynexit.training.collapse import CollapseWatch
from dynexit.training.logs import CLOCK, Mirror, Records, without_clock
from dynexit.training.monitoring.throughput import Throughput
from dynexit.training.signals import Stopped, StopRequest
from dynexit.training.state import TrainState
from dynexit.training.streams import SafeStream


class NonFiniteLoss(ArithmeticError):
    """The loss or the gradient is not finite; the state before that step is saved."""


class Flight(NamedTuple):
    """An update that was dispatched and whose metrics have not been read.

    Attributes:
      step: its number, from 1.
      metrics: of the train step.
      snapshot: a copy of the state after it, to be saved for resuming; None where none is due.
    """

    step: int
    metrics: dict[str, Shaped[Array, ""]]
    snapshot: TrainState | None


class AfterUpdate:
    """Waits for updates, in order, and does what is due after each.

    `last` holds the metrics of the newest update that was settled, and its "step"; `interrupted`
    says whether a stop has ended its evaluation.

    Args:
      settings: when to log.
      records, mirror, saver, bar: the outputs.
      stream: standard error, for warnings.
      evaluate: from `evals.make_evaluate`.
      first: updates made before.
      throughput: reads what training makes of the devices.
      stop: learns that there are updates which no checkpoint has.
      stall: learns what training does.
    """

    def __init__(
        self,
        settings: Training,
        records: Records,
        mirror: Mirror,
        saver: Saver,
        bar: Any,
        stream: SafeStream,
        evaluate: evals.Evaluate,
        first: int,
        throughput: Throughput,
        stop: StopRequest,
        stall: StallWatch,
    ):
        self.settings, self.saver, self.stall = settings, saver, stall
        self._stop = stop
        self.last: dict[str, float] = {}
        self.interrupted = False
        self._records, self._mirror, self.bar, self._stream = records, mirror, bar, stream
        self._evaluate, self._evaluated = evaluate, ""
        self._watch, self._throughput = CollapseWatch(), throughput
        self._began = self._logged_at = time.perf_counter()
        self._logged_step = first

    def settle(self, flight: Flight | None, state: TrainState) -> None:
        """Waits for an update, records it, evaluates where due and saves its snapshot.

        Args:
          flight: the update; None for none.
          state: the newest state. Where an evaluation is due it must be the one after `flight`.

        Raises:
          NonFiniteLoss: after saving `state`, which the failed update and any after it left
            unchanged.
          CheckpointError: a save failed.
        """
        if flight is None:
            return
        step = flight.step
        self.stall.at(f"waiting for update {step}")
        values = jax.device_get(flight.metrics)
        self.stall.at(f"after update {step}", update=True)
        self._stop.unsaved = True
        if not values.pop("finite"):
            self._fail(step, values, state)
        self.last = {"step": step, **{name: float(value) for name, value in values.items()}}
        self.bar.update()
        best = None
        if evals.is_due(self.settings, step):
            best = self._evaluated_and_logged(step, state, self._clock(step))
        elif step in (1, self.settings.steps) or step % self.settings.log_every == 0:
            self._log(self._clock(step))
        self.saver.raise_if_failed()
        # after the record, so that a run resumed here has it
        if flight.snapshot is not None or best is not None:
            self.stall.at(f"waiting for the save before that of step {step}")
            self.saver.save(step, flight.snapshot, best)

    def evaluate_again(self, record: dict[str, Any], state: TrainState) -> None:
        """Repeats an evaluation that a stop had interrupted; its record is completed.

        Args:
          record: of the update, without the evaluation.
          state: after that update.
        """
        read = {n: float("nan") if v is None else v for n, v in record.items()}
        step, clock = record["step"], {n: v for n, v in read.items() if n in CLOCK}
        self.last = without_clock(read)
        best = self._evaluated_and_logged(step, state, clock, again=True)
        if best is not None:
            self.saver.save(step, None, best)

    def _fail(self, step: int, values: dict[str, np.ndarray], state: TrainState) -> None:
        good = step - 1
        if self.saver.saved != good:
            self.saver.save(good, state)
        self._records.write({"step": step, **{n: float(value) for n, value in values.items()}})
        what = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
        raise NonFiniteLoss(f"step {step}: {what}; the state after step {good} is saved")

    def _evaluated_and_logged(
        self, step: int, state: TrainState, clock: dict[str, float], again: bool = False
    ) -> Best | None:
        """Evaluates and logs; returns the parameters if they are the best so far.

        Where a stop ends the evaluation, the record has what is known of the update, and the run
        that resumes here evaluates again.
        """
        began = time.perf_counter()
        self.stall.at(f"evaluating after update {step}")
        try:
            metrics = self._evaluate(state.params)
        except Stopped:
            self.interrupted = True
            if not again:
                self._records.write({**self.last, **clock})
            return None
        self._logged_at = time.perf_counter()  # the speed of training excludes the evaluation
        clock["eval_seconds"] = round(self._logged_at - began, 3)
        self._evaluated = evals.in_short(metrics)
        training, self.last = self.last, {**self.last, **metrics}
        self._log(clock, training, again)
        score = evals.score(metrics)
        if score is None or not score > self.saver.best:
            return None
        return Best(jax.tree.map(jnp.copy, state.params), score)

    def _clock(self, step: int) -> dict[str, float]:
        now = time.perf_counter()
        speed = (step - self._logged_step) * self.settings.batch_size / (now - self._logged_at)
        self._logged_step, self._logged_at = step, now
        clock = {"seconds": round(now - self._began, 3), "examples_per_second": round(speed, 1)}
        return clock | self._throughput.read(speed)

    def _log(
        self,
        clock: dict[str, float],
        training: dict[str, float] | None = None,
        again: bool = False,
    ) -> None:
        record = {**self.last, **clock}
        if again:
            self._records.replace(record)
        else:
            self._records.write(record)
        self._mirror.write(record)
        for collapse in self._watch.look(self.last if training is None else training):
            self.bar.write(f"warning: {collapse}", file=self._stream)
        shown = f"loss {self.last['loss']:.4f}", f"{clock['examples_per_second']:.0f} examples/s"
        self.bar.set_postfix_str(", ".join((*shown, *filter(None, [self._evaluated]))))


def on_one_device(array: Array) -> Array:
    """The local copy of a replicated array; other arrays as they are."""
    return array.addressable_data(0) if array.is_fully_replicated else array


def progress_bar(settings: Training, first: int, progress: bool, stream: SafeStream) -> Any:
    """A progress bar on `stream`; silent without `progress` and on processes other than 0."""
    from tqdm import tqdm

    quiet = not progress or jax.process_index() != 0
    return tqdm(
        total=settings.steps,
        initial=first,
        unit="step",
        disable=quiet,
        file=stream,
        mininterval=0.1 if stream.isatty() else 30.0,  # few lines in a log file
        dynamic_ncols=True,
    )
