"""`dynexit serve MODEL`: a server with the completions interface of OpenAI."""

from collections.abc import Sequence

from dynexit.cli.language.options import DRAFT, Devices, decoding_of, language_of
from dynexit.cli.language.options import FLAGS as DECODING
from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError

USAGE = "dynexit serve RUN|FOLDER|FILE.gguf [--port 8000] [--slots 8] [--room 2048] ..."
FLAGS = (
    Flag("host", str, "127.0.0.1", "address to listen at; 0.0.0.0 for all of this machine"),
    Flag("port", int, 8000, "port to listen at; 0 for any free one"),
    Flag("name", str | None, None, "name of the model; by default that of its folder or file"),
    Flag("slots", int, 8, "requests that run at once"),
    Flag("room", int | None, None, "tokens of a request at most; by default the context"),
    Flag("waiting", int, 64, "requests that may wait; further ones are refused with 429"),
    Flag("drain_seconds", float, 60.0, "that requests may take to end after SIGTERM"),
    DRAFT,
    *DECODING,
)


def serve(argv: Sequence[str]) -> int:
    """Serves a model until SIGTERM or Ctrl-C.

    Args:
      argv: the words after `dynexit serve`.

    Returns:
      The exit code, 0.

    Raises:
      SettingsError: invalid options, a model that cannot be read, an address that is in use, or
        missing libraries.
    """
    words, rest = split(argv, USAGE)
    options, devices = parse(rest, "dynexit serve MODEL", FLAGS, Devices())
    if options["drain_seconds"] < 0:
        raise SettingsError(f"--drain-seconds must be at least 0, got {options['drain_seconds']:g}")

    from dynexit.runs.generation.devices import mesh_of
    from dynexit.runs.serving.server import bound, refuse_missing
    from dynexit.runs.serving.server import serve as run

    refuse_missing()
    with bound(options["host"], options["port"]) as listening:
        draft, exits = decoding_of(options)
        mesh = mesh_of(devices.mesh.data, devices.mesh.model)
        language = language_of(words[0], options)

        from dynexit.runs.serving.worker import Worker

        name = options["name"] or language.name
        limits = {field: options[field] for field in ("slots", "room", "waiting")}
        try:
            worker = Worker(language, **limits, draft=draft, exits=exits, mesh=mesh)
            print(f"compiling for {worker.slots} slots of {worker.room} tokens", flush=True)
            worker.start()
        except (TypeError, ValueError) as error:
            raise SettingsError(str(error)) from error
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{name} is served at http://{shown}:{port}/v1", flush=True)
        run(worker, name, listening, options["drain_seconds"])
    return 0
