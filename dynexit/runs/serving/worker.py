"""The thread that owns the session of a server: it takes jobs, runs rounds, and sends the text.

A session is not safe for several threads. Others put jobs into a queue and receive their text by a
function of each job, which this thread calls.
"""

import itertools
import queue
import secrets
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import Array, Key
from dynexit.decoding.drafts import Draft
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.sampling import Sampling
from dynexit.decoding.session import Session, Written
from dynexit.decoding.sharded import Shards
from dynexit.runs.generation.pace import Pace
from dynexit.runs.language import LanguageModel
from dynexit.runs.serving.stopped_text import Part, StoppedText

ROOM = 2048  # tokens of a row where the model has no context


class Done(NamedTuple):
    """The end of a job.

    Attributes:
      reason: "stop" or "length".
      tokens: written.
      mean_depth: blocks of a token on average.
    """

    reason: str
    tokens: int
    mean_depth: float


class Failed(NamedTuple):
    """A job that cannot be finished, and why."""

    message: str


Event: TypeAlias = Part | Done | Failed


class Job:
    """One prompt to continue.

    Args:
      prompt: token ids.
      limit: tokens to write.
      sampling: how they are drawn.
      seed: of what is drawn; None for the next of the server.
      stops: strings that end the text.
      send: receives the events of the job, in the thread of the worker.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        limit: int,
        sampling: Sampling,
        seed: int | None,
        stops: Sequence[str],
        send: Callable[[Event], None],
    ) -> None:
        self.prompt = np.array(prompt, np.int32)
        self.limit, self.sampling, self.seed = limit, sampling, seed
        self.stops, self.send = list(stops), send
        self.text: StoppedText | None = None
        self.read = 0  # tokens whose text was read


class QueueFull(Exception):
    """As many jobs wait as may wait."""


class Closed(Exception):
    """The worker takes no jobs: it ends, or it has failed."""


class Worker:
    """A session with its thread.

    Args:
      language: of `load_language`.
      slots: jobs that run at once; on several devices the next multiple of the groups that split
        rows.
      room: tokens of a job at most, prompt included; None for the context of the model.
      waiting: jobs that may wait for a slot.
      draft, exits, mesh: as in `dx.decoding.generate`.

    Raises:
      TypeError, ValueError: as `dx.decoding.Session`, or a room above the context.
    """

    def __init__(
        self,
        language: LanguageModel,
        *,
        slots: int = 8,
        room: int | None = None,
        waiting: int = 64,
        draft: Draft | None = None,
        exits: Exits | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        context = getattr(language.model.decoder, "context", None)
        groups = 1 if mesh is None else Shards(mesh).count
        share = -(-positive_integer(slots, "slots") // groups)
        self.language, self.slots = language, share * groups
        self.room = positive_integer(room or context or ROOM, "room")
        if context is not None and self.room > context:
            raise ValueError(f"`room` must be at most the context of {context}, got {room}")
        self.most = self.slots + positive_integer(waiting, "waiting")
        self.failure: str | None = None
        self._session = Session(
            language.model,
            language.params,
            slots=share,
            room=self.room,
            queue=2 * self.slots,
            draft=draft,
            exits=exits,
            mesh=mesh,
            log_probabilities=True,
        )
        self._pace, self._seeds = Pace(), itertools.count(secrets.randbits(62))
        self._inbox: queue.SimpleQueue[tuple[str, Sequence[Job]]] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._lock, self._open, self._closing = threading.Lock(), 0, False
        self._thread = threading.Thread(target=self._work, name="decoding", daemon=True)

    @property
    def open(self) -> int:
        """Jobs that have not ended."""
        return self._open

    def start(self) -> None:
        """Compiles, and starts the thread; more than 8 stop tokens are a ValueError.

        Tokens are sampled by the compiled program, since clients sample unless they say otherwise;
        greedy requests run in it too. The first request with `top_p`, `top_k` or `min_p`, and the
        first with a penalty, compile it again.
        """
        key = key_of(0)
        stops = [list(self.language.tokenizer.stop)]
        (one,) = self._session.add([np.zeros(1, np.int32)], [1], [Sampling()], stops, [key])
        self._session.run()
        self._session.release(one)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Adds jobs; all of them or none.

        Raises:
          QueueFull: too many jobs have not ended.
          Closed: the worker ends or has failed.
        """
        with self._lock:
            if self._closing or self.failure is not None:
                raise Closed(self.failure or "the server is shutting down")
            if self._open + len(jobs) > self.most:
                raise QueueFull(f"{self._open} requests run or wait, and {self.most} may")
            self._open += len(jobs)
            self._inbox.put(("add", jobs))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs whose text is no longer wanted; those that have ended are left out."""
        self._inbox.put(("cancel", jobs))

    def close(self, seconds: float | None = None) -> None:
        """Takes no more jobs, and returns once those that there are have ended.

        Args:
          seconds: to wait at most; then the jobs are abandoned.
        """
        with self._lock:
            self._closing = True
            self._inbox.put(("close", ()))
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _work(self) -> None:
        try:
            while self._step():
                pass
        except Exception as error:
            traceback.print_exc()
            self._fail(f"decoding failed: {type(error).__name__}: {error}")

    def _step(self) -> bool:
        """Reads the queue and runs rounds; returns whether there may be more to do."""
        busy = bool(self._running or self._waiting)
        if not busy and self._closing and self._inbox.empty():
            return False
        while not busy or not self._inbox.empty():
            kind, jobs = self._inbox.get()
            if kind == "add":
                self._waiting.extend(jobs)
            elif kind == "cancel":
                self._cancel(jobs)
            busy = True
        self._admit()
        if self._running:
            for entry in self._pace.run(self._session):
                self._report(self._running[entry.request], entry)
        return True

    def _admit(self) -> None:
        """Moves jobs to the session, which has entries for as many more as there are slots."""
        room = 2 * self.slots - len(self._running)
        jobs = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        if not jobs:
            return
        seeds = [next(self._seeds) if job.seed is None else job.seed for job in jobs]
        words = self.language.tokenizer
        added = self._session.add(
            [job.prompt for job in jobs],
            [job.limit for job in jobs],
            [job.sampling for job in jobs],
            [list(words.stop)] * len(jobs),
            [key_of(seed) for seed in seeds],
        )
        for index, job in zip(added, jobs, strict=True):
            job.text = StoppedText(words, job.stops)
            self._running[index] = job

    def _report(self, job: Job, entry: Written) -> None:
        """Sends the new text of a job, and ends it where it has ended."""
        text, log_p = job.text, entry.log_probability
        assert text is not None and log_p is not None
        stopped = False
        while job.read < len(entry.tokens) and not stopped:
            stopped = text.push(int(entry.tokens[job.read]), float(log_p[job.read]))
            job.read += 1
        last = stopped or entry.reason is not None
        part = text.take(last)
        if part.text or part.tokens:
            job.send(part)
        if last:
            depth = float(entry.depth[: job.read].mean()) if job.read else 0.0
            reason = "stop" if text.stopped else entry.reason or "length"
            job.send(Done(reason, job.read, depth))
            self._finish(entry.request, entry.reason is None)

    def _cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job in self._waiting:
                self._waiting.remove(job)
                self._count(-1)
        for index in [index for index, job in self._running.items() if job in jobs]:
            self._finish(index, True)

    def _finish(self, index: int, runs: bool) -> None:
        if runs:
            self._session.end(index)
        self._session.release(index)
        del self._running[index]
        self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self._open += more

    def _fail(self, message: str) -> None:
        """Ends every job with an error; later ones are refused."""
        with self._lock:
            self.failure = message
            while not self._inbox.empty():
                kind, jobs = self._inbox.get()
                self._waiting.extend(jobs if kind == "add" else ())
            jobs = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
            self._open = 0
        for job in jobs:
            job.send(Failed(message))


def key_of(seed: int) -> Key[Array, ""]:
    """The random key of any integer of 64 bits, which `jax.random.key` refuses or truncates."""
    words = np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words))
