"""Access to the page: login, Host, Origin, uploads. On the real application of a tiny studio, served on a real port."""

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
from app.web.images_api import ImagesApi
from app.web.login_attempts import MAX_ADDRESSES, OVERALL, PER_ADDRESS, LoginAttempts
from app.web.models import StudioModels
from app.web.studio import Studio
from app.web.studio_images import StudioImages
from erasure.concept import Concept
from erasure.erasing import erase
from erasure.errors import UserError
from erasure.families.stable_diffusion import StableDiffusion
from erasure.methods.esd import ESD
from tests import tiny

LOGIN = ("ada", "a long pässword")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """One studio with a login and one without: their addresses and applications."""
    servers: dict[str, Any] = {}
    models = StudioModels.of(StableDiffusion(tiny.pipeline(), "tiny", "fp32"))
    studio = Studio(models, tmp_path_factory.mktemp("access") / "runs")
    for name, login in (("closed", LOGIN), ("open", None)):
        app = page.make_app(studio, login)
        servers[name] = page.start_server(app, listen("127.0.0.1", 0)).rstrip("/")
        servers[f"{name} app"] = app
    yield servers


@pytest.fixture(autouse=True)
def fresh_attempts(served: dict[str, Any]) -> Clock:
    clock = Clock()
    served["closed app"].attempts = LoginAttempts(clock)
    return clock


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route of the application and of what is mounted in it."""
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
    endpoints = {*routes(site), *(("GET", path) for path in ("/docs", "/redoc", "/openapi.json", "/metrics", "/gradio_api/mcp/sse", "/x"))}
    assert len(endpoints) > 80
    assert {"/config", "/gradio_api/info", "/gradio_api/queue/data", "/gradio_api/queue/join", "/theme.css", "/gradio_api/file=1"} <= {
        path for _, path in endpoints
    }
    with httpx.Client(base_url=served["closed"], timeout=60) as client:
        for method, path in sorted(endpoints):
            for accept in ("*/*", "text/html"):
                response = client.request(method, path, headers={"Accept": accept, "Cookie": "access-token-unsecure-1=x; a/b=1; =; ;;"})
                if path.rstrip("/") == "/login":
                    assert response.status_code == (401 if method == "POST" else 200) and "Password" in response.text
                    served["closed app"].attempts = LoginAttempts()
                else:
                    assert response.status_code in (303, 401, 403), (method, path)
                    assert len(response.content) < 100, (method, path, response.text)


def test_the_login_lets_in_and_out(served: dict[str, Any]) -> None:
    with httpx.Client(base_url=served["closed"]) as client:
        form = {"username": LOGIN[0], "password": LOGIN[1]}
        response = client.post("/login", data=form, headers={"Accept": "text/html,*/*"})
        assert (response.status_code, response.headers["location"]) == (303, "/")
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie
        assert "Erasure Studio" in client.get("/").text and client.get("/config").status_code == 200
        assert client.get("/logout").status_code == 303
        assert client.get("/config").status_code == 401
    client = Client(served["closed"], auth=LOGIN, verbose=False)
    assert client.predict("a cat", [], 1, 1, 2, 4.0, 1.0, "", api_name="/compare")


@pytest.mark.parametrize(
    "wrong", [("ada", ""), ("", ""), ("ada", "a long pässwor"), ("bob", LOGIN[1]), ("ada\0", LOGIN[1]), ("é" * 999, "x")]
)
def test_a_wrong_login_is_refused(served: dict[str, Any], wrong: tuple[str, str]) -> None:
    response = httpx.post(f"{served['closed']}/login", data={"username": wrong[0], "password": wrong[1]})
    assert response.status_code in (401, 413) and "set-cookie" not in response.headers


def test_wrong_logins_slow_down(served: dict[str, Any], fresh_attempts: Clock) -> None:
    right, wrong = ({"username": LOGIN[0], "password": word} for word in (LOGIN[1], "guess"))
    with httpx.Client(base_url=served["closed"]) as client:
        for _ in range(PER_ADDRESS.burst):
            assert client.post("/login", data=wrong).status_code == 401
        response = client.post("/login", data=right)  # not even looked at, or guessing would cost nothing
        assert response.status_code == 429 and 0 < int(response.headers["retry-after"]) <= PER_ADDRESS.refill_seconds + 1
        fresh_attempts.now += PER_ADDRESS.refill_seconds
        assert client.post("/login", data=wrong).status_code == 401
        assert client.post("/login", data=right).status_code == 429
        fresh_attempts.now += PER_ADDRESS.refill_seconds
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
def test_another_host_name_is_refused(served: dict[str, Any], host: str) -> None:
    for name in ("open", "closed"):
        for method in ("GET", "POST", "OPTIONS"):
            response = httpx.request(method, f"{served[name]}/config", headers={"Host": host, "Access-Control-Request-Method": "POST"})
            assert response.status_code == 400 and "answers to" in response.text


def test_names_of_this_machine_are_answered(served: dict[str, Any]) -> None:
    for host in ("localhost", "localhost:9999", "LOCALHOST:1", "127.0.0.1:80", "[::1]", "[::1]:7860"):
        assert httpx.get(f"{served['open']}/config", headers={"Host": host}).status_code == 200, host


def test_other_sites_start_nothing(served: dict[str, Any]) -> None:
    """Also where the response could not be read: a job would be queued all the same."""
    url = f"{served['open']}/gradio_api/call/leaderboard"
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "https://"):
        for kind in ("application/json", "text/plain"):
            response = httpx.post(url, content=b'{"data": []}', headers={"Origin": origin, "Content-Type": kind})
            assert response.status_code == 403, origin
    assert httpx.post(url, json={"data": []}, headers={"Origin": served["open"]}).status_code == 200
    assert httpx.post(url, json={"data": []}).status_code == 200


def test_uploads_are_refused(served: dict[str, Any]) -> None:
    for path in ("/gradio_api/upload", "/gradio_api/upload/", "/gradio_api/upload?upload_id=1", "//gradio_api/upload"):
        response = httpx.post(f"{served['open']}{path}", files={"files": ("a.txt", b"x")})
        assert response.status_code in (403, 404, 405), path
    assert httpx.get(f"{served['open']}/gradio_api/startup-events").status_code == 403


def test_no_component_of_the_page_takes_files(served: dict[str, Any]) -> None:
    """Or refusing uploads would break it."""
    config = httpx.get(f"{served['open']}/config").json()
    input_ids = {i for dependency in config["dependencies"] for i in dependency["inputs"]}
    kinds = {component["type"] for component in config["components"] if component["id"] in input_ids}
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
    access = AccessControl(FastAPI(), (), LOGIN)
    assert access.refuse({"type": "http", "path": "/", "headers": [(b"host", b"gpu.example"), (b"origin", b"https://x")]}) is None


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"port \d+: Address already in use; give another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen on 203"):
        listen("203.0.113.7", 0)
    with pytest.raises(UserError, match="is not an address of this machine"):
        listen("x" * 5000, 0)


def test_the_images_api_of_a_studio_asks_for_its_key_and_not_for_the_login(tmp_path: Path) -> None:
    studio = Studio(StudioModels.of(StableDiffusion(tiny.pipeline(), "tiny", "fp32")), tmp_path / "runs")
    concept = Concept(name="cat", kind="object", prompts=("{}",))
    erase(
        studio.models.get("tiny").model, [concept], ESD(steps=2, batch=2, trajectories=2, trajectory_steps=2), out=tmp_path / "runs" / "cat"
    )
    app = page.make_app(studio, LOGIN, ImagesApi(StudioImages(studio), "a-key"))
    url = page.start_server(app, listen("127.0.0.1", 0)).rstrip("/")
    key, body = {"Authorization": "Bearer a-key"}, {"prompt": "a cat", "seed": 3, "steps": 2}
    assert httpx.post(f"{url}/v1/images/generations", json=body).status_code == 401
    assert [entry["id"] for entry in httpx.get(f"{url}/v1/models", headers=key).json()["data"]] == ["cat (ESD)", "base"]
    images = [
        httpx.post(f"{url}/v1/images/generations", json=body | {"model": name}, headers=key, timeout=120).json()["data"][0]["b64_json"]
        for name in ("cat (ESD)", "base", "base")
    ]
    assert images[0] != images[1] == images[2]
    assert httpx.get(f"{url}/config", headers=key).status_code == 401  # the key opens nothing else
