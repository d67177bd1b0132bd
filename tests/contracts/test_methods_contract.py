"""One battery that every method of dynexit passes, each with a small model and random data."""

import dataclasses
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.calibration.candidates import with_full_depth
from dynexit.calibration.records import records_of
from dynexit.core.data import SPLITS
from dynexit.core.settings import validate
from dynexit.evaluation.recording import fitted
from dynexit.training.checkpointing.checkpoints import named_leaves, restore
from dynexit.training.frozen import is_frozen
from dynexit.training.logs import CLOCK, EVAL, read_records, without_clock
from dynexit.training.loop import fit
from dynexit.training.optimizer import path_name
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.state import state_shapes
from dynexit.training.step import OWN_METRICS, make_loss

pytestmark = pytest.mark.typed

ROWS, CLASSES, SEED = 8, 3, 5
TRAINING = dx.Training(
    steps=3,
    batch_size=ROWS,
    learning_rate=0.01,
    warmup=0.0,
    remat=False,
    checkpoint_every=1,
    keep=3,
    log_every=1,
    eval_every=0,
)
IMAGE, TOKENS = (4, 4, 1), dx.Tokens(CLASSES, 4)
METHODS, MODELS = dx.methods, dx.models
RECURSIVE = MODELS.Recursive(width=8, layers=1, segments=3, inner=1, cycles=1)
EXITS = METHODS.ConfidenceExits(shared=5)


class Case(NamedTuple):
    """A method and a model that suits it.

    `places` is the shape of a row's labels. `untrained` holds patterns of the parameters that the
    loss does not train, with the reason. `drawn` holds patterns of the parameters that are drawn
    again after training, with their deviation, so that rows exit at different depths. `early` is
    False where no candidate lets a row exit early, and `together` is True where all rows exit at
    the depth of the candidate.
    """

    method: Any
    model: Any
    inputs: Any
    places: tuple[int, ...] = ()
    untrained: Mapping[str, str] = MappingProxyType({})
    drawn: Mapping[str, float] = MappingProxyType({})
    early: bool = True
    together: bool = False


