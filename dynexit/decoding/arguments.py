"""The plan and the arrays that the arguments of `generate` describe."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from dynexit.core.decoder import Decoder
from dynexit.core.shapes import PyTree
from dynexit.core.types import Model
from dynexit.decoding.drafts import Draft, EarlyExit, checked_draft
from dynexit.decoding.exits.settings import Exits, checked_exits
from dynexit.decoding.plan import Given, Plan


def decoder_of(decoder: Decoder | Model) -> Decoder:
    """The decoder of a model, or the decoder that is given.

    Raises:
      TypeError: the model cannot decode.
    """
    found = decoder.decoder if isinstance(decoder, Model) else decoder
    if not isinstance(found, Decoder):
        raise TypeError(
            "`decoder` must be a model with a decoder, such as dx.models.CausalLM, "
            f"got {type(found if found is not None else decoder).__name__}"
        )
    return found


def planned(plan: Plan, draft: Draft | None, exits: Exits | None) -> Plan:
    """A plan for drafts or exits.

    Raises:
      TypeError, ValueError: one that does not fit the decoder, or both.
    """
    checked_draft(draft, plan.decoder)
    if exits is None:
        return plan.with_draft(draft)
    if draft is not None:
        raise ValueError("`exits` must be None where `draft` is given: drafts are verified")
    return dataclasses.replace(plan, exits=checked_exits(exits, plan.decoder))


def given_arrays(
    plan: Plan, params: PyTree, draft: Draft | None, exits: Exits | None, costs: Any = None
) -> Given:
    """The arrays of a plan.

    Args:
      plan: of `planned`.
      params: of the model, or `decoder.unstack(params)`.
      draft, exits: as in `planned`.
      costs: of a round with each of `plan.lengths`; None for equal ones.
    """
    weights, among = plan.decoder.unstack(params), None
    if isinstance(draft, EarlyExit):
        among = None if draft.among is None else jnp.asarray(draft.among, jnp.int32)
        if draft.head is not None:
            weights = plan.decoder.with_head(weights, draft.head)
    if exits is not None:
        among = None if exits.among is None else jnp.asarray(exits.among, jnp.int32)
    costs = jnp.ones(len(plan.lengths)) if costs is None else costs
    return Given(weights, among, costs, None if exits is None else exits.criterion)
