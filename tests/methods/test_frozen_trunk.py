"""Exit heads on a trunk that was loaded from a folder: trained, calibrated, run and exported."""

import hashlib
import shutil
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.cli.main import main
from dynexit.core.data import SPLITS
from dynexit.models.hf_folder import write_folder
from dynexit.training.checkpointing.checkpoints import named_leaves
from dynexit.training.loop import fit
from dynexit.training.parallel.mesh import make_mesh

FILE = Path(__file__).parents[2] / "experiments" / "frozen_trunk.py"
VIT = dx.models.VitEncoder("dinov2", (8, 8), 1, patch=4, width=16, depth=3, heads=2, hidden=32)
BERT = dx.models.BertEncoder("albert", 9, width=16, depth=3, heads=2, hidden=32, positions=8)
TRAINING = dx.Training(
    steps=20, batch_size=32, learning_rate=0.05, checkpoint_every=20, eval_every=0, remat=False
)


def sha256(tree):
    leaves = sorted(named_leaves(tree).items())
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for _, leaf in leaves)).hexdigest()


def drawn(settings, shape):
    """A trunk at random, with layer scales away from one."""
    params = jax.jit(settings.build(shape, 2).init)(jax.random.key(1))
    return jax.tree.map(lambda a: a + 0.05 * jax.random.normal(jax.random.key(2), a.shape), params)


def counting(split):
    """Tokens 1..8 padded with 0; the class says whether the token 1 is among them."""

    def rows(rng, size):
        tokens = rng.integers(1, 9, (size, 8)).astype(np.int32)
        tokens[np.arange(8)[None] >= rng.integers(2, 9, (size, 1))] = 0
        return {"inputs": tokens, "labels": (tokens == 1).any(1).astype(np.int32)}

    k = SPLITS.index(split)
    batch = lambda seed, step, size: rows(np.random.default_rng((k, seed, step)), size)
    return dx.Source(split, batch, lambda: rows(np.random.default_rng(k), 96), None)


def experiment_of(kind, folder):
    if kind == "vit":
        saved = dx.models.vision.to_hf(folder, VIT, drawn(VIT, (8, 8, 1)))
        heads, data = dx.models.ExitHeads("mean", hidden=8), dx.data.Digits(shift=0).build()
        model = dx.models.PretrainedVit(str(saved), heads).build((8, 8, 1), 10)
        splits = data.train, data.calibration, data.test
        method = dx.methods.FrozenTrunk().build()
        return dx.Experiment(model, method, *splits, None, data.prepare, data.classes)
    tokens = dx.Tokens(9, 8)
    saved = dx.models.language.to_hf_encoder(folder, BERT, drawn(BERT, tokens))
    model = dx.models.PretrainedBert(str(saved)).build(tokens, 2)
    method = dx.methods.frozen_trunk(dx.methods.confidence_exits("linear"))
    return dx.Experiment(model, method, *map(counting, SPLITS), classes=("no", "yes"))


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_heads_are_trained_calibrated_run_and_exported(kind, tmp_path):
    experiment = experiment_of(kind, tmp_path / "trunk")
    model, method = experiment[:2]
    before = jax.jit(model.init)(jax.random.key(0))
    mesh = make_mesh(devices=jax.devices()[:1])
    params = fit(experiment, TRAINING, tmp_path / "run", 0, progress=False, mesh=mesh).params
    assert sha256(params["trunk"]) == sha256(before["trunk"])

    prepare = experiment.prepare or (lambda x: x)
    examples = experiment.calibration.examples()
    x, labels = prepare(examples["inputs"]), jnp.asarray(examples["labels"])
    run_all = jax.jit(lambda p: dx.run_all(model.steps(p), model.embed(p, x), model.depth))
    loss = jax.jit(lambda outputs: method.objective(outputs, labels, jnp.float32(1))[0].mean())
    assert loss(run_all(params)) < 0.95 * loss(run_all(before))

    rule = dx.calibration.rules.budget(0.7)
    choice = dx.evaluation.calibrate(experiment, params, rule, 32).choice
    criterion = method.criterion(choice.operating_point)
    replayed = dx.replay(criterion, run_all(params))
    assert len(set(np.asarray(replayed.exit).tolist())) > 1

    def network(inputs, point):
        exits = method.criterion(point)
        return dx.run_until(model.steps(params), model.embed(params, inputs), 3, exits, "masked")

    point = jax.tree.map(jnp.asarray, choice.operating_point)
    dx.export(network, x[:1], tmp_path / "network", arguments=(point,), platforms=("cpu",))
    run = jax.export.deserialize(bytearray((tmp_path / "network").read_bytes())).call
    exported = run(x, point)
    np.testing.assert_array_equal(exported["exit"], replayed.exit)
    np.testing.assert_allclose(exported["output"], replayed.output, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_folder_resumes_with_equal_bits(tmp_path):
    folder = dx.models.vision.to_hf(tmp_path / "trunk", VIT, drawn(VIT, (8, 8, 1)))
    run = tmp_path / "run"
    command = ["train", str(FILE), "--smoke", "--run", str(run), "--model.folder", str(folder)]
    assert main([*command, "--training.checkpoint-every", "5"]) == 0
    whole = dx.runs.trained(run)
    shutil.rmtree(run / "checkpoints" / "00000010")
    assert main([*command, "--training.checkpoint-every", "5"]) == 0
    again = dx.runs.trained(run)
    assert again.step == whole.step == 10 and sha256(again.params) == sha256(whole.params)
    assert sha256(again.params["trunk"]) == sha256(dx.models.vision.from_hf(folder).params["trunk"])


def test_a_folder_that_is_missing_is_an_error_of_the_command(tmp_path, capsys):
    run, trunk = str(tmp_path / "run"), str(tmp_path / "gone")
    assert main(["train", str(FILE), "--model.folder", trunk, "--run", run]) == 2
    assert f"got '{trunk}', which is no folder; nothing is downloaded" in capsys.readouterr().err
    write_folder(trunk, {"model_type": "swin"}, {})
    assert main(["train", str(FILE), "--model.folder", trunk, "--run", run]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.folder must hold a ViT or DINOv2" in said and "got 'swin'" in said
