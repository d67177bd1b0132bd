"""Text from a prompt, token by token, and what it took."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynexit.core.checks import positive_integer
from dynexit.data.tokenizers.tokenizer import TextStream
from dynexit.decoding.drafts import Draft
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.exits.work import Work
from dynexit.decoding.sampling import GREEDY, Sampling
from dynexit.decoding.session import Session
from dynexit.decoding.tuning import Choice, tune
from dynexit.runs.generation.pace import Pace
from dynexit.runs.language import LanguageModel

MAX_TOKENS = 128


class Piece(NamedTuple):
    """One token of a text.

    Attributes:
      text: what the token completes; empty inside of a character of several tokens.
      token: its id.
      depth: blocks that chose it.
      log_probability: ln p in nats at temperature 1.
    """

    text: str
    token: int
    depth: int
    log_probability: float


class Summary(NamedTuple):
    """What a text took.

    Attributes:
      tokens: written.
      reason: "stop" or "length"; None where the text was not read to its end.
      compile_seconds: before the first round.
      seconds: of the rounds, with those that read the prompt.
      depths: depth -> tokens, rising.
      rounds: passes of the model.
      drafted, accepted: drafts, and those that were right.
      work: what exits took; None without exits.
    """

    tokens: int
    reason: str | None
    compile_seconds: float
    seconds: float
    depths: dict[int, int]
    rounds: int
    drafted: int
    accepted: int
    work: Work | None = None

    @property
    def mean_depth(self) -> float:
        """Blocks of a token, on average."""
        return sum(d * n for d, n in self.depths.items()) / max(1, self.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Tokens in a second of the rounds."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def accepted_per_round(self) -> float:
        """Right drafts of a round, on average."""
        return self.accepted / max(1, self.rounds)


class Writing:
    """A text that is written while it is iterated over.

    Args:
      language: of `load_language`.
      prompt: text.
      max_tokens: to write; None for 128, or fewer where the context ends before.
      sampling: how tokens are drawn; greedy by default.
      seed: of what is drawn.
      draft, exits, mesh: as in `dx.decoding.generate`; one text runs on one group of devices along
        "model".

    Raises:
      TypeError, ValueError: as `dx.decoding.generate`, or an empty prompt.

    Example:
      >>> import dynexit as dx
      >>> words = dx.data.tokenizers.Bytes()
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(257), 257)
      >>> language = LanguageModel("tiny", model, model.init(jax.random.key(0)), words)
      >>> writing = Writing(language, "def", max_tokens=3)
      >>> text = "".join(piece.text for piece in writing)
      >>> writing.summary.tokens, writing.summary.depths
      (3, {2: 3})
    """

    def __init__(
        self,
        language: LanguageModel,
        prompt: str,
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        draft: Draft | None = None,
        exits: Exits | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        begun = time.perf_counter()
        ids = np.array(language.encode(prompt), np.int32)
        limit = _limit(language, len(ids), max_tokens)
        self._language = language
        self._session = Session(
            language.model,
            language.params,
            slots=1,
            room=len(ids) + limit,
            queue=1,
            draft=draft,
            exits=exits,
            mesh=mesh,
            log_probabilities=True,
            key=jax.random.key(seed),
        )
        self._session.add([ids], [limit], [sampling], [list(language.tokenizer.stop)])
        self._session.run(0)  # compiles
        self._compile_seconds = time.perf_counter() - begun
        self._seconds, self._last = 0.0, self._session.progress()[0]
        self._depths: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Piece]:
        """The tokens that are not yet written."""
        stream, pace = TextStream(self._language.tokenizer), Pace()
        while self._last.reason is None:
            begun = time.perf_counter()
            (found,) = pace.run(self._session)
            self._seconds += time.perf_counter() - begun
            self._last = found
            assert found.log_probability is not None
            for k in range(self._depths.total(), len(found.tokens)):
                token, depth = int(found.tokens[k]), int(found.depth[k])
                self._depths[depth] += 1
                last = found.reason is not None and k == len(found.tokens) - 1
                text = stream.push(token) + (stream.finish() if last else "")
                yield Piece(text, token, depth, float(found.log_probability[k]))

    @property
    def summary(self) -> Summary:
        """What the text so far took."""
        return Summary(
            self._depths.total(),
            self._last.reason,
            self._compile_seconds,
            self._seconds,
            dict(sorted(self._depths.items())),
            self._last.rounds,
            self._last.drafted,
            self._last.accepted,
            self._session.work(),
        )


def measured_choice(
    language: LanguageModel,
    prompt: str,
    *,
    max_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Choice:
    """The fastest drafts for a prompt on this device; `Writing` with them compiles nothing again.

    Args:
      language, prompt, max_tokens, sampling, seed: as in `Writing`.

    Returns:
      `dx.decoding.Choice`, whose `draft` is an argument of `Writing`.

    Raises:
      TypeError, ValueError: as `Writing`.
    """
    ids = language.encode(prompt)
    return tune(
        language.model,
        language.params,
        [ids],
        _limit(language, len(ids), max_tokens),
        slots=1,
        sampling=sampling,
        key=jax.random.key(seed),
        stop=language.tokenizer.stop,
        log_probabilities=True,
    )


def _limit(language: LanguageModel, prompt: int, max_tokens: int | None) -> int:
    if max_tokens is not None:
        return positive_integer(max_tokens, "max_tokens")
    context = getattr(language.model.decoder, "context", None)
    return MAX_TOKENS if context is None else max(1, min(MAX_TOKENS, context - prompt))
