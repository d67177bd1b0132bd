"""A language model whose early exits are read through a block of their own."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import Array, PyTree, Rows
from dynexit.core.types import Model, Step
from dynexit.engine.deferred import deferred_parts
from dynexit.engine.run import run_full
from dynexit.engine.steps import whole
from dynexit.layers.linen import block_names
from dynexit.models.language.balcony_settings import Balcony
from dynexit.models.language.hf.folder import from_hf
from dynexit.models.language.settings import CausalLM


def balcony(settings: Balcony, inputs: Tokens, classes: int) -> Model:
    """Builds the model of `dx.models.Balcony`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    trunk = settings.settings()
    if settings.exits[-1] >= trunk.depth:
        raise ValueError(
            f"`exits` must be below the {trunk.depth} blocks of the trunk, got {settings.exits}"
        )
    network = BalconyNetwork(trunk, settings.exits, settings.folder, inputs)
    depths = tuple(b - a for a, b in itertools.pairwise((0, *settings.exits, trunk.depth)))
    decoder = network.model.decoder
    names = block_names(trunk.depth)
    return Model(network.init, network.embed, network.steps, depths, names, decoder=decoder)


def head_name(exit: int) -> str:
    """The entry of the head after `exit` blocks.

    Example:
      >>> head_name(4)
      'exit04'
    """
    return f"exit{exit:02d}"


def draft_head(params: PyTree, exit: int) -> PyTree:
    """The head after `exit` blocks, for `dx.decoding.EarlyExit(exit, head=...)`.

    Args:
      params: of a `dx.models.Balcony`.
      exit: one of its exits.

    Raises:
      ValueError: there is no such exit.

    Example:
      >>> import dynexit as dx
      >>> settings = dx.models.Balcony(dx.models.CausalLM(width=8, depth=2, heads=2), exits=(1,))
      >>> params = settings.build(dx.Tokens(9), 9).init(jax.random.key(0))
      >>> sorted(draft_head(params, 1))
      ['block', 'norm']
    """
    heads = params["heads"]
    if head_name(exit) not in heads:
        raise ValueError(f"`exit` must be one of {', '.join(sorted(heads))}, got {exit}")
    return heads[head_name(exit)]


@dataclasses.dataclass(frozen=True)
class BalconyNetwork:
    """The functions of the model; equal settings give equal functions.

    Attributes:
      trunk: settings of the language model.
      exits: numbers of blocks.
      folder: from which the trunk is read, or empty.
      inputs: the tokens.
    """

    trunk: CausalLM
    exits: tuple[int, ...]
    folder: str
    inputs: Tokens

    @property
    def model(self) -> Model:
        """The trunk."""
        return self.trunk.build(self.inputs, self.inputs.vocabulary)

    def init(self, key: Array) -> PyTree:
        """The trunk, drawn or read, and a copy of its last block and final norm an exit."""
        trunk = from_hf(self.folder).params if self.folder else self.model.init(key)
        copy = lambda tree: jax.tree.map(jnp.array, tree)
        last = jax.tree.map(lambda a: a[-1], trunk["blocks"])
        heads = {
            head_name(e): {"block": copy(last), "norm": copy(trunk["head"]["norm"])}
            for e in self.exits
        }
        return {"trunk": trunk, "heads": heads}

    def embed(self, params: PyTree, inputs: Rows) -> Rows:
        """As that of the trunk."""
        return self.model.embed(params["trunk"], inputs)

    def steps(self, params: PyTree) -> tuple[Step, ...]:
        """One step an exit: the blocks before it, and its head."""
        found = []
        for a, b in itertools.pairwise((0, *self.exits, self.trunk.depth)):
            head = params["heads"][head_name(b)] if b in self.exits else None
            weights = {"trunk": params["trunk"], "head": head}
            apply = Partial(_Segment(self.trunk, self.inputs, a, b))
            found.append(Step(Partial(whole, weights), apply, blocks=b - a, depth=b - a))
        return tuple(found)


def _shifted(select: Callable[[Array], PyTree], first: int | Array, i: Array) -> PyTree:
    """The weights of block first + i."""
    return select(first + i)


@dataclasses.dataclass(frozen=True)
class _Segment:
    """The blocks first..last-1 of the trunk, and the exit after them."""

    trunk: CausalLM
    inputs: Tokens
    first: int
    last: int

    def __call__(self, weights: PyTree, i: Array, state: Rows) -> tuple[Rows, Rows]:
        model = self.trunk.build(self.inputs, self.inputs.vocabulary)
        parts = deferred_parts(model.steps(weights["trunk"]))
        assert parts is not None
        inner, decoder = parts[0], model.decoder

        shifted = dataclasses.replace(inner, select=Partial(_shifted, inner.select, self.first))
        state, _ = run_full(shifted, state, self.last - self.first)
        output, head, read = state, weights["head"], weights["trunk"]
        if head is not None:
            p = {**inner.select(jnp.int32(self.trunk.depth - 1)), "block": head["block"]}
            output, _ = inner.apply(p, i, state)
            read = {**read, "head": {**read["head"], "norm": head["norm"]}}
        found = {"hidden": output["h"], "logits": decoder.logits(read, output["h"])}
        return state, found | ({"mask": state["mask"]} if "mask" in state else {})
