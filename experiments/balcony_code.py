"""Balcony on a pretrained language model: a block that drafts for it, trained on Python source.

    dynexit train experiments/balcony_code.py --model.folder MODEL --data.tokenizer-folder MODEL

MODEL is a folder that transformers wrote, or one that was made from a GGUF file
(`dx.models.language.to_hf`). The settings here are those of SmolLM2-135M: an exit at half depth.
Hardware: two CPU cores, 21 minutes, beside other work.
Expect: the exit has the token of the last block at 41% of the places of the calibration split and
at 34% of the test split, which is mostly English prose; before training at 0%. More updates give
more.
"""

import dataclasses
import email
from pathlib import Path

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Balcony on Python source."""

    model: dx.models.Balcony = dx.models.Balcony(exits=(15,), folder="smollm2")
    method: dx.methods.Balcony = dx.methods.Balcony()
    data: dx.data.TextDocuments = dx.data.TextDocuments(
        vocabulary=49152, tokenizer_folder=Path("smollm2"), length=128, examples=32
    )
    training: dx.Training = dx.Training(
        steps=480,
        batch_size=4,
        learning_rate=5e-4,
        remat=False,
        checkpoint_every=60,
        eval_every=0,
    )
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=4, repeats=1, timed_rows=8, tune=False)


SMOKE = Settings(
    model=dx.models.Balcony(dx.models.CausalLM(width=16, depth=3, heads=2, context=16), (1,)),
    data=dx.data.TextDocuments(Path(email.__file__).parent, vocabulary=257, length=16, examples=16),
    training=dx.Training(steps=6, batch_size=4, checkpoint_every=6, eval_rows=8),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
