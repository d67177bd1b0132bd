"""A quick form of `python -m tests.lossless`."""

import jax
import pytest
from lossless.grid import GRID, compared, recomputed
from lossless.small_model import library_text, prompts_of, trained


@pytest.mark.slow
def test_texts_with_drafts_are_those_of_recomputation():
    text = library_text()
    with jax.numpy_dtype_promotion("standard"):  # for optax
        params, _ = trained(30, text)
    prompts, limits = prompts_of(text, 40)
    wanted = recomputed(params, prompts, limits)
    for case in GRID[1], GRID[5], GRID[8]:
        result = compared(case, params, prompts, limits, wanted)
        assert result.equal == result.prompts == 40, result.differing
        assert 0 < result.accepted <= result.drafted and result.rounds < result.tokens
    # the control: other parameters write other texts
    other, _ = trained(0, text)
    assert compared(GRID[0], other, prompts, limits, wanted).equal < 40
