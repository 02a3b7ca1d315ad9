"""Checks of every request before it reaches the page: Host and Origin headers, closed routes, and the login if there is one."""

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

from app.web.login_attempts import LoginAttempts

MAX_LOGIN_BYTES, MAX_SESSIONS = 4096, 1000  # bytes of a login request; sessions that are valid at once
CLOSED_ROUTES = {
    **dict.fromkeys(("/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/process_recording"), "this page accepts no files."),
    "/gradio_api/startup-events": "the studio has started.",  # a second start would read the queue twice
}
LOGIN_FORM = (Path(__file__).parent.parent / "templates" / "login.html").read_text(encoding="utf-8")


class AccessControl:
    """The outermost ASGI middleware.

    Args:
        hosts: Allowed names in the Host header, without port; empty: any. This protects a page on this machine alone against DNS
            rebinding: another site whose name suddenly resolves to 127.0.0.1 still sends its own name.
        login: User and password. Without a valid cookie only the login form answers.
        attempts: Counter of wrong passwords; default: a new one.
        keyed: Beginnings of paths that ask for a key of their own instead of the login.
        root_path: Where a proxy puts the page.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Sequence[str] = (),
        login: tuple[str, str] | None = None,
        attempts: LoginAttempts | None = None,
        keyed: tuple[str, ...] = (),
        root_path: str = "",
    ) -> None:
        self.app, self.hosts, self.login = app, {host.lower().strip("[]") for host in hosts}, login
        self.attempts, self.keyed, self.root_path = attempts or LoginAttempts(), keyed, root_path
        self.cookie = f"erasure-studio-{secrets.token_hex(4)}"  # browsers share cookies between the ports of a host
        self.sessions: dict[str, None] = {}  # oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        response = self.refuse(scope)
        if response is None and self.login is not None and not scope["path"].startswith(self.keyed):
            response = await self.require_login(scope, receive)
        if response is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await response(scope, receive, send)

    def refuse(self, scope: Scope) -> Response | None:
        """Return the refusal of a request that nobody may send; None lets it pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and hostname_of(host) not in self.hosts:
            return PlainTextResponse(f"this studio answers to {', '.join(sorted(self.hosts))}, not to {hostname_of(host)!r}.\n", 400)
        origin = headers.get("origin")
        if self.hosts and origin is not None and origin.partition("://")[2].lower() != host.lower():
            return PlainTextResponse("requests from other sites are refused.\n", 403)
        reason = CLOSED_ROUTES.get(scope["path"].rstrip("/"))
        return PlainTextResponse(f"{reason}\n", 403) if reason else None

    async def require_login(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the response to somebody who has not logged in; None lets the request pass."""
        connection = HTTPConnection(scope)
        path = scope["path"].rstrip("/")
        if path == "/login" and scope["type"] == "http":
            return await self.handle_login(Request(scope, receive)) if scope["method"] == "POST" else login_page()
        token = connection.cookies.get(self.cookie, "")
        if token in self.sessions:
            if path == "/logout":
                del self.sessions[token]
                return RedirectResponse(f"{self.root_path}/login", 303)
            return None
        if scope.get("method") in ("GET", "HEAD") and "text/html" in connection.headers.get("accept", ""):
            return RedirectResponse(f"{self.root_path}/login", 303)
        return JSONResponse({"detail": "log in first"}, 401)

    async def handle_login(self, request: Request) -> Response:
        """Check a user name and a password: return a cookie, or a refusal that comes later with every attempt."""
        address = request.client.host if request.client else ""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_LOGIN_BYTES:
                return login_page("This is not a login.", 413)
        # no await from here to record_failure, so that parallel requests cannot bypass the limit
        if wait := self.attempts.seconds_to_wait(address):
            message = f"Too many wrong passwords. Try again in {wait:.0f} s."
            return login_page(message, 429, {"Retry-After": str(int(wait) + 1)})
        login_fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
        pairs = zip((login_fields.get("username", [""])[0], login_fields.get("password", [""])[0]), self.login or (), strict=True)
        matches = [hmac.compare_digest(mine.encode(), theirs.encode()) for mine, theirs in pairs]  # compare both, in constant time
        if not all(matches):
            self.attempts.record_failure(address)
            return login_page("Wrong user or password.", 401)
        token = secrets.token_urlsafe(32)
        self.sessions[token] = None
        while len(self.sessions) > MAX_SESSIONS:
            del self.sessions[next(iter(self.sessions))]
        accepts_html = "text/html" in request.headers.get("accept", "")
        response: Response = RedirectResponse(f"{self.root_path}/", 303) if accepts_html else JSONResponse({"success": True})
        # lax: a POST from another site comes without the cookie
        response.set_cookie(self.cookie, token, httponly=True, samesite="lax", secure=request.url.scheme == "https")
        return response


def login_page(message: str = "", status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(LOGIN_FORM.replace("MESSAGE", escape(message)), status, {**(headers or {}), "Cache-Control": "no-store"})


def hostname_of(host: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()
