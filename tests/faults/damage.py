"""Damaged checkpoints and crafted run folders."""

import functools
import importlib.util
import json
import random
import shutil
import warnings

from faults.command import TOY, Run, bits, counted, finish_training, saved, train, until
from faults.stops import EVALS, STEPS, straight


def _template():
    """The shapes of the toy's state; nothing is computed."""
    from dynexit.training.state import state_shapes

    spec = importlib.util.spec_from_file_location("toy_run", TOY)
    assert spec is not None and spec.loader is not None
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    return state_shapes(toy.build(toy.SMOKE), toy.SMOKE.training)


def flipped(root, count):
    """One bit of one file of the checkpoints: found, or without effect."""
    import jax
    import numpy as np

    from dynexit.training.checkpointing.checkpoints import CheckpointError, named_leaves, restore

    straight(root)
    template, dice = _template(), random.Random(200)
    folder = root / "flips"
    shutil.copytree(root / "straight-1" / "checkpoints", folder / "checkpoints")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)

    def read():
        with warnings.catch_warnings(record=True) as skipped:
            warnings.simplefilter("always")
            try:
                found = restore(folder, template)
            except CheckpointError:
                return "refused"
        leaves = None if found is None else named_leaves(jax.device_get(found.tree))
        return None if found is None else found.step, leaves, len(skipped)

    step, whole, _ = read()
    equal = lambda a, b: all(np.array_equal(a[n], b[n], equal_nan=True) for n in whole)
    effects = {"found": 0, "harmless": 0}

    def case():
        path = dice.choice(files)
        content = path.read_bytes()
        place, bit = dice.randrange(len(content)), 1 << dice.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= bit
        path.write_bytes(flipped)
        found = read()
        path.write_bytes(content)
        if found == "refused" or found[2]:
            effects["found"] += 1
        elif found[0] == step and equal(found[1], whole):
            effects["harmless"] += 1
        else:
            return f"{path.relative_to(folder)}, byte {place}: silent"
        return None

    result = counted("single bits flipped in checkpoints", [case] * count)
    notes = (f"{effects['found']} found, {effects['harmless']} harmless", *result.notes)
    return result._replace(notes=notes)


def _files(step):
    """All files with arrays; some are copies of one another."""
    return [path for path in (step / "arrays").rglob("*") if path.is_file()]


def _change(change):
    """Damages all files with arrays."""

    def damage(step):
        for path in _files(step):
            path.write_bytes(bytes(change(bytearray(path.read_bytes()))))

    return damage


def _flip(content):
    if content:
        content[len(content) // 2] ^= 1
    return content


def _remove(step):
    for path in _files(step):
        path.unlink()


def _other_digest(step):
    path = step / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "step": manifest["step"] + 1}))


def _other_arrays(step):
    before = sorted(step.parent.iterdir())[-2]
    shutil.rmtree(step / "arrays")
    shutil.copytree(before / "arrays", step / "arrays")


WAYS = {
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "an empty manifest": lambda step: (step / "manifest.json").write_text(""),
    "half a manifest": lambda step: (step / "manifest.json").write_text('{"step": 4'),
    "another manifest": _other_digest,
    "truncated files": _change(lambda content: content[: len(content) // 2]),
    "empty files": _change(lambda content: b""),
    "files of zeros": _change(lambda content: len(content)),
    "missing files": _remove,
    "flipped bits": _change(_flip),
    "no arrays": lambda step: shutil.rmtree(step / "arrays"),
    "arrays of the step before": _other_arrays,
}


def damaged(root, ways=tuple(WAYS)):
    """The newest step is damaged: the run resumes from the one before, and says why."""
    wanted = straight(root)

    def case(way):
        folder = root / f"damaged-{way.replace(' ', '-')}"
        shutil.copytree(root / "straight-1", folder)
        before = saved(folder)[-2]
        WAYS[way](folder / "checkpoints" / f"{STEPS:08d}")
        run = train(folder, *EVALS)
        until(lambda: "goes on from" in run.text() or not run.alive)
        if not finish_training([run], folder, STEPS):
            return f"{way}: not resumed: {run.text()[-300:]}"
        said = f"{STEPS:08d} is skipped: " in run.text()
        if not said or f"from the checkpoint of step {before} " not in run.text():
            return f"{way}: not said: {run.text()[-300:]}"
        return None if bits(folder, STEPS) == wanted else f"{way}: other bits"

    cases = [functools.partial(case, way) for way in ways]
    return counted("the newest step is damaged", cases)


LINKS = ("report.json", "report.md", "metrics.jsonl", "start.json", "lock.json", "rows.csv")
LINKS += ("training.png",)
CODE = ("its own experiment file", "a linked experiment file", "modules beside it")


def crafted(root, kinds=(*LINKS, *CODE)):
    """Run folders that try to have code executed, or files elsewhere overwritten."""
    straight(root)

    def case(kind):
        place = root / f"crafted-{kind.replace(' ', '-')}"
        folder, precious, ran = place / "run", place / "precious", place / "ran"
        shutil.copytree(root / "straight-1", folder)
        precious.write_text("precious")
        code = f"open({str(ran)!r}, 'w').close()\n" + TOY.read_text()
        if kind in LINKS:
            (folder / kind).unlink(missing_ok=True)
            (folder / kind).symlink_to(precious)
        elif kind == "modules beside it":
            for name in ("sitecustomize", "jax", "dynexit", "toy_run", "faults"):
                (folder / f"{name}.py").write_text(code)
        else:
            inside = folder / "toy_run.py"
            inside.write_text(code)
            named = inside
            if kind == "a linked experiment file":
                named = place / "link.py"
                named.symlink_to(inside)
            settings = json.loads((folder / "settings.json").read_text())
            written = json.dumps({**settings, "experiment": str(named)})
            (folder / "settings.json").write_text(written)
        for k, words in enumerate((["evaluate", folder], ["train", TOY, "--run", folder])):
            Run(words, folder, place / f"{k}.log", {}).wait()
        if ran.exists():
            return f"{kind}: code was executed"
        return None if precious.read_text() == "precious" else f"{kind}: a file was overwritten"

    return counted("crafted run folders", [functools.partial(case, kind) for kind in kinds])
