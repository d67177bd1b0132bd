"""The server: routes of the completions interface, and their process."""

import asyncio
import contextlib
import importlib
import socket
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.serving.answers import Answer
from dynexit.runs.serving.schema import RequestError, read_completion
from dynexit.runs.serving.worker import Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette

BODY = 4 * 2**20  # bytes of a request at most


def application(worker: Worker, name: str, drain_seconds: float | None = None) -> "Starlette":
    """The application of a worker that was started; it is closed with the application.

    Args:
      worker: runs the requests.
      name: of the model, which requests must name.
      drain_seconds: that the requests which run at the end may take; None for any time.

    Raises:
      SettingsError: starlette is missing.
    """
    refuse_missing()
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    created = int(time.time())

    class Streamed(StreamingResponse):
        """Sends the parts of an answer; its jobs end with the connection."""

        def __init__(self, answer: Answer, headers: dict[str, str]) -> None:
            super().__init__(answer.parts(), 200, headers, "text/event-stream")
            self.answer = answer

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self.answer.cancel()

    async def completions(request: Request) -> Response:
        body = await _body(request)
        asked = await run_in_threadpool(read_completion, body, worker.language, name, worker.room)
        answer = Answer(worker, asked, name)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return Streamed(answer, headers)
        whole = await _unless_disconnected(request, answer)
        return Response(status_code=499) if whole is None else JSONResponse(whole)

    async def models(request: Request) -> Response:
        model = {"id": name, "object": "model", "created": created, "owned_by": "dynexit"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(request: Request) -> Response:
        failed = worker.failure
        body = {"status": failed or "ok", "requests": worker.open, "most": worker.most}
        return JSONResponse(body, 200 if failed is None else 503)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse(error.body, error.status)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(RequestError(words, status=error.status_code).body, error.status_code)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        yield
        await run_in_threadpool(worker.close, drain_seconds)

    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    handlers: Any = {RequestError: refused, HTTPException: unknown}
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


async def _body(request: Any) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY:
            raise RequestError(f"the body must have at most {BODY} bytes", status=413)
    return body


async def _unless_disconnected(request: Any, answer: Answer) -> Any:
    """The whole answer, or None where the client is no longer there; its jobs then end."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    whole, left = asyncio.create_task(answer.whole()), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({whole, left}, return_when=asyncio.FIRST_COMPLETED)
        return whole.result() if whole.done() else None
    finally:
        if not whole.done():
            answer.cancel()
        for task in (whole, left):
            task.cancel()


def refuse_missing() -> None:
    """Refuses to serve without the libraries.

    Raises:
      SettingsError: with the command that installs them.
    """
    try:
        for name in ("starlette", "uvicorn"):
            importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"`dynexit serve` needs {error.name}: pip install 'dynexit[serve]'"
        ) from error


def bound(host: str, port: int) -> socket.socket:
    """A socket of an address, before the model is read; port 0 takes any free one.

    Raises:
      SettingsError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise SettingsError(f"cannot listen at {host}:{port}: {error}") from error
    return found


def serve(worker: Worker, name: str, listening: socket.socket, drain_seconds: float = 60.0) -> None:
    """Serves until SIGTERM or SIGINT; requests that run then are finished.

    Args:
      worker: started.
      name: of the model.
      listening: of `bound`.
      drain_seconds: that they may take.
    """
    import uvicorn

    config = uvicorn.Config(
        application(worker, name, drain_seconds),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    uvicorn.Server(config).run(sockets=[listening])