FIRST_STATE = MappingProxyType({"start/.*": "the first y and z of a recursion are constants"})
HALTING = MappingProxyType({"head/halt/.*": 2.0})
VARIANTS = "RecurrentDepth, latent", "Segments, settled", "Calm, saturation"
CASES = {
    "FixedDepth": Case(
        METHODS.FixedDepth(),
        MODELS.Mlp(width=8, depth=3),
        (6,),
        untrained={r"blocks/head/.*\[[01]\]": "only the last exit has a loss"},
        early=False,
    ),
    "ConfidenceExits": Case(
        dataclasses.replace(EXITS, distill=0.5),
        MODELS.Vit(patch=2, width=8, depth=3, heads=2),
        IMAGE,
    ),
    "FrozenTrunk": Case(
        METHODS.FrozenTrunk(exits=EXITS),
        MODELS.VitEncoder("vit", (4, 4), 1, patch=2, width=8, depth=3, heads=2, hidden=16),
        IMAGE,
        untrained={"trunk/.*": "it is frozen"},
    ),
    "StochasticDepth": Case(
        METHODS.StochasticDepth(exits=EXITS), MODELS.Mlp(width=8, depth=3), (6,)
    ),
    "LayerSkip": Case(
        METHODS.LayerSkip(rule="confidence", curriculum="all", shared=5),
        MODELS.CausalLM(width=8, depth=3, heads=2),
        TOKENS,
        (4,),
    ),
    "Balcony": Case(
        METHODS.Balcony(cross_entropy=0.1, shared=5),
        MODELS.Balcony(MODELS.CausalLM(width=8, depth=3, heads=2), exits=(1, 2)),
        TOKENS,
        (4,),
        untrained={"trunk/.*": "it is frozen"},
    ),
    "Calm": Case(METHODS.Calm(shared=5), MODELS.CausalLM(width=8, depth=3, heads=2), TOKENS, (4,)),
    "Calm, saturation": Case(
        METHODS.Calm("saturation", decay="clipped", weights="geometric", shared=9),
        MODELS.CausalLM(width=8, depth=3, heads=2),
        TOKENS,
        (4,),
    ),
    "SortedExits": Case(
        METHODS.SortedExits(depths=(2,)),
        MODELS.CausalLM(width=8, depth=3, heads=2),
        TOKENS,
        (4,),
        together=True,
    ),
    "Act": Case(
        METHODS.Act(),
        MODELS.Gru(width=8, steps=3, halting="accumulated", halt_bias=-1.0),
        (6,),
    ),
    "PonderNet": Case(METHODS.PonderNet(), MODELS.Gru(width=8, steps=3), (6,)),
    "DeepThinking": Case(
        METHODS.DeepThinking(most=3, alpha=0.5),
        MODELS.DeepThinking(width=8, steps=4, blocks=1),
        (6, 2),
        (6,),
    ),
    "RecurrentDepth": Case(
        METHODS.RecurrentDepth(mean=2.0, truncate=2),
        MODELS.RecurrentDepth(width=8, heads=2, steps=4, prelude=1, core=1, coda=1),
        TOKENS,
        (4,),
        drawn={"block/core/.*kernel": 1.0},
    ),
    "RecurrentDepth, latent": Case(
        METHODS.RecurrentDepth(mean=2.0, truncate=2, rule="latent", score="exact"),
        MODELS.RecurrentDepth(width=8, heads=2, steps=4, prelude=1, core=1, coda=1),
        TOKENS,
        (4,),
    ),
    "Segments": Case(METHODS.Segments(most=3), RECURSIVE, TOKENS, (4,), FIRST_STATE, HALTING),
    "Segments, settled": Case(
        METHODS.Segments(most=3, rule="settled", loss="stablemax"),
        RECURSIVE,
        TOKENS,
        (4,),
        FIRST_STATE,
    ),
    "Segments, refill": Case(
        METHODS.Segments(most=3, refill=True), RECURSIVE, TOKENS, (4,), FIRST_STATE, HALTING
    ),
    "Ctm": Case(
        METHODS.Ctm(),
        MODELS.Ctm(width=8, ticks=3, memory=2, hidden=2, features=4, heads=1, action=6, out=6),
        (4, 2),
        drawn={"head/logits/kernel": 6.0, "(tick|embed)/.*kernel": 1.0},
    ),
    "Equilibrium": Case(
        METHODS.Equilibrium(jacobian=0.1), MODELS.Equilibrium(patch=2, width=8, steps=4), IMAGE
    ),
    "NeuralOde": Case(
        METHODS.NeuralOde(early=0.2),
        MODELS.NeuralOde(width=8, hidden=8, steps=5, tolerance=1e-3),
        (6,),
        drawn={"block/.*": 0.5},
    ),
    "Raptor": Case(
        METHODS.Raptor(labels=0.5),
        MODELS.BlockRecurrent(counts=(2, 1), patch=2, width=8, heads=2),
        IMAGE,
        untrained={
            r"heads/.*\[[01]\]": "only the last exit has a loss of its own",
            "embed/.*": "the first state is the teacher's",
        },
    ),
}
SETTINGS = {
    name: getattr(METHODS, name)
    for name in METHODS.__all__
    if dataclasses.is_dataclass(getattr(METHODS, name))
}
FIELDS = [(name, f.name) for name, kind in SETTINGS.items() for f in dataclasses.fields(kind)]


def built(case: Case) -> dx.Method:
    if not isinstance(case.method, METHODS.Raptor):
        return case.method.build()
    vit = MODELS.Vit(patch=2, width=8, depth=sum(case.model.counts), heads=2)
    teacher = vit.build(case.inputs, CLASSES)
    params = jax.jit(teacher.init)(jax.random.key(7))
    return case.method.build(teacher, params, case.model.counts)


