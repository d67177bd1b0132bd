"""Peers of text generation: transformers, and economize where it is installed, in PyTorch."""

import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dynexit.bench.generation import Write
from dynexit.core.shapes import HostArray, Int, PyTree
from dynexit.core.system import cores
from dynexit.models.language.hf.folder import to_hf
from dynexit.models.language.settings import CausalLM


def peers(
    settings: CausalLM, params: PyTree, exit: int = 0, drafts: int = 4, lookup: int = 0
) -> dict[str, Write]:
    """Greedy generation by other libraries with the same weights, in float32.

    Args:
      settings, params: of the model.
      exit, drafts: blocks that draft, and their drafts of a round; 0 blocks for none.
      lookup: drafts of prompt lookup in a round; 0 for none.

    Returns:
      Writers by name, transformers first. Those of economize are plain decoding, and the drafts
      that are asked for.

    Raises:
      ImportError: PyTorch or transformers is not installed.
    """
    peer = _loaded(settings, params)
    found = {"transformers": transformers_eager(peer)}
    if importlib.util.find_spec("economize") is None:
        return found
    found["economize plain"] = economize_batch(peer, None, 1)
    if exit:
        module: Any = importlib.import_module("economize.techniques.early_exit")
        config = module.EarlyExitConfig(exit_layer=exit, head="shared")
        found[f"economize {exit} blocks"] = economize_batch(peer, config, drafts + 1)
    if lookup:
        module = importlib.import_module("economize.techniques.lookup")
        config = module.LookupConfig(match="latest")
        found["economize prompt lookup"] = economize_batch(peer, config, lookup + 1)
    return found


def transformers_eager(peer: Any) -> Write:
    """Greedy generation by a model of transformers."""
    import torch  # pyright: ignore[reportMissingImports]

    def write(prompts: Int[HostArray, "B P"], tokens: int) -> list[Int[HostArray, "_"]]:
        given = torch.from_numpy(prompts.astype(np.int64))
        with torch.inference_mode():
            text = peer.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=tokens,
                do_sample=False,
            )
        return list(text[:, prompts.shape[1] :].numpy())

    return write


def economize_batch(peer: Any, technique: Any, cycle: int) -> Write:
    """Greedy generation by economize, lossless.

    Args:
      peer: a model of transformers; its weights are not changed.
      technique: the configuration of a drafter, or None for plain decoding.
      cycle: tokens of a cycle, one more than its drafts.
    """
    import torch  # pyright: ignore[reportMissingImports]

    economize: Any = importlib.import_module("economize")
    techniques = () if technique is None else (technique,)
    options = economize.DecodeConfig(cycle_length=cycle)
    model = economize.apply(peer, *techniques, decoding=options)

    def write(prompts: Int[HostArray, "B P"], tokens: int) -> list[Int[HostArray, "_"]]:
        given = torch.from_numpy(prompts.astype(np.int64))
        return [row.tokens.numpy() for row in model.decode_batch(given, tokens)]

    return write


def _loaded(settings: CausalLM, params: PyTree) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("the peer needs PyTorch and transformers, or --no-peer") from error
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        path = to_hf(Path(folder) / "model", settings, params)
        load: Any = transformers.AutoModelForCausalLM
        peer = load.from_pretrained(path, dtype=torch.float32).eval()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    return peer
