"""The images endpoint of OpenAI's API over a model and its edits, so that red-team tools can attack an erased model as a service.

`POST /v1/images/generations` answers as https://platform.openai.com/docs/api-reference/images/create says, with `seed`, `steps` and
`guidance` besides; `GET /v1/models` lists the names that `model` takes.
"""

import base64
import hmac
import io
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from app.web.image_models import ImageModels
from app.web.login_attempts import LoginAttempts
from erasure.errors import UserError, to_one_line
from eval.generation import encode_png

MAX_BODY_BYTES, MAX_PROMPT_CHARS, MAX_SIDE = 65_536, 4_000, 2_048
DEFAULT_STEPS, MAX_STEPS = 25, 100
MINUTE = 60.0


class ImageRequest(BaseModel):
    """The body of a request. What OpenAI's models know and this one does not is accepted and changes nothing, as clients send it anyway."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    model: Annotated[str, Field(max_length=200)] = ""  # empty: the first of the list
    n: Annotated[int, Field(ge=1, le=10)] = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,3}x[1-9]\d{0,3})$")] = "auto"  # auto: as generated; otherwise enlarged to it
    response_format: Literal["b64_json", "url"] = "b64_json"  # url: a data: URL, since nothing is stored
    output_format: Literal["png"] = "png"
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None  # of the first image; the others count up. None: a random one
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = DEFAULT_STEPS
    guidance: Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)] | None = None  # None: what suits the model
    stream: Literal[False] | None = None
    background: Literal["auto", "opaque"] | None = None
    quality: Any = None
    style: Any = None
    moderation: Any = None
    user: Any = None


@dataclass
class ImagesApi:
    """The models behind the endpoint and its limits.

    Attributes:
        key: that every request must carry; empty: none.
        images_per_request, requests_per_minute, waiting_requests: what is more gets an answer with code 400 or 429.
    """

    models: ImageModels
    key: str = ""
    images_per_request: int = 4
    requests_per_minute: int = 120
    waiting_requests: int = 16
    clock: Callable[[], float] = time.monotonic
    started: "deque[float]" = field(default_factory=deque)  # times of the requests of the last minute
    waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    attempts: LoginAttempts = field(default_factory=LoginAttempts)

    def check_key(self, header: str, address: str) -> JSONResponse | None:
        """Return the answer to somebody without the key; None lets the request pass."""
        if not self.key:
            return None
        with self.lock:
            if wait := self.attempts.seconds_to_wait(address):
                return error(429, f"too many wrong keys; try again in {wait:.0f} s.", "rate_limit_exceeded", wait)
            if hmac.compare_digest(header.encode(), f"Bearer {self.key}".encode()):
                return None
            self.attempts.record_failure(address)
        return error(401, "the API key is missing or wrong; send it as `Authorization: Bearer KEY`.", "invalid_api_key")

    def enter(self) -> JSONResponse | None:
        """Count a request in; return the answer to one that is too many. One that was let in must `leave`."""
        with self.lock:
            now = self.clock()
            while self.started and now - self.started[0] >= MINUTE:
                self.started.popleft()
            if len(self.started) >= self.requests_per_minute:
                return error(
                    429, f"more than {self.requests_per_minute} requests a minute.", "rate_limit_exceeded", MINUTE - (now - self.started[0])
                )
            if self.waiting >= self.waiting_requests:
                return error(429, f"{self.waiting} requests are waiting already.", "rate_limit_exceeded", 5.0)
            self.started.append(now)
            self.waiting += 1
        return None

    def leave(self) -> None:
        with self.lock:
            self.waiting -= 1

    def generate(self, asked: ImageRequest) -> JSONResponse:
        """Return the images of a request."""
        names = self.models.names
        name = asked.model or names[0]
        if name not in names:
            return error(404, f"unknown model {name!r}; available: {', '.join(names[:20])}.", "model_not_found", param="model")
        if asked.n > self.images_per_request:
            return error(400, f"n must be at most {self.images_per_request}, got {asked.n}.", "invalid_value", param="n")
        side = self.models.side
        width, height = (side, side) if asked.size == "auto" else map(int, asked.size.split("x"))
        if max(width, height) > MAX_SIDE:
            return error(400, f"size must be at most {MAX_SIDE}x{MAX_SIDE}, got {asked.size}.", "invalid_value", param="size")
        first = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        seeds = list(range(first, first + asked.n))
        images = self.models.generate(name, asked.prompt, seeds, asked.steps, asked.guidance)
        if images is None:  # the code by which PyRIT knows a block
            return error(400, "the safety checker refused an image.", "content_filter", kind="image_generation_user_error")
        encoded = [base64.b64encode(to_png(image, width, height)).decode() for image in images]
        key, prefix = ("url", "data:image/png;base64,") if asked.response_format == "url" else ("b64_json", "")
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": [{key: prefix + text, "seed": seed} for text, seed in zip(encoded, seeds, strict=True)],
                "model": name,
                "output_format": "png",
                "size": f"{width}x{height}",
                "generated_size": f"{side}x{side}",
            }
        )


def to_png(image: Tensor, width: int, height: int) -> bytes:
    """Return an image [3, H, W], uint8, as PNG of a size: by whole factors pixel for pixel, otherwise smoothly."""
    _, own_height, own_width = image.shape
    if (own_width, own_height) == (width, height):
        return encode_png(image)
    whole = width % own_width == 0 and height % own_height == 0
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    picture.resize((width, height), Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS).save(file, format="PNG")
    return file.getvalue()


def error(status: int, message: str, code: str, retry_after: float = 0.0, param: str | None = None, kind: str = "") -> JSONResponse:
    """Return an error as OpenAI's clients read it."""
    kind = kind or ("invalid_request_error" if status < 429 else "requests")
    headers = {"Retry-After": str(int(retry_after) + 1)} if status == 429 else {}
    body = {"error": {"message": to_one_line(message), "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers)


def make_images_app(api: ImagesApi) -> FastAPI:
    """Return the endpoint as an application; it goes where `/v1` is."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/models")
    async def list_models(request: Request) -> JSONResponse:
        if refusal := check_key(api, request):
            return refusal
        names = await run_in_threadpool(lambda: api.models.names)
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "erasure-studio"} for name in names]})

    @app.post("/images/generations")
    async def generate(request: Request) -> JSONResponse:
        if refusal := check_key(api, request):
            return refusal
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return error(413, f"a request may have {MAX_BODY_BYTES:,} bytes.", "request_too_large")
        try:
            asked = ImageRequest.model_validate_json(body)
        except ValidationError as invalid:
            return explain_invalid(invalid)
        if refusal := api.enter():
            return refusal
        try:
            return await run_in_threadpool(api.generate, asked)
        except UserError as mistake:
            return error(400, str(mistake), "invalid_value")
        finally:
            api.leave()

    return app


def make_site(images_app: FastAPI) -> FastAPI:
    """Return a site with nothing but the endpoint."""
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    site.mount("/v1", images_app)
    return site


def check_key(api: ImagesApi, request: Request) -> JSONResponse | None:
    return api.check_key(request.headers.get("authorization", ""), request.client.host if request.client else "")


def explain_invalid(invalid: ValidationError) -> JSONResponse:
    """Return the answer to a body that is not a request: the first fault."""
    fault = invalid.errors(include_url=False, include_context=False)[0]
    param = ".".join(map(str, fault["loc"])) or None
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(ImageRequest.model_fields)
        return error(400, f"unknown parameter {param!r}; available: {allowed}.", "unknown_parameter", param=param)
    return error(400, f"{param or 'the body'}: {fault['msg']}.", "invalid_value", param=param)
