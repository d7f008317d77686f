"""The routes: A1111's and OpenAI's interfaces and a page, over one planner and one worker."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from string import Template
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from latentgen.cli.add_ons import loras_in_folder
from latentgen.cli.plan import Entry
from latentgen.errors import InputError
from latentgen.images.files import encode_picture, read_picture_text
from latentgen.pipeline import GenerationResult
from latentgen.samplers.registry import SAMPLERS
from latentgen.server import a1111, openai
from latentgen.server.bodies import Body, in_base64, parse_body, save_picture, text_of, uploads
from latentgen.server.failures import Failures
from latentgen.server.guard import Guard
from latentgen.server.jobs import Job, Planner, Worker
from latentgen.server.telling import Teller

MAX_WORDS_BYTES: Final = 2**20
"""Of a request without pictures."""
MAX_BODY_BYTES: Final = 128 * 2**20
"""Of one with them: a picture of as many pixels as are read takes less, in base64."""
LOOKED_FOR_S: Final = 0.5
"""How often a drawing looks whether its client is still there."""

_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
)

Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """What the routes do."""

    def __init__(self, planner: Planner, worker: Worker, teller: Teller) -> None:
        self.planner, self.worker, self.teller = planner, worker, teller
        self.fingerprint = worker.pipeline.fingerprint
        self.title = f"{worker.pipeline.name} [{self.fingerprint}]"
        """The model as A1111 writes it."""
        usual = planner.config.defaults
        multiple_px = planner.config.size_multiple_px
        self._here = a1111.Here(self.title, usual.sampler, multiple_px, usual.width_px, usual.height_px)
        self._planning = asyncio.Semaphore(1)
        """Pictures are read for one request at a time: a large one takes a gigabyte on the way."""

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
        with self.worker.place():
            body = await read_body(request, MAX_WORDS_BYTES)
            asked = await run_in_threadpool(a1111.read_txt2img, body, self._here)
            return await self._answer_a1111(request, a1111.words_of(body), asked)

    async def img2img(self, request: Request) -> Response:
        with self.worker.place(), uploads() as folder:
            body = await read_body(request, MAX_BODY_BYTES)
            async with self._planning:
                asked = await run_in_threadpool(a1111.read_img2img, body, self._here, folder)
            words = a1111.words_of(body)
            del body  # some megabytes, while it waits
            return await self._answer_a1111(request, words, asked)

    async def _answer_a1111(self, request: Request, words: Body, asked: a1111.Asked) -> Response:
        job, results = await self._draw(request, [asked.entry], asked.id)
        return await run_in_threadpool(
            lambda: JSONResponse(a1111.answer(words, asked, job, results, self.title, self.fingerprint))
        )

    async def generations(self, request: Request) -> Response:
        with self.worker.place():
            body = await read_body(request, MAX_WORDS_BYTES)
            entry, kind, as_url = await run_in_threadpool(openai.read_generation, body)
            job, results = await self._draw(request, [entry])
            return await run_in_threadpool(lambda: JSONResponse(openai.answer(results, job, kind, as_url=as_url)))

    async def _draw(
        self, request: Request, entries: Sequence[Entry], id: str | None = None
    ) -> tuple[Job, list[GenerationResult]]:
        """Plan and draw; if the client goes away, its job is stopped."""
        async with self._planning:
            job = await run_in_threadpool(self.planner.plan, entries)
        job.id = id
        started = time.perf_counter()
        drawing = asyncio.ensure_future(self.worker.draw(job))
        try:
            while not drawing.done():
                await asyncio.wait([drawing], timeout=LOOKED_FOR_S)
                if not drawing.done() and await request.is_disconnected():
                    job.stop()
        finally:
            job.stop()
        results = await drawing
        self.teller.drawn(request.url.path, results, time.perf_counter() - started)
        return job, results

    async def progress(self, request: Request) -> Response:
        """Of the job that `id_task` names, or of the one that is drawn now."""
        job, progress, picture = self.worker.find(request.query_params.get("id_task")), None, None
        if job is not None:
            progress = self.worker.progress(job)
            if request.query_params.get("skip_current_image", "").lower() not in ("true", "1"):
                pixels = self.worker.preview(job)
                if pixels is not None:
                    picture = in_base64(await run_in_threadpool(encode_picture, pixels, "PNG", None))
        return JSONResponse(a1111.progress_answer(progress, picture))

    async def interrupt(self, request: Request) -> Response:
        """The job that `id_task` names, or the one that is drawn now."""
        data = await read_bytes(request, MAX_WORDS_BYTES)
        job = self.worker.find(text_of(parse_body(data), "id_task") if data else None)
        if job is not None:
            job.stop()
        return JSONResponse({})

    async def png_info(self, request: Request) -> Response:
        with self.worker.place(), uploads() as folder:
            body = await read_body(request, MAX_BODY_BYTES)
            async with self._planning:
                path = await run_in_threadpool(save_picture, "image", body.get("image"), folder / "image")
                _, _, text = await run_in_threadpool(read_picture_text, path)
        items = {"parameters": text.parameters, "latentgen": text.document, **text.chunks}
        return JSONResponse({"info": text.parameters or "", "items": {k: v for k, v in items.items() if v is not None}})

    async def options(self, request: Request) -> Response:
        if request.method == "POST":
            a1111.check_options(await read_body(request, MAX_WORDS_BYTES), self.title)
            return JSONResponse(None)
        return JSONResponse(a1111.options(self.title))

    async def loras(self, request: Request) -> Response:
        there = await run_in_threadpool(loras_in_folder)
        names = dict.fromkeys([*self.planner.add_ons.loras.given, *reversed(there)])
        return JSONResponse([{"name": name, "alias": name, "path": name, "metadata": {}} for name in names])

    def routes(self) -> list[Route]:
        fixed: dict[str, Any] = {
            "/health": {"status": "ok"},
            "/v1/models": openai.models(self.worker.pipeline.name),
            "/sdapi/v1/samplers": a1111.samplers(),
            "/sdapi/v1/embeddings": a1111.embeddings(self.planner.embeddings),
            "/sdapi/v1/schedulers": a1111.schedulers(),
            "/sdapi/v1/sd-models": a1111.models(self.title, self.fingerprint),
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
) -> ASGIApp:
    """The ASGI application; see `Guard` for who may ask. origins: of other sites' pages that may."""
    guard = Middleware(Guard, only_loopback=only_loopback, api_key=api_key, origins=origins)
    app = Starlette(routes=server.routes(), middleware=[guard], exception_handlers=Failures(server.teller).handlers())
    if not origins:
        return app
    # Outermost, so that a page is told of refusals too.
    return CORSMiddleware(app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])


async def read_bytes(request: Request, limit: int) -> bytes:
    """What a request holds. Raises InputError if it is more than the limit."""
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > limit:
            raise InputError(f"the request holds more than {limit} bytes")
    return bytes(data)


async def read_body(request: Request, limit: int) -> Body:
    """The JSON object in a request. Raises InputError if it is something else or too large."""
    return await run_in_threadpool(parse_body, await read_bytes(request, limit))


def _always(value: Any) -> Handler:
    async def give(request: Request) -> Response:
        return JSONResponse(value)

    return give
