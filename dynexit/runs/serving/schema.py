"""The bodies of the completions interface: requests, answers and errors."""

import json
import math
from typing import Any, NamedTuple, TypeAlias

from dynexit.decoding.sampling import Sampling
from dynexit.runs.language import LanguageModel
from dynexit.runs.serving.stopped_text import TokenRecord

MAX_TOKENS, TEMPERATURE = 16, 1.0  # the defaults of the interface
STOPS, PROMPTS = 4, 16
Json: TypeAlias = dict[str, Any]

# what other servers offer and this one does not: only these values are accepted
FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}


class RequestError(Exception):
    """A request that is refused.

    Attributes:
      status: of HTTP.
      body: the error object of the interface.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.body: Json = {"error": error}


class Completion(NamedTuple):
    """What a request asks for.

    Attributes:
      prompts: token ids.
      max_tokens: to write for each.
      sampling: how they are drawn.
      seed: of the first prompt; the others have the following ones. None for any.
      stops: strings that end a text.
      stream: whether text is sent while it is written.
      usage: whether a stream ends with its counts of tokens.
      logprobs: whether ln p of every token is wanted.
    """

    prompts: list[list[int]]
    max_tokens: int
    sampling: Sampling
    seed: int | None
    stops: list[str]
    stream: bool
    usage: bool
    logprobs: bool


def read_completion(body: bytes, language: LanguageModel, name: str, room: int) -> Completion:
    """Reads a request.

    Args:
      body: JSON.
      language: whose tokenizer reads prompts.
      name: of the model, which `model` must be.
      room: tokens of a prompt and its completion at most.

    Raises:
      RequestError: no JSON, an unknown or wrong field, another model, or too many tokens.
    """
    try:
        fields: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body must be JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RequestError("the body must be a JSON object")
    given: Json = {key: value for key, value in fields.items() if value is not None}
    model = _take(given, "model", str, None)
    if model is None:
        raise RequestError("`model` must be given", "model")
    if model != name:
        raise RequestError(
            f"the model {model!r} does not exist; this server has {name!r}",
            "model",
            "model_not_found",
            404,
        )
    for field, allowed in FIXED.items():
        if (value := given.pop(field, allowed[0])) not in allowed or isinstance(value, bool) != (
            field == "echo"
        ):
            raise RequestError(f"`{field}` must be {json.dumps(allowed[0])} here", field)
    prompts = _prompts(given.pop("prompt", None), language)
    most = _take(given, "max_tokens", int, MAX_TOKENS, 1)
    longest = max(map(len, prompts))
    if longest + most > room:
        raise RequestError(
            f"the prompt has {longest} tokens, and with `max_tokens` {most} it exceeds {room}",
            "max_tokens",
            "context_length_exceeded",
        )
    sampling = Sampling(
        temperature=float(_take(given, "temperature", float, TEMPERATURE, 0, 1e6)),
        top_k=_take(given, "top_k", int, 0, 0, 2**31 - 1),
        top_p=float(_take(given, "top_p", float, 1.0)),
        min_p=float(_take(given, "min_p", float, 0.0)),
        repetition_penalty=float(_take(given, "repetition_penalty", float, 1.0, 0, 1e6)),
    )
    if found := sampling.validate():
        raise RequestError("; ".join(found), found[0].partition(" ")[0])
    options = _take(given, "stream_options", dict, {})
    asked = Completion(
        prompts,
        most,
        sampling,
        _take(given, "seed", int, None, -(2**63), 2**63 - 1),
        _stops(given.pop("stop", [])),
        _take(given, "stream", bool, False),
        _take(dict(options), "include_usage", bool, False),
        _logprobs(given.pop("logprobs", None)),
    )
    _take(given, "user", str, "")
    if given:
        field = min(given)
        raise RequestError(f"`{field}` is not a field of a completion", field)
    return asked


def _take(
    given: Json, field: str, kind: type, default: Any, low: float = -1e9, high: float = 2**31 - 1
) -> Any:
    """A field of a type, in a range if it is a number; it is removed from those given."""
    if field not in given:
        return default
    value = given.pop(field)
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (kind is not bool and isinstance(value, bool)):
        words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
        raise RequestError(
            f"`{field}` must be {words.get(kind, 'an object')}, got {_short(value)}", field
        )
    if kind in (int, float) and not low <= value <= high:
        raise RequestError(f"`{field}` must lie in {low:g}..{high:g}, got {value}", field)
    return value


def _prompts(value: Any, language: LanguageModel) -> list[list[int]]:
    """One or several prompts, as text or as token ids."""
    wanted = "`prompt` must be a string, token ids, or a list of one of them"
    token = lambda t: isinstance(t, int) and not isinstance(t, bool)
    if value is None:
        raise RequestError("`prompt` must be given", "prompt")
    several: list[Any] = [value]
    if isinstance(value, list) and not (value and all(map(token, value))):
        several = list(value)
    if not 1 <= len(several) <= PROMPTS:
        raise RequestError(f"`prompt` must be 1 to {PROMPTS} prompts, got {len(several)}", "prompt")
    found: list[list[int]] = []
    decoder: Any = language.model.decoder
    for prompt in several:
        if isinstance(prompt, str):
            try:
                found.append(language.encode(prompt))
            except ValueError as error:  # also of a lone surrogate
                raise RequestError(str(error), "prompt") from error
        elif isinstance(prompt, list) and prompt and all(map(token, prompt)):
            if not all(0 <= t < decoder.vocabulary for t in prompt):
                raise RequestError(
                    f"`prompt` must contain tokens in 0..{decoder.vocabulary - 1}", "prompt"
                )
            found.append([int(t) for t in prompt])
        else:
            raise RequestError(f"{wanted}, got {_short(prompt)}", "prompt")
    return found


def _stops(value: Any) -> list[str]:
    stops: list[Any] = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > STOPS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise RequestError(
            f"`stop` must be a string or up to {STOPS} strings, none of them empty, got "
            f"{_short(value)}",
            "stop",
        )
    return [str(stop) for stop in stops]


def _logprobs(value: Any) -> bool:
    if value is None or value is False:
        return False
    if value is not True and value not in (0, 1):
        raise RequestError(
            f"`logprobs` must be 0 or 1: those of other tokens are not kept, got {_short(value)}",
            "logprobs",
        )
    return True


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."


def logprobs_of(tokens: list[TokenRecord]) -> Json:
    """The tokens of a text, with ln p of each; alternatives are not kept."""
    log_p = [token.log_probability for token in tokens]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [p if math.isfinite(p) else None for p in log_p],
        "top_logprobs": None,
        "text_offset": [token.offset for token in tokens],
    }


def choice(
    index: int, text: str, tokens: list[TokenRecord] | None, reason: str | None, **more: Any
) -> Json:
    """One completion, or a part of it."""
    logprobs = None if tokens is None else logprobs_of(tokens)
    found = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
    return found | more


def usage_of(prompts: int, completions: int) -> Json:
    """Counts of tokens."""
    return {
        "prompt_tokens": prompts,
        "completion_tokens": completions,
        "total_tokens": prompts + completions,
    }
