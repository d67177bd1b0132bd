"""The server: its answers are those of `generate`, requests join and end, and faults are answered."""

import asyncio
import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from tiny_language import tiny_language

import dynexit as dx
from dynexit.decoding import Sampling
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.generation.devices import mesh_of
from dynexit.runs.serving import server as serving
from dynexit.runs.serving.server import application, bound
from dynexit.runs.serving.stopped_text import StoppedText
from dynexit.runs.serving.worker import Closed, Done, Failed, Job, QueueFull, Worker

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

LANGUAGE = tiny_language()
GREEDY = Sampling(temperature=0.0)


def text_of(prompt, most):
    ids = [LANGUAGE.tokenizer.encode(prompt)]
    found = dx.decoding.generate(LANGUAGE.model, LANGUAGE.params, ids, most, stop=[256])
    return LANGUAGE.tokenizer.decode(found.tokens[0]), found


@contextlib.contextmanager
def running(worker):
    """The address of a server in a thread."""
    listening = bound("127.0.0.1", 0)
    config = uvicorn.Config(application(worker, "tiny", 20.0), log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def worker():
    made = Worker(LANGUAGE, slots=2, waiting=4)
    made.start()
    return made


@pytest.fixture(scope="module")
def client(worker):
    with (
        running(worker) as (url, _),
        httpx.Client(base_url=url, timeout=60, trust_env=False) as found,
    ):
        yield found


def post(client, **fields):
    given = {"model": "tiny", "prompt": "def", "max_tokens": 6, "temperature": 0} | fields
    return client.post("/v1/completions", json=given)


def test_the_text_is_that_of_generate(client):
    answer = post(client, logprobs=1)
    assert answer.status_code == 200
    body, (text, wanted) = answer.json(), text_of("def", 6)
    (choice,) = body["choices"]
    assert choice["text"] == text and choice["finish_reason"] == wanted.reason[0]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": len(wanted.tokens[0]),
        "total_tokens": 3 + len(wanted.tokens[0]),
    }
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(wanted.tokens[0])
    assert all(p <= 0 for p in found["token_logprobs"]) and choice["mean_depth"] == 2


def test_several_prompts_and_token_ids(client):
    body = post(client, prompt=["def", "import x", "a"]).json()
    assert [c["text"] for c in body["choices"]] == [
        text_of(p, 6)[0] for p in ("def", "import x", "a")
    ]
    assert post(client, prompt=[100, 101, 102]).json()["choices"][0]["text"] == text_of("def", 6)[0]


def events(client, **fields):
    given = {"model": "tiny", "prompt": "def", "max_tokens": 6, "temperature": 0, "stream": True}
    with client.stream("POST", "/v1/completions", json=given | fields) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_has_the_same_text(worker, client, monkeypatch):
    monkeypatch.setattr(worker._pace, "run", slowly(0.0))
    found = events(client, max_tokens=20, stream_options={"include_usage": True}, logprobs=0)
    text, wanted = text_of("def", 20)
    *parts, usage = found
    assert "".join(part["choices"][0]["text"] for part in parts) == text and len(parts) > 2
    assert parts[-1]["choices"][0]["finish_reason"] == wanted.reason[0]
    assert usage["usage"]["completion_tokens"] == len(wanted.tokens[0])
    tokens = [t for part in parts[:-1] for t in part["choices"][0]["logprobs"]["tokens"]]
    assert len(tokens) == len(wanted.tokens[0])


def test_stop_strings(client):
    text = text_of("def", 20)[0]
    stop = text[7:10]
    for found in (
        post(client, max_tokens=20, stop=stop).json()["choices"][0],
        post(client, max_tokens=20, stop=["zzzz", stop]).json()["choices"][0],
    ):
        assert found["text"] == text[: text.index(stop)] and found["finish_reason"] == "stop"
    parts = events(client, max_tokens=20, stop=[stop])
    assert "".join(part["choices"][0]["text"] for part in parts) == text[: text.index(stop)]


@pytest.mark.slow
def test_a_seed_gives_the_same_text(client):
    drawn = lambda seed: post(client, temperature=3, seed=seed, max_tokens=12).json()["choices"][0][
        "text"
    ]
    assert drawn(2**40) == drawn(2**40) != drawn(2**41)
    draws = [post(client, temperature=3, max_tokens=12).json()["choices"][0]["text"] for _ in "ab"]
    assert draws[0] != draws[1]


