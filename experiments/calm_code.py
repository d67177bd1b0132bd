"""CALM on Python source: a small language model whose tokens exit once they are certain.

    dynexit train experiments/calm_code.py

Byte pairs of Python's own standard library, 300,000 of its 2.7 million tokens, in windows of 128;
needs `pip install 'dynexit[language]'`. Every exit has a loss in every update.
Hardware: two CPU cores, shared with other work, 9 minutes for the updates. Expect: with seed 0 and
Python 3.11 5.53 nats for a token of the calibration split after block 1 and 5.47 after block 6, and
the token of block 6 after block 1 in 76% of the places, after block 4 in 90%. Another release of
Python has another text."""

import dataclasses
import http
from pathlib import Path

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """CALM on Python source."""

    model: dx.models.CausalLM = dx.models.CausalLM(width=96, depth=6, heads=4, context=512)
    method: dx.methods.Calm = dx.methods.Calm()
    data: dx.data.TextDocuments = dx.data.TextDocuments(vocabulary=4096, length=128, examples=256)
    training: dx.Training = dx.Training(
        steps=300,
        batch_size=8,
        learning_rate=4e-3,
        warmup=0.04,
        remat=False,
        checkpoint_every=100,
        eval_every=0,
    )
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=32, repeats=3, timed_rows=64, tune=False)


SMOKE = Settings(
    model=dx.models.CausalLM(width=16, depth=3, heads=2, context=16),
    method=dx.methods.Calm(shared=5),
    data=dx.data.TextDocuments(Path(http.__file__).parent, vocabulary=257, length=16, examples=16),
    training=dx.Training(steps=6, batch_size=4, checkpoint_every=6, eval_rows=8),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
