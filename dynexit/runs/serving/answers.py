"""The answers to a completion: whole, or in parts while the text is written."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import TypeAlias

from dynexit.runs.serving.schema import Completion, Json, RequestError, choice, usage_of
from dynexit.runs.serving.stopped_text import Part, TokenRecord
from dynexit.runs.serving.worker import Closed, Done, Event, Failed, Job, QueueFull, Worker

Events: TypeAlias = "asyncio.Queue[tuple[int, Event]]"


class Answer:
    """The jobs of a request and their events.

    Args:
      worker: runs the jobs.
      asked: the request.
      name: of the model.

    Raises:
      RequestError: with status 429 where the queue is full, 503 where the worker takes no jobs.
    """

    def __init__(self, worker: Worker, asked: Completion, name: str) -> None:
        self.worker, self.asked = worker, asked
        self.events: Events = asyncio.Queue()
        self.base: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self.jobs = [self._job(k, prompt) for k, prompt in enumerate(asked.prompts)]
        try:
            worker.submit(self.jobs)
        except QueueFull as error:
            raise RequestError(str(error), None, "queue_full", 429) from error
        except Closed as error:
            raise RequestError(str(error), None, "unavailable", 503) from error

    def _job(self, index: int, prompt: list[int]) -> Job:
        asked, loop = self.asked, asyncio.get_running_loop()

        def send(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the client
                loop.call_soon_threadsafe(self.events.put_nowait, (index, event))

        seed = None if asked.seed is None else asked.seed + index
        return Job(prompt, asked.max_tokens, asked.sampling, seed, asked.stops, send)

    def cancel(self) -> None:
        """Ends the jobs that have not ended."""
        self.worker.cancel(self.jobs)

    async def whole(self) -> Json:
        """The completed text of every prompt.

        Raises:
          RequestError: with status 500 where decoding fails.
        """
        count = len(self.jobs)
        texts, done = [""] * count, dict[int, Done]()
        tokens: list[list[TokenRecord]] = [[] for _ in range(count)]
        while len(done) < count:
            index, event = await self.events.get()
            if isinstance(event, Failed):
                raise RequestError(event.message, None, "decoding_failed", 500)
            if isinstance(event, Part):
                texts[index] += event.text
                tokens[index] += event.tokens
            else:
                done[index] = event
        wanted = self.asked.logprobs
        choices = [
            choice(
                k,
                texts[k],
                tokens[k] if wanted else None,
                done[k].reason,
                mean_depth=done[k].mean_depth,
            )
            for k in range(count)
        ]
        return self.base | {"choices": choices, "usage": self._usage(list(done.values()))}

    async def parts(self) -> AsyncIterator[str]:
        """Server-sent events."""
        done: list[Done] = []
        while len(done) < len(self.jobs):
            index, event = await self.events.get()
            if isinstance(event, Failed):
                yield _sent(RequestError(event.message, None, "decoding_failed", 500).body)
                return
            if isinstance(event, Part):
                tokens = event.tokens if self.asked.logprobs else None
                yield self._sent(choice(index, event.text, tokens, None))
            else:
                done.append(event)
                depth = event.mean_depth
                yield self._sent(choice(index, "", None, event.reason, mean_depth=depth))
        if self.asked.usage:
            yield _sent(self.base | {"choices": [], "usage": self._usage(done)})
        yield "data: [DONE]\n\n"

    def _sent(self, part: Json) -> str:
        return _sent(self.base | {"choices": [part]})

    def _usage(self, done: list[Done]) -> Json:
        prompts = sum(map(len, self.asked.prompts))
        return usage_of(prompts, sum(end.tokens for end in done))


def _sent(body: Json) -> str:
    return f"data: {json.dumps(body)}\n\n"
