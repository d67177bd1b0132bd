"""Exits on a frozen trunk: a plain vision transformer, saved as `transformers` saves one, gets an
exit head after every block. The trunk is not changed by a bit.

    python experiments/frozen_trunk.py runs/trunk
    dynexit train experiments/frozen_trunk.py --model.folder runs/trunk

The first command trains the trunk on scikit-learn's digits, with a loss at its last exit alone, and
writes `config.json` and `model.safetensors`.
Hardware: two busy CPU cores, 50 and 70 seconds. Expect: with seed 0 97.6% at full depth and
at the operating point, a mean depth of 4.4 of 6 blocks, 74% of the FLOPs. A trunk trained without
inner exits is less accurate early: 70% after one block, 95% after four."""

import dataclasses
import sys
import tempfile

import digits_vit

import dynexit as dx

TRUNK = dx.models.VitEncoder("vit", (8, 8), 1, patch=4, width=96, depth=6, heads=4, hidden=384)
PLAIN = dataclasses.replace(digits_vit.Settings(), model=TRUNK, method=dx.methods.FixedDepth())


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Exit heads on a frozen vision transformer."""

    model: dx.models.PretrainedVit = dx.models.PretrainedVit("runs/trunk")
    method: dx.methods.FrozenTrunk = dx.methods.FrozenTrunk()
    data: dx.data.Digits = dx.data.Digits(shift=1)
    training: dx.Training = dx.Training(steps=200, batch_size=64, learning_rate=2e-3)
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.0, max_negative_flips=0.003)

    def build(self) -> "dx.Experiment":
        """The experiment; without a folder the trunk is a small one, trained for a few updates."""
        if self.model.folder:
            return super().build()
        with tempfile.TemporaryDirectory() as place:
            pretrain(f"{place}/trunk", dataclasses.replace(digits_vit.SMOKE, model=SMALL))
            model = dataclasses.replace(self.model, folder=f"{place}/trunk")
            return dataclasses.replace(self, model=model).build()


SMALL = dataclasses.replace(TRUNK, width=16, depth=3, heads=2, hidden=32)
SMOKE = Settings(
    model=dx.models.PretrainedVit(exits=dx.models.ExitHeads(pool="mean", hidden=8)),
    training=dx.Training(steps=10, batch_size=32, checkpoint_every=10),
    evaluation=dx.Evaluation(batch_size=16, repeats=1, tune=False),
)


def pretrain(folder: str, settings: dx.Settings = PLAIN) -> None:
    """Trains a trunk and writes it as a checkpoint of `transformers`."""
    with tempfile.TemporaryDirectory() as run:
        fitted = dx.training.fit(settings.build(), settings.training, run, settings.seed)
    dx.models.vision.to_hf(folder, settings.model, fitted.params)


if __name__ == "__main__":
    pretrain(sys.argv[1])
