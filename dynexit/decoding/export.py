"""`export`: the generation of text as one file of StableHLO, which runs without dynexit."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.settings import refuse_invalid
from dynexit.core.shapes import Array, PyTree
from dynexit.core.types import Model
from dynexit.decoding.arguments import decoder_of, given_arrays, planned
from dynexit.decoding.drafts import Draft, EarlyExit
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.plan import Given, Plan, first_carry
from dynexit.decoding.program import ALL, run_all_rounds
from dynexit.decoding.requests import STOPS, Requests, no_requests
from dynexit.decoding.sampling import GREEDY, Rules, Sampling, Uses, rules_of
from dynexit.engine.export import Artifact
from dynexit.engine.export import export as write_file
from dynexit.layers.panels import without_panels


def export(
    decoder: Decoder | Model,
    params: PyTree,
    path: str | os.PathLike[str],
    *,
    prompt: int,
    tokens: int,
    slots: int,
    sampling: Sampling = GREEDY,
    draft: Draft | None = None,
    exits: Exits | None = None,
    chunk: int = 64,
    log_probabilities: bool = False,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Artifact:
    """Writes `generate` as one file of StableHLO, for any number M of prompts.

    Reading the file needs jax and flatbuffers:

        run = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
        written = run(requests, params)  # with a draft: run(requests, params, drafts)

    `requests` is a dict of

        tokens: int32 `[M, P]`, prompts, with anything behind them
        length: int32 `[M]`, tokens of each prompt, in 1..P
        limit: int32 `[M]`, tokens to write, in 0..N; 0 for a padding row
        stops: int32 `[M, 8]`, tokens that end the text; -1 for none
        keys: uint32 `[M, 2]`, `jax.random.key_data` of a key of each row; if tokens are sampled
        temperature, top_k, top_p, min_p, repetition_penalty: `[M]`, as in `Sampling`; those that
          `sampling` uses

    and `drafts` a dict of "costs", float32 `[K]`, of a round without drafts and with each number
    of drafts, in any unit (a very large first one: drafts in every round), and of "among" and
    "head" where the draft has them. `written` is a dict of "tokens" and "depth", int32 `[M, N]`,
    0 behind "length", int32 `[M]`; of "reason", int32 `[M]`, 1 for a stop token and 2 for the
    limit; and of "rounds", "drafted", "accepted" and "log_probability" as in `Generated`. Token
    ids and lengths are not checked.

    Args:
      decoder: as in `generate`.
      params: parameters of the model, or `decoder.unstack(params)`, which saves their
        transposition at each call. They are an argument of the file, of this structure.
      path: the file to write; an existing file is replaced atomically.
      prompt: P, tokens of a prompt at most.
      tokens: N, tokens to write at most.
      slots: rows that run at once; further ones wait, and each takes the slot of a row that has
        ended.
      sampling: an example. The file draws, filters and penalises tokens if this does; the values
        are arguments.
      draft: as in `generate`.
      exits: as in `generate`; thresholds are constants of the file.
      chunk: tokens of a prompt that are read at once.
      log_probabilities: whether to return them.
      platforms: any of "cpu", "cuda", "rocm" and "tpu".

    Returns:
      `dynexit.engine.export.Artifact`, with the shapes of all arguments.

    Raises:
      TypeError, ValueError: as `generate`, and as `dx.export` for `path` and `platforms`.
      OSError: `path` cannot be written.

    Example:
      >>> import pathlib, tempfile, dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(50), 50)
      >>> params = model.init(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = export(model, params, f"{folder}/text", prompt=8, tokens=4, slots=2)
      >>> file.inputs["tokens"].shape, file.outputs["tokens"].shape
      ((b, 8), (b, 4))
    """
    found = decoder_of(decoder)
    positive_integer(prompt, "prompt")
    room = prompt + positive_integer(tokens, "tokens")
    if found.context is not None and room > found.context:
        raise ValueError(
            f"`prompt` and `tokens` must not exceed the context of {found.context}, got {prompt} "
            f"and {tokens}"
        )
    refuse_invalid(sampling)
    uses, chunk = rules_of([sampling])[1], min(positive_integer(chunk, "chunk"), prompt)
    plan = Plan(found, positive_integer(slots, "slots"), room, uses, log_probabilities, chunk=chunk)
    plan = planned(plan, draft, exits)

    def write(requests: PyTree, params: PyTree, drafts: PyTree = None) -> PyTree:
        taken, costs = draft, None
        if drafts is not None:
            costs = drafts["costs"]
            arrays = {name: drafts[name] for name in ("among", "head") if name in drafts}
            taken = dataclasses.replace(draft, **arrays) if arrays else draft  # type: ignore[type-var]
        given = given_arrays(plan, params, taken, exits, costs)
        # whether panels are fast depends on the machine and on XLA, and a file runs on others
        given = given._replace(weights=without_panels(given.weights))
        return _written(plan, given, _placed(plan, requests), prompt)

    arguments = [params] if draft is None else [params, _drafts(plan, draft)]
    return write_file(write, _example(prompt, uses), path, arguments, platforms=platforms)


def _example(prompt: int, uses: Uses) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the requests, for one row."""
    row = lambda dtype, *sizes: jax.ShapeDtypeStruct((1, *sizes), dtype)
    of = {"tokens": row(jnp.int32, prompt), "length": row(jnp.int32), "limit": row(jnp.int32)}
    of["stops"] = row(jnp.int32, STOPS)
    if uses.sampled:
        of |= {"keys": row(jnp.uint32, 2), "temperature": row(jnp.float32)}
    if uses.filtered:
        of |= {"top_k": row(jnp.int32), "top_p": row(jnp.float32), "min_p": row(jnp.float32)}
    if uses.penalised:
        of["repetition_penalty"] = row(jnp.float32)
    return of


def _drafts(plan: Plan, draft: Draft) -> dict[str, PyTree]:
    """Examples of the arrays of a draft."""
    arrays: dict[str, PyTree] = {"costs": jnp.ones(len(plan.lengths))}
    if isinstance(draft, EarlyExit):
        among = None if draft.among is None else jnp.asarray(draft.among, jnp.int32)
        given = {"among": among, "head": draft.head}
        arrays |= {name: value for name, value in given.items() if value is not None}
    return arrays


def _placed(plan: Plan, of: dict[str, Array]) -> Requests:
    """The queue of a file's requests; lengths out of range are clipped."""
    size, most = of["tokens"].shape
    prompt = jnp.clip(of["length"], 1, most)
    limit = jnp.clip(of["limit"], 0, plan.room - most)
    read = jnp.arange(most)[None] < prompt[:, None]
    text = jnp.pad(jnp.where(read, of["tokens"], 0), ((0, 0), (0, plan.room - most)))
    empty = no_requests(size, plan.room, plan.log_probabilities)
    rules = Rules(
        *(of.get(name, value) for name, value in zip(Rules._fields, empty.rules, strict=True))
    )
    rules = rules._replace(penalty=of.get("repetition_penalty", empty.rules.penalty))
    return empty._replace(
        tokens=text,
        prompt=prompt,
        length=prompt,
        limit=prompt + limit,
        stops=of["stops"],
        keys=of.get("keys", empty.keys),
        rules=rules,
    )


def _written(plan: Plan, given: Given, requests: Requests, prompt: int) -> dict[str, Any]:
    """Runs all requests, and returns what follows their prompts."""
    size = requests.length.shape[0]
    carry = first_carry(plan, given, requests)._replace(queued=jnp.asarray(size, jnp.int32))
    end = run_all_rounds(plan, given, carry, jnp.int32(ALL)).requests
    length = end.length - end.prompt
    place = jnp.arange(plan.room - prompt)[None]
    at, read = end.prompt[:, None] + place, place < length[:, None]
    behind = lambda a: jnp.where(read, jnp.take_along_axis(a, at, axis=1), 0)
    found = {"tokens": behind(end.tokens), "depth": behind(end.depth), "length": length}
    if plan.log_probabilities:
        found["log_probability"] = behind(end.log_probability)
    return found | {name: getattr(end, name) for name in _COUNTS}


_COUNTS = ("reason", "rounds", "drafted", "accepted")
