"""What stands before the page: login, Host, Origin, uploads. On the real application of a tiny studio, served on a real port."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from gradio_client import Client
from starlette.routing import Mount

from app.web import page
from app.web.access import AccessControl
from app.web.address import listen
from app.web.login_attempts import MAX_ADDRESSES, OVERALL, PER_ADDRESS, LoginAttempts
from app.web.studio import Studio
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from tests import tiny

LOGIN = ("ada", "a long pässword")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One studio with a login and one without; what their addresses and their applications are."""
    found: dict[str, Any] = {}
    studio = Studio(StableDiffusion(tiny.pipeline(), "tiny", "fp32"), tmp_path_factory.mktemp("gate") / "runs")
    for name, login in (("closed", LOGIN), ("open", None)):
        app = page.make_app(page.build_page(studio), login=login)
        found[name] = page.start_server(app, listen("127.0.0.1", 0)).rstrip("/")
        found[f"{name} app"] = app
    yield found


@pytest.fixture(autouse=True)
def nobody_tried_yet(served: dict[str, Any]) -> Clock:
    clock = Clock()
    served["closed app"].attempts = LoginAttempts(clock)
    return clock


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of everything that the application and what is mounted in it answer to."""
    for route in app.routes:
        if isinstance(route, Mount):
            yield from ((method, route.path + path) for method, path in routes(route.app))
        elif hasattr(route, "original_router"):  # FastAPI's wrapper of an included router
            yield from routes(route.original_router)
        for method in getattr(route, "methods", None) or ():
            yield method, re.sub(r"{[^}]*}", "1", route.path)


def test_nothing_but_the_login_answers_without_a_cookie(served: dict[str, Any]) -> None:
    site = served["closed app"].app
    assert isinstance(site, FastAPI)
    found = {*routes(site), *(("GET", path) for path in ("/docs", "/redoc", "/openapi.json", "/metrics", "/gradio_api/mcp/sse", "/x"))}
    assert len(found) > 80
    assert {"/config", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/queue/join", "/theme.css", "/gradio_api/file=1"} <= {
        path for _, path in found
    }
    with httpx.Client(base_url=served["closed"], timeout=60) as client:
        for method, path in sorted(found):
            for accept in ("*/*", "text/html"):
                answer = client.request(method, path, headers={"Accept": accept, "Cookie": "access-token-unsecure-1=x; a/b=1; =; ;;"})
                if path.rstrip("/") == "/login":
                    assert answer.status_code == (401 if method == "POST" else 200) and "Password" in answer.text
                    served["closed app"].attempts = LoginAttempts()
                else:
                    assert answer.status_code in (303, 401, 403), (method, path)
                    assert len(answer.content) < 100, (method, path, answer.text)


def test_the_login_lets_in_and_out(served: dict[str, Any]) -> None:
    with httpx.Client(base_url=served["closed"]) as client:
        form = {"username": LOGIN[0], "password": LOGIN[1]}
        answer = client.post("/login", data=form, headers={"Accept": "text/html,*/*"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie
        assert "Erasure Studio" in client.get("/").text and client.get("/config").status_code == 200
        assert client.get("/logout").status_code == 303
        assert client.get("/config").status_code == 401
    client = Client(served["closed"], auth=LOGIN, verbose=False)
    assert client.predict("a cat", [], 1, 1, 2, 4.0, 1.0, False, api_name="/compare")


@pytest.mark.parametrize(
    "wrong", [("ada", ""), ("", ""), ("ada", "a long pässwor"), ("bob", LOGIN[1]), ("ada\0", LOGIN[1]), ("é" * 999, "x")]
)
def test_a_wrong_login_is_refused(served: dict[str, Any], wrong: tuple[str, str]) -> None:
    answer = httpx.post(f"{served['closed']}/login", data={"username": wrong[0], "password": wrong[1]})
    assert answer.status_code in (401, 413) and "set-cookie" not in answer.headers


def test_wrong_logins_slow_down(served: dict[str, Any], nobody_tried_yet: Clock) -> None:
    right, wrong = ({"username": LOGIN[0], "password": word} for word in (LOGIN[1], "guess"))
    with httpx.Client(base_url=served["closed"]) as client:
        for _ in range(PER_ADDRESS.burst):
            assert client.post("/login", data=wrong).status_code == 401
        answer = client.post("/login", data=right)  # not even looked at, or guessing would cost nothing
        assert answer.status_code == 429 and 0 < int(answer.headers["retry-after"]) <= PER_ADDRESS.refill_seconds + 1
        nobody_tried_yet.now += PER_ADDRESS.refill_seconds
        assert client.post("/login", data=wrong).status_code == 401
        assert client.post("/login", data=right).status_code == 429
        nobody_tried_yet.now += PER_ADDRESS.refill_seconds
        assert client.post("/login", data=right).status_code == 200
        assert client.post("/login", content=b"x" * 100_000).status_code in (413, 429)


def test_many_addresses_are_slow_together_and_are_not_all_remembered() -> None:
    clock = Clock()
    attempts = LoginAttempts(clock)
    for i in range(OVERALL.burst):
        assert attempts.seconds_to_wait(f"10.0.{i // 250}.{i % 250}") == 0
        attempts.record_failure(f"10.0.{i // 250}.{i % 250}")
    assert 0 < attempts.seconds_to_wait("192.168.0.1") <= OVERALL.refill_seconds
    for i in range(3 * MAX_ADDRESSES):
        attempts.record_failure(f"2001:db8:{i:x}::1")
    assert len(attempts.by_address) <= MAX_ADDRESSES
    clock.now += OVERALL.refill_seconds * OVERALL.burst
    assert attempts.seconds_to_wait("192.168.0.1") == 0
    for i in range(PER_ADDRESS.burst):
        attempts.record_failure(f"2001:db9::{i}")
    assert attempts.seconds_to_wait("2001:db9::ffff") > 0, "addresses of one /64 are one"
    assert attempts.seconds_to_wait("not an address") == 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[", "localhost.", "0.0.0.0"])
def test_a_foreign_host_is_refused(served: dict[str, Any], host: str) -> None:
    for name in ("open", "closed"):
        for method in ("GET", "POST", "OPTIONS"):
            answer = httpx.request(method, f"{served[name]}/config", headers={"Host": host, "Access-Control-Request-Method": "POST"})
            assert answer.status_code == 400 and "answers to" in answer.text


def test_the_own_hosts_are_answered(served: dict[str, Any]) -> None:
    for host in ("localhost", "localhost:9999", "LOCALHOST:1", "127.0.0.1:80", "[::1]", "[::1]:7860"):
        assert httpx.get(f"{served['open']}/config", headers={"Host": host}).status_code == 200, host


def test_other_sites_start_nothing(served: dict[str, Any]) -> None:
    """Also where the answer could not be read: a job would be queued all the same."""
    url = f"{served['open']}/gradio_api/call/board"
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "https://"):
        for kind in ("application/json", "text/plain"):
            answer = httpx.post(url, content=b'{"data": []}', headers={"Origin": origin, "Content-Type": kind})
            assert answer.status_code == 403, origin
    assert httpx.post(url, json={"data": []}, headers={"Origin": served["open"]}).status_code == 200
    assert httpx.post(url, json={"data": []}).status_code == 200


def test_no_file_is_taken(served: dict[str, Any]) -> None:
    for path in ("/gradio_api/upload", "/gradio_api/upload/", "/gradio_api/upload?upload_id=1", "//gradio_api/upload"):
        answer = httpx.post(f"{served['open']}{path}", files={"files": ("a.txt", b"x")})
        assert answer.status_code in (403, 404, 405), path
    assert httpx.get(f"{served['open']}/gradio_api/startup-events").status_code == 403


def test_no_component_of_the_page_takes_files(served: dict[str, Any]) -> None:
    """Or refusing uploads would break it."""
    config = httpx.get(f"{served['open']}/config").json()
    asked = {i for dependency in config["dependencies"] for i in dependency["inputs"]}
    kinds = {component["type"] for component in config["components"] if component["id"] in asked}
    assert kinds and not kinds & {
        "file",
        "image",
        "imageslider",
        "gallery",
        "audio",
        "video",
        "uploadbutton",
        "multimodaltextbox",
        "model3d",
    }


def test_a_page_for_others_answers_to_any_name() -> None:
    gate = AccessControl(FastAPI(), (), LOGIN)
    assert gate.refuse({"type": "http", "path": "/", "headers": [(b"host", b"gpu.example"), (b"origin", b"https://x")]}) is None


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"port \d+: Address already in use; give another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen on 203"):
        listen("203.0.113.7", 0)
    with pytest.raises(UserError, match="is not an address of this machine"):
        listen("x" * 5000, 0)
