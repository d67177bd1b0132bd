"""The Chomsky suite: which networks carry what they learned on short strings to long ones, and what
depth by the row adds.

    dynexit train experiments/chomsky.py --data.task parity_check --model.kind lstm

Trained on strings of 1 to 20 tokens, tested on 21 to 60; chance is 50% or 20%. Three plain networks
(`elman`, `lstm`, `transformer`) and three that iterate: `universal` (adaptive computation time),
`thinking` (deep thinking, a recurrent convolution) and `recurrent` (recurrent depth, a decoder).
Accuracy is the share of the answer's tokens that are right.
Hardware: two CPU cores, 1 to 3 minutes each. Expect: the table in docs/benchmarks.md; recurrent
layers learn parity for any length; what iterates over the whole string does not in so few updates.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least

KINDS = ("elman", "lstm", "transformer", "universal", "thinking", "recurrent")
DECODERS = ("transformer", "recurrent")  # these read and write the same tokens


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    kind: str = "lstm"
    """elman, lstm, transformer, universal, thinking or recurrent"""
    width: int = 64
    """channels"""
    steps: int = 64
    """iterations at most, at test time, of `thinking`; a quarter of it of `recurrent` and an eighth
    of `universal`
    """

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = (
            []
            if self.kind in KINDS
            else [f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}"]
        )
        found += at_least(self, 8, "width", "steps")
        return found or [
            f"{name} must be a multiple of 8, got {n}"
            for name, n in vars(self).items()
            if name != "kind" and n % 8
        ]


@dataclasses.dataclass(frozen=True)
class Data:
    """The task."""

    task: str = "parity_check"
    """one of the fifteen of dynexit.data.tasks.chomsky.TASKS"""
    length: int = 20
    """tokens at most in training and calibration"""
    test_length: int = 60
    """tokens at most in the test split, whose strings are all longer than those of training"""
    examples: int = 400
    """size of the calibration and of the test split"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        from dynexit.data.tasks.chomsky import TASKS

        found = (
            []
            if self.task in TASKS
            else [f"task must be one of {', '.join(TASKS)}, got {self.task!r}"]
        )
        found += (
            []
            if self.test_length > self.length
            else [f"test_length must exceed length {self.length}, got {self.test_length}"]
        )
        return found + at_least(self, 1, "length", "examples")


@dataclasses.dataclass(frozen=True)
class Method:
    """Those that iterate."""

    tau: float = 0.01
    """price of a step of `universal`"""
    most: int = 16
    """iterations in training of `thinking`, and four times the mean rate of `recurrent`"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 0.0, "tau") + at_least(self, 4, "most")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training(
        steps=1000,
        batch_size=32,
        learning_rate=2e-3,
        weight_decay=0.0,
        clip=1.0,
        remat=False,
        checkpoint_every=1000,
        log_every=50,
    )
    calibration: Calibration = Calibration(accept_loss=0.005)
    evaluation: Evaluation = Evaluation(batch_size=32, repeats=3, timed_rows=128, tune=False)
    seed: int = 0
    """of weights and of the strings drawn"""

    def validate(self) -> list[str]:
        """Settings that clash."""
        short = self.model.kind == "thinking" and self.model.steps < self.method.most
        return (
            [
                f"model.steps must be at least method.most, got {self.model.steps} and {self.method.most}"
            ]
            if short
            else []
        )


SMOKE = Settings(
    model=Model(kind="thinking", width=8, steps=8),
    data=Data(task="reverse_string", length=4, test_length=6, examples=32),
    method=Method(most=4),
    training=Training(remat=False, steps=20, batch_size=16, checkpoint_every=20),
    evaluation=Evaluation(batch_size=8, repeats=1, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    import jax

    from dynexit.core.labels import share
    from dynexit.data.tasks.chomsky import TASKS, chomsky

    m, d = settings.model, settings.data
    task = TASKS[d.task]
    train, calibration, test = chomsky(
        task, (1, d.length), (d.length + 1, d.test_length), d.examples
    )
    model, method = network(
        settings, task.vocabulary + 2, task.classes
    )  # the empty token and the padding are tokens too
    one_hot = lambda tokens: jax.nn.one_hot(tokens, task.vocabulary + 2)
    return dx.Experiment(
        model=model,
        method=method._replace(score=share),
        train=train,
        calibration=calibration,
        test=test,
        augment=None,
        prepare=one_hot if m.kind == "thinking" else None,
        classes=tuple(
            map(str, range(task.classes if m.kind not in DECODERS else task.vocabulary + 2))
        ),
    )


def network(settings: Settings, vocabulary: int, classes: int) -> tuple:
    """The network of its kind and the method that trains it."""
    m, method = settings.model, settings.method
    mean = method.most / 4
    attention = dict(width=m.width, heads=4)
    if m.kind == "transformer":  # a decoder of four blocks, each run once
        return dx.models.RecurrentDepth(**attention, steps=1, core=2, mean_steps=1).build(
            dx.Tokens(vocabulary), vocabulary
        ), dx.methods.fixed_depth()
    if m.kind == "universal":
        universal = dx.models.UniversalTransformer(
            **attention, steps=m.steps // 8, halt_bias=-1.0
        ).build(dx.Tokens(vocabulary), classes)
        return universal, dx.methods.act(method.tau)
    if m.kind == "thinking":
        thinking = dx.models.DeepThinking(width=m.width // 2, steps=m.steps, every=4).build(
            (8, vocabulary), classes
        )
        return thinking, dx.methods.deep_thinking(method.most, settled=1)
    if m.kind == "recurrent":
        recurrent = dx.models.RecurrentDepth(
            **attention, steps=m.steps // 4, mean_steps=round(mean) + 1
        ).build(dx.Tokens(vocabulary), vocabulary)
        return recurrent, dx.methods.recurrent_depth(mean, truncate=4)
    return dx.models.Rnn(width=m.width, cell=m.kind).build(
        dx.Tokens(vocabulary), classes
    ), dx.methods.fixed_depth()
