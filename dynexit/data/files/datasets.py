"""Data sets from files: splits, and the scale of the inputs from the training split alone."""

import functools
from typing import Any

import numpy as np

from dynexit.core.data import SPLITS, Dataset, Splits
from dynexit.core.labels import check_labels
from dynexit.core.settings import refuse_invalid
from dynexit.data.files.images import read_all
from dynexit.data.files.settings import FromCsv, FromFolders, FromNpz
from dynexit.data.source import from_leaves
from dynexit.data.split import stratified_split


def csv_dataset(settings: FromCsv) -> Dataset:
    """See `dx.data.FromCsv`."""
    refuse_invalid(settings)
    classes, parts = settings.classes, []
    for path, table in zip(settings.paths, settings.tables(), strict=True):
        number = {name: k for k, name in enumerate(classes)}
        for label, line in zip(table.labels, table.lines, strict=True):
            if label not in number:
                raise ValueError(
                    f"{path}, line {line}: {label!r} is no class of {settings.path}; "
                    f"the classes are {', '.join(classes)}"
                )
        values = np.array(table.values, np.float64).reshape(len(table.labels), -1)
        labels = np.array([number[label] for label in table.labels], np.int32)
        ids = {} if table.ids is None else {"id": np.array(table.ids)}
        parts.append({"inputs": values, "labels": labels, **ids})
    return _dataset(settings, parts, classes)


def npz_dataset(settings: FromNpz) -> Dataset:
    """See `dx.data.FromNpz`."""
    refuse_invalid(settings)
    classes, parts = settings.classes, settings.arrays()
    for path, part in zip(settings.paths, parts, strict=True):
        check_labels(part["labels"], len(classes), str(path))
        if part["inputs"].shape[1:] != parts[0]["inputs"].shape[1:]:
            raise ValueError(
                f"inputs of {path} must have the shape of those of {settings.path}, "
                f"got {part['inputs'].shape} and {parts[0]['inputs'].shape}"
            )
    return _dataset(settings, parts, classes)


def folders_dataset(settings: FromFolders) -> Dataset:
    """See `dx.data.FromFolders`."""
    from dynexit.data.augment import chain, random_crop, random_flip

    refuse_invalid(settings)
    classes, parts = settings.classes, []
    for path in settings.paths:
        files = settings.files(path)
        parts.append(
            {
                "inputs": read_all([image for _, image in files], settings.grey),
                "labels": np.array([classes.index(kind) for kind, _ in files], np.int32),
                "id": np.array([image.relative_to(path).as_posix() for _, image in files]),
            }
        )
        if parts[-1]["inputs"].shape[1:] != parts[0]["inputs"].shape[1:]:
            raise ValueError(
                f"images of {path} must have the size of those of {settings.path}, "
                f"got {parts[-1]['inputs'].shape[1:]} and {parts[0]['inputs'].shape[1:]}"
            )
    crop = functools.partial(random_crop, padding=settings.shift)
    augment = [*([crop] if settings.shift else []), *([random_flip] if settings.flip else [])]
    return _dataset(settings, parts, classes)._replace(augment=chain(*augment) if augment else None)


def _dataset(
    settings: FromCsv | FromNpz | FromFolders,
    parts: list[dict[str, np.ndarray]],
    classes: tuple[str, ...],
) -> Dataset:
    """Three splits of one part, or one of each; inputs are scaled by their type."""
    if len(parts) == 1:
        whole = parts[0]
        rows = stratified_split(
            _one_label(whole["labels"]), settings.calibration, settings.test, settings.split_seed
        )
        parts = [{name: leaf[part] for name, leaf in whole.items()} for part in rows]
    inputs, prepare = [part["inputs"] for part in parts], None
    if inputs[0].dtype == np.uint8:
        prepare = _scaled_bytes(inputs[0], settings.scale)
    elif inputs[0].dtype.kind == "f":
        mean, std = _statistics(inputs[0]) if settings.scale else (0.0, 1.0)
        inputs = [((each - mean) / std).astype(np.float32) for each in inputs]
    splits = Splits(
        *(
            from_leaves(split, {**part, "inputs": each})
            for split, part, each in zip(SPLITS, parts, inputs, strict=True)
        )
    )
    return Dataset(*splits, settings.inputs, classes, prepare=prepare)


def _one_label(labels: np.ndarray) -> np.ndarray:
    """The class of a row; rows with a label for each place count as one class."""
    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)


def _statistics(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float64 `[columns]`; the latter is 1 where nothing varies."""
    axes = tuple(range(inputs.ndim - 1))
    mean = inputs.mean(axis=axes, dtype=np.float64)
    std = inputs.std(axis=axes, dtype=np.float64)
    return mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1.0), std, 1.0)


def _scaled_bytes(inputs: np.ndarray, scale: bool) -> Any:
    """`prepare` of bytes: divided by 255, then by the statistics of the training split."""
    from dynexit.data.augment import to_float

    if not scale:
        return functools.partial(to_float, maximum=255.0)
    mean, std = _statistics(inputs)
    return functools.partial(to_float, maximum=255.0, mean=mean / 255.0, std=std / 255.0)
