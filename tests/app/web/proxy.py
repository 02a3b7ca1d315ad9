"""A proxy that puts a site below a path and passes requests on without it, as nginx does with a trailing slash in proxy_pass."""

from collections.abc import AsyncIterator

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

DROPPED = ("transfer-encoding", "content-encoding", "content-length", "connection")


def make_proxy(prefix: str, target: str) -> Starlette:
    """Return the proxy as an application."""
    client = httpx.AsyncClient(base_url=target, timeout=None)

    async def forward(request: Request) -> StreamingResponse | PlainTextResponse:
        path = request.url.path
        if not path.startswith(f"{prefix}/"):
            return PlainTextResponse("not below the prefix", 404)
        query = f"?{request.url.query}" if request.url.query else ""
        sent = client.build_request(
            request.method, path.removeprefix(prefix) + query, headers=request.headers.raw, content=await request.body()
        )
        answer = await client.send(sent, stream=True)
        headers = {name: value for name, value in answer.headers.items() if name not in DROPPED}

        async def body() -> AsyncIterator[bytes]:
            async for chunk in answer.aiter_bytes():
                yield chunk

        return StreamingResponse(body(), answer.status_code, headers, background=BackgroundTask(answer.aclose))

    return Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST", "HEAD"])])