def source(case: Case, split: str) -> dx.Source:
    """Rows of different sizes, so that they exit at different depths, and random labels."""

    def rows(rng: np.random.Generator, size: int) -> dict:
        labels = rng.integers(CLASSES, size=(size, *case.places)).astype(np.int32)
        if isinstance(case.inputs, dx.Tokens):
            shape = size, case.inputs.length
            inputs = rng.integers(case.inputs.vocabulary, size=shape).astype(np.int32)
        else:
            inputs = rng.normal(size=(size, *case.inputs)).astype(np.float32)
            scale = np.linspace(0.1, 3.0, size, dtype=np.float32)
            inputs *= scale.reshape(-1, *[1] * len(case.inputs))
        return {"inputs": inputs, "labels": labels}

    number = SPLITS.index(split)
    batch = lambda seed, step, size: rows(np.random.default_rng((number, seed, step)), size)
    return dx.Source(split, batch, lambda: rows(np.random.default_rng(number), ROWS), None)


class Trained(NamedTuple):
    """A case after training, and all exits of its calibration split.

    `state` is the state after the last update. `params` are those of `state`, with parameters drawn
    again as the case says; the rows before the first block (`begun`), `outputs`, `points`, `full`
    and `exits`, `[K, M]` of each candidate and row, are of `params`.
    """

    case: Case
    experiment: dx.Experiment
    folder: Path
    metrics: dict[str, float]
    state: Any
    params: Any
    begun: Any
    outputs: Any
    points: Any
    full: Any
    exits: np.ndarray

    @property
    def last(self) -> int:
        return int(np.sum(self.experiment.model.depth)) - 1


def train(experiment, folder):
    mesh = make_mesh(devices=jax.devices()[:1])
    return fit(experiment, TRAINING, folder, SEED, progress=False, mesh=mesh)


def saved(folder: Path, template: Any, step: Any = "newest") -> Any:
    found = restore(folder, template, step)
    assert found is not None
    return found.tree


def drawn_again(params, drawn: Mapping[str, float]):
    """The parameters, those that match a pattern of `drawn` normal with its deviation."""
    rng = np.random.default_rng(SEED)

    def one(path, leaf):
        deviation = [d for pattern, d in drawn.items() if re.fullmatch(pattern, path_name(path))]
        return deviation[0] * rng.normal(size=leaf.shape).astype(leaf.dtype) if deviation else leaf

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n in VARIANTS)) for n in CASES],
)
def trained(request, tmp_path_factory) -> Trained:
    case = CASES[request.param]
    if isinstance(case.method, METHODS.NeuralOde):
        pytest.importorskip("diffrax")
    model, method = case.model.build(case.inputs, CLASSES), built(case)
    splits = (source(case, split) for split in SPLITS)
    experiment = dx.Experiment(model, method, *splits, classes=("a", "b", "c"))
    folder = tmp_path_factory.mktemp("run")
    metrics = train(experiment, folder).metrics
    state = saved(folder, state_shapes(experiment, TRAINING))
    params, examples = drawn_again(state.params, case.drawn), experiment.calibration.examples()

    begun, exits = jax.jit(model.embed)(params, examples["inputs"]), int(np.sum(model.depth))
    outputs = dx.run_all(model.steps(params), begun, model.depth)
    found, _ = fitted(experiment, params, experiment.calibration, ROWS)
    full = method.candidates.full(exits, found)
    answer = method.predict, method.score
    records = records_of(outputs, examples["labels"], method.criterion(full), *answer)
    costs = np.arange(1.0, exits + 1)
    points = with_full_depth(method.candidates.points(records, found, costs), full)
    taken = np.asarray(dx.replay_scores(method.criterion, points, records.scores))
    return Trained(
        case, experiment, folder, metrics, state, params, begun, outputs, points, full, taken
    )


def parts(tree) -> dict[str, np.ndarray]:
    """Leaves by name, those of a stack of blocks block by block."""
    found = {}
    for name, leaf in named_leaves(tree).items():
        if name.startswith(("blocks/", "heads/")):
            found |= {f"{name}[{i}]": np.asarray(one) for i, one in enumerate(leaf)}
        else:
            found[name] = np.asarray(leaf)
    return found


