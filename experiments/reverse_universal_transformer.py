"""Reversing strings of digits with a universal transformer whose places halt by themselves.

    dynexit train experiments/reverse_universal_transformer.py

Strings of 1 to 8 digits, then blanks; at every place of the string the answer is the digit at its
mirror image. With `--data.test-length 16` the test has longer strings, whose places are never seen
unless `--data.shift 8` moves those of training.
Hardware: two CPU cores, 4 minutes. Expect: measured at update 1,933 of a schedule of 4,000, all
places of all strings right, every row after 2 steps of 6; 7% of the rows are right after step 1.
"""

import dataclasses
from typing import Literal

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The transformer, its one block shared by all steps."""

    width: int = 64
    """channels"""
    heads: int = 4
    """attention heads"""
    hidden: int = 128
    """width of the transition"""
    steps: int = 6
    """steps at most"""
    halting: Literal["accumulated", "basic"] = "accumulated"
    """accumulated, Graves' weighted sum, or basic, the update of the released Universal Transformer"""
    per: Literal["position", "example"] = "position"
    """who halts: position or example"""
    epsilon: float = 0.01
    """halted once the probabilities sum to more than 1 - epsilon"""
    halt_bias: float = -1.0
    """where the halting logit begins: 1 is two steps, -1 four"""
    post_norm: bool = True
    """norms behind the sums as in the paper, or before the branches as in the released code"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = (
            []
            if 0 < self.epsilon < 1
            else [f"epsilon must lie between 0 and 1, got {self.epsilon}"]
        )
        if self.width % 2 or self.width % max(self.heads, 1):
            found.append(
                f"width must be even and a multiple of heads ({self.heads}), got {self.width}"
            )
        return found + at_least(self, 1, "width", "heads", "hidden", "steps")


@dataclasses.dataclass(frozen=True)
class Data:
    """The task."""

    length: int = 8
    """most digits of a string in training and calibration"""
    test_length: int | None = None
    """most digits in the test split; None: as in training"""
    copy: bool = False
    """write the string again as it is, in place of reversing it"""
    shift: int = 0
    """positions in training begin at 0..shift, at random"""
    examples: int = 2000
    """size of the calibration and of the test split; training draws afresh without end"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        test = at_least(self, 1, "test_length") if self.test_length is not None else []
        return test + at_least(self, 1, "length", "examples") + at_least(self, 0, "shift")


@dataclasses.dataclass(frozen=True)
class Method:
    """The objective."""

    tau: float = 0.01
    """price of a step, a place"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 0.0, "tau")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training(
        steps=2000,
        batch_size=64,
        learning_rate=1e-3,
        warmup=0.05,
        weight_decay=0.0,
        checkpoint_every=500,
        log_every=50,
    )
    calibration: Calibration = Calibration(accept_loss=0.005)
    evaluation: Evaluation = Evaluation(batch_size=64)
    seed: int = 0
    """of weights, strings and shifts"""


SMOKE = Settings(
    model=Model(width=8, heads=2, hidden=8, steps=5),
    data=Data(length=4, shift=4, examples=100),
    training=Training(steps=20, batch_size=16, checkpoint_every=20),
    evaluation=Evaluation(batch_size=8, repeats=1, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    import jax
    import jax.numpy as jnp

    from dynexit.data.tasks.addition import BLANK
    from dynexit.data.tasks.copying import copying

    d, m = settings.data, settings.model
    train, calibration, test = copying(
        d.length, d.test_length, backwards=not d.copy, examples=d.examples
    )

    def shifted(key, tokens):
        begin = jax.random.randint(key, (len(tokens), 1), 0, d.shift + 1)
        return {
            "tokens": tokens,
            "positions": begin + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None],
        }

    return dx.Experiment(
        model=dx.models.UniversalTransformer(**dataclasses.asdict(m)).build(
            dx.Tokens(BLANK + 1), 10
        ),
        method=dx.methods.act(settings.method.tau),
        train=train,
        calibration=calibration,
        test=test,
        augment=shifted if d.shift else None,
        prepare=None,
        classes=tuple("0123456789"),
    )
