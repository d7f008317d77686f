"""`latentgen serve`: the model stays loaded, and pictures are asked for over HTTP or in a browser."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Callable
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from latentgen.cli import options
from latentgen.cli.add_ons import AddOnOptions, AddOns
from latentgen.cli.console import Console
from latentgen.cli.drawable import read_drawable
from latentgen.cli.embeddings import look_at_embeddings
from latentgen.cli.groups import grouped
from latentgen.cli.model_names import resolve_model
from latentgen.cli.prompt_syntax import Embeddings
from latentgen.errors import InputError, RuntimeFailure

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from latentgen.cli.preview import Decode
    from latentgen.pipeline import TextToImage

SERVER = "Server"
API_KEY_VARIABLE: Final = "LATENTGEN_API_KEY"
_ENDS_WITHIN_S: Final = 5
"""Seconds that answers under way have when the server is told to end; drawing stops at its next step."""


@grouped
def serve(
    *,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", rich_help_panel=SERVER, help="0.0.0.0 is every network of this machine."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, rich_help_panel=SERVER, help="0 is any that is free.")
    ] = 7860,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar=API_KEY_VARIABLE,
            rich_help_panel=SERVER,
            help="Answer only those who send it, as Authorization: Bearer KEY.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            rich_help_panel=SERVER,
            help="Another site's page that may ask, such as http://localhost:3000. May be repeated.",
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option("--max-queue", min=1, max=1000, metavar="N", rich_help_panel=SERVER, help="Requests in line."),
    ] = 16,
    model: options.Model = None,
    embedding: Embeddings = None,
    adding: AddOnOptions,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    fast: options.Fast = True,
    low_memory: options.LowMemory = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json_events: options.Json = False,
) -> None:
    """Keep a model loaded, and draw what is asked for over HTTP: in a page, by A1111's interface, by OpenAI's.

    latentgen serve

    latentgen serve --model sd15 --port 8000 --api-key "$KEY"
    """
    console = Console(quiet, json_events=json_events)
    # Parse
    if api_key is not None and not api_key.strip():
        raise InputError("--api-key is empty", hint="leave it out to answer everybody")
    api_key = None if api_key is None else api_key.strip()
    origins = [parse_origin(each) for each in cors_origin or ()]
    # Resolve: everything that can be wrong is found before torch is imported
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"serving needs {' and '.join(missing)}, not installed here", hint='pip install "latentgen[serve]"'
        )
    folder = resolve_model(model)
    config = read_drawable(folder)
    add_ons = AddOns.find(adding, config)
    embeddings = look_at_embeddings(embedding or (), config)
    with _listen(host, port) as listening:
        # Build
        from latentgen.cli.loading import load_model
        from latentgen.cli.preview import linear_decoder
        from latentgen.server.app import Server, make_app
        from latentgen.server.jobs import Planner, Worker
        from latentgen.server.telling import Teller

        def build() -> tuple[TextToImage, Decode | None]:
            pipeline, load_s = load_model(
                folder, device=device, dtype=dtype, threads=threads, fast=fast, low_memory=low_memory
            )
            if add_ons.vae is not None:
                pipeline.use_vae(add_ons.vae)
            for file in embeddings:
                pipeline.add_embedding(file.path)
            console.note(f"{pipeline.name} on {pipeline.device}, loaded in {load_s:.2f} s; Ctrl-C ends")
            # With --low-memory the autoencoder is not there while the U-Net draws.
            return pipeline, None if low_memory else linear_decoder(pipeline)

        worker = Worker(build, batch_size=batch_size, max_jobs=max_queue)
        planner = Planner(folder, config, add_ons, embeddings, device, dtype)
        only_loopback = is_loopback(host)
        teller = Teller(console)
        app = make_app(Server(planner, worker, teller), only_loopback=only_loopback, api_key=api_key, origins=origins)
        # Run
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{listening.getsockname()[1]}"
        if not only_loopback and api_key is None:
            console.warn(f"whoever reaches {url} can draw with this machine (--api-key KEY, or {API_KEY_VARIABLE})")
        if json_events:
            console.event("serving", url=url, model=worker.pipeline.name)
        else:
            print(url, flush=True)
        try:
            _http_server(app, worker.close).run(sockets=[listening])
        finally:
            teller.close()


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, which no other can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def parse_origin(text: str) -> str:
    """An origin as browsers send it. Raises InputError for anything else, `*` among it."""
    match = re.fullmatch(r"(https?://[^/?#\s*]+)/?", text.lower())
    if match is None:
        raise InputError(f"--cors-origin {text} is not an origin", hint="for instance http://localhost:3000")
    return match[1]


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, before anything is loaded. Raises InputError or RuntimeFailure if it cannot be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"--host {host} is no address of this machine", hint="127.0.0.1 or 0.0.0.0") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # a port that a server has just left may be taken again at once
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # Bound and listening, so that no other can; requests wait until the model is loaded.
        listening.listen()
    except OSError as error:
        listening.close()
        raise RuntimeFailure(
            f"cannot listen on {host} port {port}: {error.strerror}", hint="another --port, or 0 for any"
        ) from None
    return listening


def _http_server(app: ASGIApp, on_end: Callable[[], None]) -> uvicorn.Server:
    """on_end: called when a signal tells the server to end; answers that wait for a picture would keep it."""
    import uvicorn

    class EndingServer(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            on_end()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_ENDS_WITHIN_S,
        server_header=False,
    )
    return EndingServer(config)
