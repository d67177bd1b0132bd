"""Generates text on eight virtual devices, 4 x 2, and prints one line for each kind of draft."""

import json
import sys

import jax
import numpy as np

import dynexit as dx
from dynexit.decoding import EarlyExit, PromptLookup, Session, generate, sharded
from dynexit.engine.collectives import collectives

VOCABULARY, REQUESTS, SLOTS = 30, 14, 2
DRAFTS = {"none": None, "early_exit": EarlyExit(1, 2), "prompt_lookup": PromptLookup(3, 2)}


def main(kinds):
    settings = dx.models.CausalLM(width=16, depth=2, heads=2, context=64)
    model = settings.build(dx.Tokens(VOCABULARY), VOCABULARY)
    params = model.init(jax.random.key(0))
    # large weights: the text depends on its beginning, and no two logits are close
    params["embed"] = {"tokens": 30 * params["embed"]["tokens"]}
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, VOCABULARY, n) for n in draw.integers(1, 20, REQUESTS)]
    # requests are dealt to the shards in turn: those of shard 0 are the longest
    limits = [16 - 4 * (k % 4) for k in range(REQUESTS)]
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    programs, refuse_waiting = [], sharded.refuse_waiting
    sharded.refuse_waiting = lambda text, loops: (
        programs.append(collectives(text)),
        refuse_waiting(text, loops),
    )
    for kind in kinds:
        programs.clear()
        draft = DRAFTS[kind]
        wanted = generate(model, params, prompts, limits, draft=draft, slots=SLOTS)
        given = dict(slots=SLOTS, room=40, queue=REQUESTS, draft=draft, mesh=mesh)
        session = Session(model, params, **given)
        costs = session.given.costs
        equal = jax.device_put(np.ones(costs.shape, np.float32), costs.sharding)
        session.given = session.given._replace(
            costs=equal
        )  # the most drafts while some are accepted
        session.add(prompts, limits)
        session.run()
        found = session.progress()
        pairs = zip(found, wanted.tokens, wanted.depth, strict=True)
        line = {
            "kind": kind,
            "equal": [
                a.tokens.tolist() == tokens.tolist()
                and (draft is not None or a.depth.tolist() == depth.tolist())
                for a, tokens, depth in pairs
            ],
            "ended": [a.reason for a in found] == wanted.reason,
            "queues": [len(entries) for entries in session.entries],
            "rounds": np.asarray(session.carry.rounds).tolist(),
            "one_device": wanted.total_rounds,
            "accepted": int(sum(a.accepted for a in found)),
            "programs": len(programs),
            "in_loops": sorted(
                {(c.kind, c.groups) for each in programs for c in each if c.apart}, key=str
            ),
        }
        print(json.dumps(line), flush=True)


main(sys.argv[1:])
