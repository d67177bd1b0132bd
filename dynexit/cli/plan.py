"""`dynexit plan FILE`: what training on a mesh needs, before it is paid for."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError, load
from dynexit.runs.planning.mesh import compiled_sizes, sizes_of

USAGE = (
    "dynexit plan FILE [--mesh.data 256] [--mean-depth 2.5 | --depths RUN] [--model.depth 6 ...]"
)
FLAGS = (
    Flag("mean_depth", float | None, None, "mean exit of rows, counted from 1: geometric depths"),
    Flag("depths", str | None, None, "run folder whose recorded depths are used"),
    Flag("storage_gbs", float, 1.0, "GB/s that one host writes to storage"),
    Flag("host_devices", int, 8, "devices on each host"),
    Flag("smoke", bool, False, "the file's SMOKE settings are the defaults"),
    Flag("out", str | None, None, "JSON file to write"),
)


def plan(argv: Sequence[str]) -> int:
    """Compiles the training step for virtual devices of this machine, and prints the plan.

    Raises:
      SettingsError: invalid options, or a mesh that does not fit the batch or the parameters.
    """
    words, rest = split(argv, USAGE)
    if not words:
        print(f"usage: {USAGE}")
        return 0
    file = load(words[0])
    defaults = file.smoke if "--smoke" in rest else file.settings
    options, settings = parse(rest, f"dynexit plan {words[0]}", FLAGS, defaults, file.summary)
    if invalid := _invalid(options):
        raise SettingsError("\n  ".join(invalid))
    sizes = sizes_of(settings.mesh)
    _virtual_devices(compiled_sizes(sizes))
    from dynexit.runs.planning.depth import depth_plan
    from dynexit.runs.planning.lines import in_units
    from dynexit.runs.planning.training import Storage, training_plan

    try:
        experiment = file.build(settings)
        storage = Storage(1e9 * options["storage_gbs"], options["host_devices"])
        histogram, source = _histogram(options, experiment)
        depths = []
        if histogram is not None:
            depths = depth_plan(experiment, settings, histogram, source)
        lines = training_plan(experiment, settings, storage) + depths
    except ValueError as error:
        raise SettingsError(f"{file.path} cannot be planned: {error}") from error
    data, fsdp, model = sizes
    print(f"{file.name} on data {data} x fsdp {fsdp} x model {model}, on each device:\n")
    for line in lines:
        print(f"  {line.what:<40} {in_units(line):>14}   {line.source}")
    if histogram is None:
        print("Occupancy and imbalance need --mean-depth, or --depths with a finished run.")
    if options["out"]:
        content = {"mesh": sizes, "lines": [line._asdict() for line in lines]}
        Path(options["out"]).write_text(json.dumps(content, indent=2) + "\n")
    return 0


def _invalid(options: dict[str, Any]) -> list[str]:
    found = [
        f"--{name.replace('_', '-')} must be above 0, got {options[name]:g}"
        for name in ("storage_gbs", "host_devices")
        if not options[name] > 0
    ]
    if options["mean_depth"] is not None and options["depths"] is not None:
        found.append("--mean-depth and --depths exclude each other")
    return found


def _virtual_devices(sizes: tuple[int, int, int]) -> None:
    """Sets so many virtual CPU devices, if JAX is not loaded yet."""
    if "jax" not in sys.modules:
        count = sizes[0] * sizes[1] * sizes[2]
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
        os.environ["JAX_PLATFORMS"] = "cpu"


def _histogram(options: dict[str, Any], experiment: Any) -> tuple[Any, str]:
    """How often a row takes each exit, and where that is from; None without an option."""
    if options["depths"] is not None:
        path = Path(options["depths"]) / "report.json"
        try:
            found = json.loads(path.read_text())["rows_per_exit"]
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(
                f"--depths {options['depths']} has no report to read: {error}"
            ) from error
        return found, f"depths of {options['depths']}"
    if options["mean_depth"] is None:
        return None, ""
    import jax

    from dynexit.evaluation.recording import exits_of
    from dynexit.runs.planning.depth import with_mean

    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    exits = exits_of(experiment, params)
    return with_mean(options["mean_depth"], exits).tolist(), "geometric depths of the given mean"