def different(a, b) -> list[str]:
    """Names of the leaves whose bits differ."""
    a, b = named_leaves(a), named_leaves(b)
    assert a.keys() == b.keys()
    return [name for name in a if np.asarray(a[name]).tobytes() != np.asarray(b[name]).tobytes()]


def history(folder: Path) -> list[dict]:
    return [without_clock(record) for record in read_records(folder / "metrics.jsonl")]


def certain(outputs):
    """Outputs of a network that is as sure as can be at every exit, and does not change."""
    extremes = dict(halt_logit=1e3, gate=1.0, accumulated=1.0, residual=0.0, change=0.0)
    outputs = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), outputs)
    if not isinstance(outputs, dict):
        return 1e3 * outputs
    ends = {n: jnp.full_like(outputs[n], v) for n, v in extremes.items() if n in outputs}
    return {**outputs, "logits": 1e3 * outputs["logits"], **ends}


def test_all_methods_are_here():
    assert {type(case.method).__name__ for case in CASES.values()} == set(SETTINGS)
    assert len(SETTINGS) == 17


def test_training_is_finite(trained):
    records = history(trained.folder)
    assert [record["step"] for record in records] == [1, 2, 3] and records[-1] == trained.metrics
    for record in records:
        assert all(value is not None and math.isfinite(value) for value in record.values()), record
        assert record["loss"] > 0 and record["grad_norm"] > 0


def test_a_gradient_reaches_every_parameter_that_is_trained(trained):
    """Adam's first moment is the mean of the gradients: it is 0 where all of them were. Frozen
    parameters have none.
    """
    moments = [leaf for leaf in trained.state.opt_state if hasattr(leaf, "mu")]
    assert len(moments) == 1
    found, frozen = parts(moments[0].mu), trained.experiment.method.frozen
    names = parts(trained.state.params).keys()
    assert names - found.keys() == {name for name in names if is_frozen(frozen, name)}
    largest = {name: np.abs(found[name]).max() if name in found else 0.0 for name in names}
    untrained = {
        pattern: {name for name in largest if re.fullmatch(pattern, name)}
        for pattern in trained.case.untrained
    }
    assert all(untrained.values()), "a pattern matches no parameter"
    assert {name for name in largest if largest[name] == 0} == set().union(*untrained.values())


def test_training_changes_every_parameter_that_is_trained(trained):
    first = saved(trained.folder, trained.state, 1)
    before, after = parts(first.params), parts(trained.state.params)
    untrained = "|".join(trained.case.untrained)
    names = [name for name in before if not re.fullmatch(untrained, name)]
    assert names and all((before[name] != after[name]).any() for name in names)


def test_metrics_are_scalars_with_names_of_their_own(trained):
    batch = trained.experiment.train.batch(SEED, 0, ROWS)
    drawn = batch["inputs"], batch["labels"], jax.random.key(0), jnp.float32(0.0)
    loss = make_loss(trained.experiment, TRAINING)
    value, (metrics, _) = jax.eval_shape(loss, trained.state.params, trained.state.carry, *drawn)
    for name, leaf in {"loss": value, **metrics}.items():
        assert leaf.shape == () and leaf.dtype == jnp.float32, name
        assert name.isidentifier() and not name.startswith(EVAL)
    assert metrics and not set(metrics) & {*OWN_METRICS, *CLOCK, "step"}
    assert {*metrics, *OWN_METRICS, "step"} - {"finite"} == set(trained.metrics)


def test_candidates_contain_full_depth(trained):
    """At full depth no row exits early, even if every exit is certain."""
    criterion, last = trained.experiment.method.criterion, trained.last
    same = [
        (np.asarray(points) == np.asarray(full)).reshape(len(points), -1).all(axis=1)
        for points, full in zip(
            jax.tree.leaves(trained.points), jax.tree.leaves(trained.full), strict=True
        )
    ]
    at_full = np.all(same, axis=0)
    assert at_full.any() and (trained.exits[at_full] == last).all()
    for outputs in (trained.outputs, certain(trained.outputs)):
        assert (np.asarray(dx.replay(criterion(trained.full), outputs).exit) == last).all()
    assert (trained.exits.min() < last) == trained.case.early


