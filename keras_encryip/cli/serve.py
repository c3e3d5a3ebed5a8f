"""`encryip serve`: exported models behind TF Serving's REST protocol, to try with."""

import json
import os
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from keras_encryip.cli.rest_server import Refusal, RestServer
from keras_encryip.cli.shared import check_present, say
from keras_encryip.errors import ArgumentError, instead_of, needing
from keras_encryip.formats.version_folder import ASSETS, GRAPH, version_number, versions_in


def serve_command(
    directory: Annotated[
        Path, typer.Argument(help="A model's folder of versions, e.g. served/digits, or a version.")
    ],
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    name: Annotated[str | None, typer.Option(help="Of the model; default the folder's.")] = None,
) -> None:
    """Answer by TF Serving's REST protocol. To try with, not for production."""
    check_present(directory, "folder")
    folder = directory.resolve()
    if not versions_in(folder):
        raise ArgumentError(
            f"There is no SavedModel in {str(directory)!r}: name a version's folder, such as "
            "served/digits/1, or the folder that holds it."
        )
    if name is None:
        of_a_version = (folder / GRAPH).is_file() and version_number(folder) is not None
        name = folder.parent.name if of_a_version else folder.name
    if re.fullmatch(r"[^/:]+", name) is None:
        raise ArgumentError(f"{name!r} is no name for a model, without / and : — choose a --name.")
    with RestServer(host, port) as server:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        with needing("owner"):
            from keras_encryip.cli.rest_api import answer_rest
            from keras_encryip.cli.served_versions import ServedVersions
        versions = ServedVersions(name, partial(versions_in, folder))
        with instead_of(Refusal, raises=lambda _: ArgumentError("No version can be loaded.")):
            newest, loaded = versions.find(name, None)
        url = f"{server.url}/v1/models/{quote(name, safe='')}"
        numbers = ", ".join(map(str, versions.numbers(name, None)))
        say("For trying out, not for production: anybody who reaches this server may ask it.")
        say(f"Serving {name}, versions {numbers}, at {url}")
        if "serving_default" in loaded.signatures:
            say("Ask the newest, here for zeros:")
            say(f"  {_example(loaded.signatures['serving_default'], url)}")
        if (versions_in(folder)[newest] / ASSETS).is_dir():
            say("Read the answer with a key:")
            say(f"  … | encryip decode {shlex.quote(str(versions_in(folder)[newest]))} KEYBUNDLE")
        say("Ctrl-C ends it.")
        server.serve(partial(answer_rest, versions))


def _example(function: Any, url: str) -> str:
    """A command line that asks for zeros."""
    inputs = []
    for name, spec in function.structured_input_signature[1].items():
        shape = tuple(size or 1 for size in spec.shape.as_list()) if spec.shape.rank else ()
        dtype = "str" if spec.dtype.name == "string" else spec.dtype.name
        inputs.append(f'{json.dumps(name)}: numpy.zeros({shape}, "{dtype}").tolist()')
    code = f'import json, numpy; print(json.dumps({{"inputs": {{{", ".join(inputs)}}}}}))'
    return f"python -c {shlex.quote(code)} | curl -s -d @- {url}:predict"