WRONG = {
    "the body must be JSON": (b"{", 400),
    "must be a JSON object": (b"[]", 400),
    "`model` must be given": ({"prompt": "a"}, 400),
    "does not exist": ({"model": "other"}, 404),
    "`prompt` must be given": ({"prompt": None}, 400),
    "`prompt` must have at least one token": ({"prompt": ""}, 400),
    "tokens in 0..256": ({"prompt": [257]}, 400),
    "or a list of one of them": ({"prompt": [["a"]]}, 400),
    "it exceeds 64": ({"prompt": "a" * 60, "max_tokens": 5}, 400),
    "`max_tokens` must lie in 1": ({"max_tokens": 0}, 400),
    "`max_tokens` must be an integer": ({"max_tokens": "5"}, 400),
    "`temperature` must lie in": ({"temperature": -1}, 400),
    "`temperature` must be a number": ({"temperature": True}, 400),
    "top_p must lie": ({"top_p": 0}, 400),
    "`n` must be 1": ({"n": 2}, 400),
    "`echo` must be false": ({"echo": True}, 400),
    "`logprobs` must be 0 or 1": ({"logprobs": 5}, 400),
    "up to 4 strings": ({"stop": ["a", ""]}, 400),
    "`wrong` is not a field": ({"wrong": 1}, 400),
    "must have at most 4194304 bytes": (b'"' + b"a" * 2**22 + b'"', 413),
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_wrong_requests(words, client):
    body, status = WRONG[words]
    if isinstance(body, dict):
        given = {"prompt": "a"} | body
        body = json.dumps(given if words.startswith("`model`") else {"model": "tiny"} | given)
    answer = client.post("/v1/completions", content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert words in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_other_routes(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny"]
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/v1/other").status_code == 404
    assert (
        client.get("/v1/completions").json()["error"]["message"].startswith("GET /v1/completions")
    )


def test_too_many_requests(worker, client, monkeypatch):
    monkeypatch.setattr(worker, "most", 2)
    answer = post(client, prompt=["a", "b", "c"])
    assert answer.status_code == 429 and answer.json()["error"]["type"] == "rate_limit_error"
    assert post(client, prompt=["a", "b"]).status_code == 200
    monkeypatch.setattr(worker, "failure", "out of memory")
    assert post(client).status_code == client.get("/health").status_code == 503


def test_the_client_of_openai(client):
    openai = pytest.importorskip("openai")
    http = httpx.Client(trust_env=False)
    given = dict(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0, http_client=http)
    with openai.OpenAI(**given) as api:
        asked = dict(model="tiny", prompt="def", max_tokens=6, temperature=0)
        assert api.completions.create(**asked).choices[0].text == text_of("def", 6)[0]
        parts = list(api.completions.create(**asked, stream=True))
        assert "".join(p.choices[0].text for p in parts) == text_of("def", 6)[0]
        assert [m.id for m in api.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            api.completions.create(**asked | {"model": "x"})


def until(condition, seconds=20):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_client_that_disconnects_ends_its_request(worker, client, monkeypatch):
    monkeypatch.setattr(worker._pace, "run", slowly(0.1))
    for stream in (True, False):
        given = {"model": "tiny", "prompt": "a", "max_tokens": 60, "seed": 1, "stream": stream}
        with httpx.Client(base_url=client.base_url, trust_env=False) as other:
            if stream:
                with other.stream("POST", "/v1/completions", json=given) as answer:
                    next(answer.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    other.post("/v1/completions", json=given, timeout=0.3)
        begun = time.monotonic()
        until(lambda: worker.open == 0)
        assert time.monotonic() - begun < 2  # 60 slow rounds take 6 s


def slowly(seconds):
    """One round between two looks."""

    def slow(session):
        time.sleep(seconds)
        session.run(1)
        return session.progress()

    return slow


def job(prompt, most, events, stops=(), sampling=GREEDY):
    return Job(LANGUAGE.tokenizer.encode(prompt), most, sampling, 0, stops, events.put)


def finished(events):
    text = ""
    while not isinstance(event := events.get(timeout=30), Done | Failed):
        text += event.text
    return text, event


@pytest.mark.slow
def test_requests_join_and_slots_are_refilled():
    """Five jobs in two slots take fewer rounds than one after the other."""
    worker = Worker(LANGUAGE, slots=2, waiting=3)
    limits = [3, 12, 3, 3, 3]
    several = [queue.SimpleQueue() for _ in limits]
    prompts = ["a", "def", "b", "import", "c"]
    jobs = [job(*both) for both in zip(prompts, limits, several, strict=True)]
    worker.submit(jobs)
    with pytest.raises(QueueFull, match="5 requests run or wait, and 5 may"):
        worker.submit([job("a", 1, queue.SimpleQueue())])
    worker.start()
    for prompt, limit, found in zip(prompts, limits, several, strict=True):
        assert finished(found)[0] == text_of(prompt, limit)[0]
    until(lambda: worker.open == 0)
    assert worker._session.rounds - 1 <= 14 < sum(limits)
    worker.close(20)
    with pytest.raises(Closed, match="shutting down"):
        worker.submit(jobs)


def test_jobs_that_run_are_finished_at_the_end(worker):
    made = Worker(LANGUAGE, slots=2, waiting=4)
    made.start()
    several = [queue.SimpleQueue() for _ in range(3)]
    cancelled = job("x", 50, queue.SimpleQueue())
    made.submit([cancelled, *(job("def", 9, events) for events in several)])
    made.cancel([cancelled])
    made.close(30)
    assert not made._thread.is_alive() and made.open == 0
    assert [finished(events)[0] for events in several] == [text_of("def", 9)[0]] * 3


def test_several_devices_share_the_requests():
    """Two groups of two devices: jobs run in both, and later ones take the slots of earlier ones."""
    made = Worker(LANGUAGE, slots=1, waiting=4, mesh=mesh_of(2, 2))
    limits = [9, 3, 5, 7]
    several = [queue.SimpleQueue() for _ in limits]
    prompts = ["def", "a", "import", "b"]
    made.submit([job(*both) for both in zip(prompts, limits, several, strict=True)])
    made.start()
    for prompt, limit, found in zip(prompts, limits, several, strict=True):
        assert finished(found)[0] == text_of(prompt, limit)[0]
    made.close(30)
    shards = np.asarray(made._session.carry.rounds)
    assert made.slots == 2 and made.open == 0 and shards.shape == (2,) and (shards > 2).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_is_reported_to_every_request(monkeypatch, capsys):
    made = Worker(LANGUAGE, slots=2)
    made.start()

    def broken(session):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(made._pace, "run", broken)
    events = queue.SimpleQueue()
    made.submit([job("a", 3, events)])
    assert finished(events)[1] == Failed("decoding failed: RuntimeError: out of memory")
    with pytest.raises(Closed, match="out of memory"):
        made.submit([job("a", 3, events)])
    made.close()


def test_text_that_may_begin_a_stop_is_held_back():
    text = StoppedText(dx.data.tokenizers.Bytes(), ["abc", "bd"])
    taken = []
    for byte in b"xaab":
        assert not text.push(byte, -1.0)
        taken.append(text.take().text)
    assert taken == ["x", "", "a", ""]
    assert text.push(ord("d"), -1.0)
    part = text.take(last=True)
    assert part.text == "a" and [t.offset for t in part.tokens] == [2]
    text = StoppedText(dx.data.tokenizers.Bytes(), ["é!"])
    for byte in "aé".encode():
        text.push(byte, -1.0)
    assert text.take().text == "a" and text.take(last=True).text == "é"


def test_addresses_and_libraries_that_are_missing(monkeypatch):
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(SettingsError, match="cannot listen at"):
            bound("127.0.0.1", taken.getsockname()[1])
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SettingsError, match=r"pip install 'dynexit\[serve\]'"):
        serving.refuse_missing()


def test_a_job_of_a_loop_that_has_ended(worker):
    """Events after the end of the loop of a client are dropped; the worker goes on."""
    from dynexit.runs.serving.answers import Answer
    from dynexit.runs.serving.schema import Completion

    async def ask():
        return Answer(worker, Completion([[1]], 5, GREEDY, 0, [], False, False, False), "tiny")

    asyncio.run(ask())
    until(lambda: worker.open == 0)
    assert worker.failure is None


@pytest.mark.slow
def test_a_process_finishes_its_requests_at_sigterm(tmp_path):
    pytest.importorskip("tokenizers")
    words = dx.data.tokenizers.train_bpe(["def f(x): return x"] * 3, 270)
    settings = dx.models.CausalLM(width=256, depth=8, heads=4, context=512)
    model = settings.build(dx.Tokens(270), 270)
    dx.models.language.to_hf(tmp_path / "m", settings, model.init(jax.random.key(0)))
    words.save(tmp_path / "m")
    command = [
        sys.executable,
        "-m",
        "dynexit.cli.main",
        "serve",
        str(tmp_path / "m"),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        url = next(line.split()[-1] for line in lines if " is served at " in line)
        given = {"model": "m", "prompt": "def", "max_tokens": 400, "seed": 0, "stream": True}
        with httpx.stream("POST", f"{url}/completions", json=given, timeout=60) as answer:
            found = answer.iter_lines()
            next(found)
            process.send_signal(signal.SIGTERM)
            assert [line for line in found if line][-1] == "data: [DONE]"
        assert process.wait(30) == -signal.SIGTERM
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/models")
