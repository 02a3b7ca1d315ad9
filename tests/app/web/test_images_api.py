"""The images API: answers as OpenAI's clients read them, the images of the library, limits, keys, and wrong requests."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient
from torch import Tensor

from app.web.image_models import EditedModel, sample_images
from app.web.images_api import MAX_BODY_BYTES, ImagesApi, make_images_app, make_site
from erasure.edits import Edit, apply_edits
from erasure.families.stable_diffusion import StableDiffusion
from eval.generation import encode_png
from tests.command_line import complaint_of

URL = "/v1/images/generations"


@pytest.fixture
def api(pocket_sized_model: StableDiffusion, neon_edit: Edit) -> ImagesApi:
    return ImagesApi(EditedModel(pocket_sized_model, (neon_edit,)))


@pytest.fixture
def client(api: ImagesApi) -> TestClient:
    return client_of(api)


def client_of(api: ImagesApi) -> TestClient:
    return TestClient(make_site(make_images_app(api)))


def ask(client: TestClient, status: int = 200, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"prompt": "a boat, neon style", "steps": 2, **fields})
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def png_of(entry: dict[str, Any]) -> bytes:
    return base64.b64decode(entry["b64_json"])


def test_the_images_are_those_of_the_library(client: TestClient, pocket_sized_model: StableDiffusion, neon_edit: Edit) -> None:
    before = pocket_sized_model.fingerprint()
    erased, base = (ask(client, model=name, n=2, seed=7) for name in ("erased", "base"))
    wanted_base = sample_images(pocket_sized_model, "a boat, neon style", [7, 8], 2, None)
    with apply_edits(pocket_sized_model, neon_edit):
        wanted = sample_images(pocket_sized_model, "a boat, neon style", [7, 8], 2, None)
    assert [png_of(entry) for entry in erased["data"]] == [encode_png(image) for image in wanted]
    assert [png_of(entry) for entry in base["data"]] == [encode_png(image) for image in wanted_base]
    assert not torch.equal(wanted, wanted_base)
    assert [entry["seed"] for entry in erased["data"]] == [7, 8] and erased["model"] == "erased"
    assert erased["size"] == erased["generated_size"] == "64x64" and isinstance(erased["created"], int)
    assert pocket_sized_model.fingerprint() == before  # the edit is on the model only while it generates


def test_the_first_name_is_the_default_and_a_random_seed_is_told(client: TestClient) -> None:
    first, second = ask(client), ask(client)
    assert first["model"] == "erased" and first["data"][0]["seed"] != second["data"][0]["seed"]
    again = ask(client, seed=first["data"][0]["seed"])
    assert png_of(again["data"][0]) == png_of(first["data"][0])
    listed = client.get("/v1/models").json()
    assert [entry["id"] for entry in listed["data"]] == ["erased", "base"] and listed["object"] == "list"


def test_what_clients_send_by_default_is_accepted(client: TestClient) -> None:
    """PyRIT always asks for a size of OpenAI's models, promptfoo for a quality and a response format."""
    answer = ask(client, size="1024x1024", quality="standard", style="vivid", user="x", background="auto", moderation="low", seed=3)
    enlarged, own = Image.open(io.BytesIO(png_of(answer["data"][0]))), Image.open(io.BytesIO(png_of(ask(client, seed=3)["data"][0])))
    assert enlarged.size == (1024, 1024) and answer["generated_size"] == "64x64"
    assert enlarged.resize((64, 64), Image.Resampling.NEAREST).tobytes() == own.tobytes()
    url = ask(client, response_format="url", seed=3)["data"][0]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))).size == (64, 64)


@pytest.mark.parametrize(
    ("fields", "status", "words", "param"),
    [
        ({"prompt": ""}, 400, "prompt: String should have at least 1 character", "prompt"),
        ({"prompt": "x" * 5000}, 400, "at most 4000", "prompt"),
        ({"n": 0}, 400, "greater than or equal to 1", "n"),
        ({"n": 5}, 400, "n must be at most 4, got 5", "n"),
        ({"size": "64"}, 400, "size: String should match pattern", "size"),
        ({"size": "9000x9000"}, 400, "size must be at most 2048x2048, got 9000x9000", "size"),
        ({"seed": -1}, 400, "greater than or equal to 0", "seed"),
        ({"steps": 1000}, 400, "less than or equal to 100", "steps"),
        ({"model": "dall-e-3"}, 404, "unknown model 'dall-e-3'; available: erased, base", "model"),
        ({"stream": True}, 400, "stream: Input should be False", "stream"),
        ({"output_format": "webp"}, 400, "output_format: Input should be 'png'", "output_format"),
        ({"negative_prompt": "x"}, 400, "unknown parameter 'negative_prompt'; available: prompt, model, n", "negative_prompt"),
    ],
)
def test_wrong_requests_say_what_is_allowed(client: TestClient, fields: dict[str, Any], status: int, words: str, param: str) -> None:
    answer = ask(client, status, **fields)["error"]
    assert words in answer["message"] and answer["param"] == param and answer["type"] == "invalid_request_error" and answer["code"]


def test_bodies_that_are_no_requests(client: TestClient) -> None:
    assert client.post(URL, content=b"{").status_code == 400
    assert client.post(URL, content=b"[1]").status_code == 400
    assert client.post(URL, content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.get(URL).status_code == 405


def test_a_key_is_needed_where_there_is_one_and_guesses_become_slow(api: ImagesApi) -> None:
    api.key = "secret"
    client = client_of(api)
    assert ask(client, 401)["error"]["code"] == "invalid_api_key" and client.get("/v1/models").status_code == 401
    client.headers["Authorization"] = "Bearer secret"
    ask(client)
    wrong = {b"Authorization": "Bearer s\u00e9cret".encode("latin-1")}
    codes = [client.get("/v1/models", headers=wrong).status_code for _ in range(8)]
    assert codes[0] == 401 and codes[-1] == 429
    answer = client.get("/v1/models", headers=wrong)
    assert int(answer.headers["retry-after"]) > 1 and answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_requests_are_limited_by_the_minute_and_by_how_many_wait(api: ImagesApi) -> None:
    now = 0.0
    api.clock, api.requests_per_minute, api.waiting_requests = lambda: now, 2, 1
    client = client_of(api)
    ask(client)
    now = 10.0
    ask(client)
    answer = client.post(URL, json={"prompt": "x", "steps": 1})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "51" and "2 requests a minute" in answer.text
    now = 61.0
    ask(client)
    api.waiting, now = 1, 200.0
    assert "1 requests are waiting already" in ask(client, 429)["error"]["message"]
    api.waiting = 0
    ask(client, 404, model="none")  # a refused request has left
    assert api.waiting == 0


def test_a_flagged_image_does_not_leave(pocket_sized_model: StableDiffusion) -> None:
    def check(images: Tensor) -> list[bool]:
        return [False] * (len(images) - 1) + [True]

    client = client_of(ImagesApi(EditedModel(pocket_sized_model, checker=check)))
    answer = ask(client, 400, n=2)
    assert answer["error"]["code"] == "content_filter" and "data" not in answer


def test_wrong_options_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERASURE_API_KEY", raising=False)
    assert "no edit at" in complaint_of(["serve", "pocket", str(tmp_path / "none")], capsys)
    assert "give --key" in complaint_of(["serve", "pocket", "--host", "0.0.0.0"], capsys)
    assert "--images-per-request must be from 1 to 10, got 11" in complaint_of(["serve", "pocket", "--images-per-request", "11"], capsys)
    assert "--requests-per-minute must be from 1" in complaint_of(["serve", "--requests-per-minute", "0"], capsys)
