"""Constructor of a frozen language model with draft blocks; no JAX is loaded before `build`."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from dynexit.core.data import Tokens
from dynexit.models.language.settings import CausalLM

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class Balcony:
    """A language model, and at some of its blocks one more block, through which an exit is read.

    z_e = W norm_e(block_e(h_e)), with h_e the state after e blocks of the trunk and W its output
    matrix. The extra blocks begin as copies of the last one. `dx.methods.Balcony` trains them and
    leaves the trunk as it is.

    Example:
      >>> import dynexit as dx
      >>> trunk = dx.models.CausalLM(width=16, depth=4, heads=2)
      >>> model = Balcony(trunk, exits=(2,)).build(dx.Tokens(50), 50)
      >>> model.depth
      (2, 2)

    Source: Jamialahmadi et al. 2025, Balcony, arXiv 2503.05005.
    """

    trunk: CausalLM = CausalLM()
    """the language model; not read where there is a folder"""
    exits: tuple[int, ...] = (4,)
    """numbers of blocks e, rising, in 1..N-1"""
    folder: str = ""
    """a folder that transformers wrote, from which the trunk is read; empty for `trunk`, drawn"""

    def settings(self) -> CausalLM:
        """The settings of the trunk.

        Raises:
          ValueError: the folder is missing or of an unknown architecture.
        """
        if not self.folder:
            return self.trunk
        from dynexit.models.hf_config import CONFIG, existing, read_json
        from dynexit.models.language.hf.families import architecture_of, read_settings

        path = existing(self.folder)
        config = read_json(path / CONFIG)
        return read_settings(architecture_of(config, path), config, path)[0]

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = [] if self.folder else self.trunk.validate()
        rising = list(self.exits) == sorted(set(self.exits))
        if not self.exits or not rising or self.exits[0] < 1:
            found.append(f"exits must be rising numbers of at least 1, got {self.exits}")
        elif not self.folder and self.exits[-1] >= self.trunk.depth:
            found.append(
                f"exits must be below the {self.trunk.depth} blocks of the trunk, got {self.exits}"
            )
        return found

    def fits(self, inputs: Any, classes: int) -> list[str]:
        """What does not fit the data, one sentence each; nothing while there is no folder."""
        if self.folder and not os.path.isdir(self.folder):
            return []
        return self.settings().fits(inputs, classes)

    def build(self, inputs: Tokens, classes: int) -> "Model":
        """The model; its `init` reads the trunk from the folder, if there is one.

        Args:
          inputs: `dx.Tokens`, with the vocabulary of the folder.
          classes: as in `CausalLM.build`.

        Returns:
          A staged `Model` with an exit after each of `exits` and after the last block. Its
          parameters are "trunk", those of `CausalLM`, and "heads", a dict of one extra block and
          norm an exit. Inputs and outputs as in `CausalLM.build`. Its decoder is that of the trunk:
          `dx.models.language.draft_head(params, exit)` is the head of
          `dx.decoding.EarlyExit(exit, head=...)`.

        Raises:
          ValueError: a field is out of range, or does not fit the folder; it is named.
        """
        from dynexit.models.language.balcony import balcony

        return balcony(self, inputs, classes)