def test_a_live_run_equals_the_replay(trained):
    """At the candidate whose rows exit at the most different depths."""
    model, method, params = *trained.experiment[:2], trained.params
    depths = [len(set(exits)) for exits in trained.exits.tolist()]
    middle = int(np.argmax(depths))
    assert (depths[middle] > 1) == (trained.case.early and not trained.case.together)
    criterion = method.criterion(jax.tree.map(lambda a: a[middle], trained.points))
    replayed = dx.replay(criterion, trained.outputs)
    np.testing.assert_array_equal(replayed.exit, trained.exits[middle])
    steps, begun = model.steps(params), trained.begun
    # the first step of an adaptive solver has an error below rounding, which chooses the next one
    tile = ROWS if isinstance(trained.case.method, METHODS.NeuralOde) else 2
    live = dx.run_until(steps, begun, model.depth, criterion, "compacted", tile=tile)
    np.testing.assert_array_equal(live.exit, replayed.exit)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, live.output, replayed.output)
    answers = [np.asarray(method.predict(run.output)) for run in (live, replayed)]
    np.testing.assert_array_equal(*answers)
    assert answers[0].shape == (ROWS, *trained.case.places) and answers[0].dtype == np.int32


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(trained, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(trained.folder, folder)
    for step in (2, 3):
        shutil.rmtree(folder / "checkpoints" / f"{step:08}")
    first = saved(folder, trained.state)
    assert int(first.step) == 1 and different(first, trained.state) != []
    resumed = train(trained.experiment, folder)
    assert resumed.step == 3 and different(resumed.params, trained.state.params) == []
    assert different(saved(folder, trained.state), trained.state) == []
    assert history(folder) == history(trained.folder)


@pytest.mark.parametrize("name", SETTINGS)
def test_defaults_are_valid(name):
    assert validate(SETTINGS[name]()) == []


@pytest.mark.parametrize("name", CASES)
def test_a_method_says_whether_it_suits_a_model(name):
    method, model = CASES[name].method, CASES[name].model
    assert validate(method) == []
    if hasattr(method, "suits"):
        assert method.suits(model) == []
        if name == "FrozenTrunk":
            (sentence,) = method.suits(MODELS.Mlp())
            assert sentence.startswith("trunk must name parameters of model, a Mlp")
        else:
            (sentence,) = dataclasses.replace(method, most=99).suits(model)
            assert sentence.startswith("most must")


@pytest.mark.refuses
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_values_out_of_range_are_refused_by_name(name, field):
    default: Any = SETTINGS[name]()
    value: Any = getattr(default, field)
    if dataclasses.is_dataclass(value):
        wrong = [dataclasses.replace(value, **{f.name: "no"}) for f in dataclasses.fields(value)]
    elif isinstance(value, (bool, str)):
        wrong = ["no"]
    else:
        wrong = [-1 if isinstance(value, int) else -1.0, float("nan"), "no"]
    for one in wrong:
        settings = dataclasses.replace(default, **{field: one})
        found = validate(settings)
        assert found and all(sentence.startswith(field) for sentence in found), one
        if name != "Raptor":
            with pytest.raises(ValueError, match=rf"`{name}`: {field}"):
                settings.build()


@pytest.mark.parametrize(
    ("field", "clash"),
    [
        ("damping", {"damping": 0.5}),
        ("damping", {"damping": 1.0, "unrolled": 2}),
        ("tolerance_back", {"tolerance_back": 0.1, "unrolled": 2}),
    ],
)
def test_settings_of_an_equilibrium_that_clash_are_refused_by_name(field, clash):
    (sentence,) = validate(METHODS.Equilibrium(**clash))
    assert sentence.startswith(f"{field} must")
    assert validate(METHODS.Equilibrium(damping=0.5, unrolled=2, tolerance_back=None)) == []
