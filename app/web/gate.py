"""What every request passes before it reaches the page: the right Host and Origin, no uploads, and the login where there is one."""

import hmac
import secrets
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.web.attempts import Attempts

LOGIN_SIZE, SESSIONS = 4096, 1000  # bytes that a login may have; logins that hold at once
CLOSED = {
    **dict.fromkeys(("/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/process_recording"), "this page takes no files."),
    "/gradio_api/startup-events": "the studio has started.",  # a second start would read the queue twice
}
FORM = (Path(__file__).parent.parent / "templates" / "login.html").read_text(encoding="utf-8")


class Gate:
    """ASGI middleware, outermost.

    Args:
        hosts: what the Host header may name, without port; empty: anything. A page on this machine alone is protected by it against
            DNS rebinding: another site whose name suddenly means 127.0.0.1 still sends its own name.
        login: user and password. Without a valid cookie nothing but the login form answers.
    """

    def __init__(
        self, app: ASGIApp, hosts: Sequence[str] = (), login: tuple[str, str] | None = None, attempts: Attempts | None = None
    ) -> None:
        self.app, self.hosts, self.login = app, {host.lower().strip("[]") for host in hosts}, login
        self.attempts = attempts or Attempts()
        self.cookie = f"erasure-studio-{secrets.token_hex(4)}"  # browsers share cookies between the ports of a host
        self.sessions: dict[str, None] = {}  # oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        answer = self.refusal(scope)
        if answer is None and self.login is not None:
            answer = await self.checked(scope, receive)
        if answer is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await answer(scope, receive, send)

    def refusal(self, scope: Scope) -> Response | None:
        """Why a request is refused whoever sends it."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and hostname(host) not in self.hosts:
            return PlainTextResponse(f"this studio answers to {', '.join(sorted(self.hosts))}, not to {hostname(host)!r}.\n", 400)
        origin = headers.get("origin")
        if self.hosts and origin is not None and origin.partition("://")[2].lower() != host.lower():
            return PlainTextResponse("requests from other sites are refused.\n", 403)
        closed = CLOSED.get(scope["path"].rstrip("/"))
        return PlainTextResponse(f"{closed}\n", 403) if closed else None

    async def checked(self, scope: Scope, receive: Receive) -> Response | None:
        """What to answer to somebody who has not logged in; None lets a request through."""
        asked = HTTPConnection(scope)
        path = scope["path"].rstrip("/")
        if path == "/login" and scope["type"] == "http":
            return await self.logged_in(Request(scope, receive)) if scope["method"] == "POST" else form()
        token = asked.cookies.get(self.cookie, "")
        if token in self.sessions:
            if path == "/logout":
                del self.sessions[token]
                return RedirectResponse("/login", 303)
            return None
        if scope.get("method") in ("GET", "HEAD") and "text/html" in asked.headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return JSONResponse({"detail": "log in first"}, 401)

    async def logged_in(self, request: Request) -> Response:
        """The answer to a name and a password: a cookie, or a refusal that comes the later the more often it is tried."""
        address = request.client.host if request.client else ""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LOGIN_SIZE:
                return form("This is not a login.", 413)
        # from here to the count of a wrong one nothing is awaited, so that a hundred requests at once do not get around it
        if wait := self.attempts.wait(address):
            message = f"Too many wrong passwords. Try again in {wait:.0f} s."
            return form(message, 429, {"Retry-After": str(int(wait) + 1)})
        given = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        pairs = zip((given.get("username", [""])[0], given.get("password", [""])[0]), self.login or (), strict=True)
        right = [hmac.compare_digest(mine.encode(), theirs.encode()) for mine, theirs in pairs]  # both, in a time that tells neither
        if not all(right):
            self.attempts.failed(address)
            return form("Wrong user or password.", 401)
        token = secrets.token_urlsafe(32)
        self.sessions[token] = None
        while len(self.sessions) > SESSIONS:
            del self.sessions[next(iter(self.sessions))]
        html = "text/html" in request.headers.get("accept", "")
        answer: Response = RedirectResponse("/", 303) if html else JSONResponse({"success": True})
        # lax: a POST from another site comes without it
        answer.set_cookie(self.cookie, token, httponly=True, samesite="lax", secure=request.url.scheme == "https")
        return answer


def form(message: str = "", status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(FORM.replace("MESSAGE", escape(message)), status, {**(headers or {}), "Cache-Control": "no-store"})


def hostname(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()
