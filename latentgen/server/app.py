"""The routes: A1111's and OpenAI's interfaces and a page, over one planner and one worker."""

from __future__ import annotations

import asyncio
import html
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from latentgen.cli.console import Console
from latentgen.cli.plan import Entry
from latentgen.errors import InputError, LatentgenError
from latentgen.images.files import encode_picture, read_picture_text
from latentgen.pipeline import GenerationResult
from latentgen.samplers.registry import SAMPLERS
from latentgen.server import a1111, openai
from latentgen.server.bodies import Body, in_base64, parse_body, save_picture
from latentgen.server.failures import on_bug, on_failure, on_refusal
from latentgen.server.guard import Guard
from latentgen.server.jobs import Job, Planner, Worker

MAX_BODY_BYTES: Final = 128 * 2**20
"""A picture of as many pixels as are read takes less, in base64."""
LOOKED_FOR_S: Final = 0.5
"""How often a drawing looks whether its client is still there."""

_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
)

Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """What the routes do."""

    def __init__(self, planner: Planner, worker: Worker, console: Console) -> None:
        self.planner, self.worker, self.console = planner, worker, console
        self.title = f"{worker.pipeline.name} [{worker.pipeline.fingerprint}]"
        """The model as A1111 writes it."""

    async def page(self, request: Request) -> Response:
        defaults = self.planner.config.defaults
        options = "".join(
            f'<option value="{each.name}"{" selected" if each.name == defaults.sampler else ""}>{each.title}</option>'
            for each in SAMPLERS.values()
        )
        text = Template(files("latentgen.server").joinpath("page.html").read_text(encoding="utf-8")).substitute(
            model=html.escape(self.worker.pipeline.name),
            steps=defaults.steps,
            guidance=f"{defaults.guidance:g}",
            width=defaults.width_px,
            height=defaults.height_px,
            multiple=self.planner.config.size_multiple_px,
            samplers=options,
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY, "Referrer-Policy": "no-referrer"})

    async def txt2img(self, request: Request) -> Response:
        body = await read_body(request)
        return await self._answer_a1111(request, body, a1111.read_txt2img(body, self.title))

    async def img2img(self, request: Request) -> Response:
        body = await read_body(request)
        with tempfile.TemporaryDirectory(prefix="latentgen-") as folder:
            asked = await run_in_threadpool(a1111.read_img2img, body, self.title, Path(folder))
            return await self._answer_a1111(request, body, asked)

    async def _answer_a1111(self, request: Request, body: Body, asked: a1111.Asked) -> Response:
        job, results = await self._draw(request, [asked.entry])
        return JSONResponse(await run_in_threadpool(a1111.answer, body, asked, job, results, self.title))

    async def generations(self, request: Request) -> Response:
        entry, kind, as_url = openai.read_generation(await read_body(request))
        job, results = await self._draw(request, [entry])
        return JSONResponse(await run_in_threadpool(openai.answer, results, job, kind, as_url=as_url))

    async def _draw(self, request: Request, entries: Sequence[Entry]) -> tuple[Job, list[GenerationResult]]:
        """Plan and draw; if the client goes away, its job is stopped."""
        job = await run_in_threadpool(self.planner.plan, entries)
        started = time.perf_counter()
        drawing = asyncio.ensure_future(self.worker.draw(job))
        while not drawing.done():
            await asyncio.wait([drawing], timeout=LOOKED_FOR_S)
            if not drawing.done() and await request.is_disconnected():
                job.stop()
        results = await drawing
        self._tell(request, results, time.perf_counter() - started)
        return job, results

    def _tell(self, request: Request, results: Sequence[GenerationResult], seconds: float) -> None:
        seeds = [result.seed for result in results]
        self.console.event("drawn", path=request.url.path, pictures=len(results), seeds=seeds, draw_s=round(seconds, 4))
        if not self.console.json_events:
            plural = "" if len(results) == 1 else "s"
            shown = f", seed {', '.join(map(str, seeds[:4]))}{' …' if len(seeds) > 4 else ''}" if seeds else ""
            self.console.note(f"{request.url.path}: {len(results)} picture{plural} in {seconds:.2f} s{shown}")

    async def progress(self, request: Request) -> Response:
        picture = None
        if request.query_params.get("skip_current_image", "").lower() not in ("true", "1"):
            picture = await run_in_threadpool(self._preview)
        return JSONResponse(a1111.progress_answer(self.worker.progress(), self.worker.waiting, picture))

    def _preview(self) -> str | None:
        pixels = self.worker.preview()
        return None if pixels is None else in_base64(encode_picture(pixels, "PNG", None))

    async def interrupt(self, request: Request) -> Response:
        self.worker.stop()
        return JSONResponse({})

    async def png_info(self, request: Request) -> Response:
        body = await read_body(request)
        with tempfile.TemporaryDirectory(prefix="latentgen-") as folder:
            path = await run_in_threadpool(save_picture, "image", body.get("image"), Path(folder) / "picture")
            _, _, text = await run_in_threadpool(read_picture_text, path)
        items = {"parameters": text.parameters, "latentgen": text.document, **text.chunks}
        return JSONResponse({"info": text.parameters or "", "items": {k: v for k, v in items.items() if v is not None}})

    async def options(self, request: Request) -> Response:
        if request.method == "POST":
            a1111.check_options(await read_body(request), self.title)
            return JSONResponse(None)
        return JSONResponse(a1111.options(self.title))

    async def loras(self, request: Request) -> Response:
        from latentgen.cli.add_ons import loras_folder

        there = {path.stem: path for path in sorted(loras_folder().rglob("*.safetensors"))}
        names = dict.fromkeys([*self.planner.add_ons.loras.given, *there])
        return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in names])

    def routes(self) -> list[Route]:
        fixed: dict[str, Any] = {
            "/health": {"status": "ok"},
            "/v1/models": openai.models(self.worker.pipeline.name),
            "/sdapi/v1/samplers": a1111.samplers(),
            "/sdapi/v1/schedulers": a1111.schedulers(),
            "/sdapi/v1/sd-models": a1111.models(self.title, self.worker.pipeline.fingerprint),
            **{f"/sdapi/v1/{name}": value for name, value in a1111.FIXED.items()},
        }
        return [
            Route("/", self.page),
            Route("/sdapi/v1/txt2img", self.txt2img, methods=["POST"]),
            Route("/sdapi/v1/img2img", self.img2img, methods=["POST"]),
            Route("/sdapi/v1/progress", self.progress),
            Route("/sdapi/v1/interrupt", self.interrupt, methods=["POST"]),
            Route("/sdapi/v1/skip", self.interrupt, methods=["POST"]),
            Route("/sdapi/v1/png-info", self.png_info, methods=["POST"]),
            Route("/sdapi/v1/options", self.options, methods=["GET", "POST"]),
            Route("/sdapi/v1/loras", self.loras),
            Route("/v1/images/generations", self.generations, methods=["POST"]),
            *(Route(path, _always(value)) for path, value in fixed.items()),
        ]


def make_app(
    server: Server, *, only_loopback: bool, api_key: str | None = None, origins: Sequence[str] = ()
) -> Starlette:
    """The ASGI application; see `Guard` for who may ask."""
    guard = Middleware(Guard, only_loopback=only_loopback, api_key=api_key, origins=origins)
    handlers = {LatentgenError: on_failure, HTTPException: on_refusal, Exception: on_bug}
    return Starlette(routes=server.routes(), middleware=[guard], exception_handlers=handlers)


async def read_body(request: Request) -> Body:
    """The JSON object in a request. Raises InputError if it is something else or too large."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise InputError(f"the request holds more than {MAX_BODY_BYTES} bytes")
    return await run_in_threadpool(parse_body, bytes(data))


def _always(value: Any) -> Handler:
    async def give(request: Request) -> Response:
        return JSONResponse(value)

    return give
