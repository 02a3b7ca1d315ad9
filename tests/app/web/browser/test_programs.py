"""The studio as programs and hostile visitors see it: files stay closed, wrong input gets one line, many requests are refused in words."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from tests.app.web.browser.conftest import TIMEOUT_MS, ServedStudio, wait_for_pairs


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/self/environ", "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", str(Path("pyproject.toml").resolve())]
)
def test_files_of_the_machine_stay_closed(studio: ServedStudio, path: str) -> None:
    for route in ("gradio_api/file=", "file=", "gradio_api/file/", "studio/reports/", "studio/results/x/images/"):
        response = httpx.get(f"{studio.url.rstrip('/')}/{route}{path}")
        assert response.status_code in (400, 403, 404, 405), (route, path)


def test_hostile_input_gets_one_line(studio: ServedStudio) -> None:
    client = Client(studio.url, verbose=False)
    for values, complaint in (
        (("x" * 10_000, [], 1, 1, 5, 4, 1), "500"),
        (("a", ["../../etc"], 1, 1, 5, 4, 1), "nknown edit"),
        (("a", [], 1, 99, 5, 4, 1), "99|between"),
        (("a", [], -5, 1, 5, 4, 1), "seed|-5"),
    ):
        with pytest.raises(Exception, match=complaint):
            client.predict(*values, api_name="/compare")
    with pytest.raises(Exception, match="nknown job"):
        client.predict("../../../etc", api_name="/cancel")
    assert {"/compare", "/audit", "/leaderboard", "/cancel", "/resume", "/download"} <= set(
        client.view_api(return_format="dict")["named_endpoints"]
    )


def test_a_hundred_clicks_leave_a_page_that_answers(studio: ServedStudio, page: Any) -> None:
    wait_for_pairs(page, 4)
    client = Client(studio.url, verbose=False)
    submitted = [client.submit("a boat", [], i, 1, 4, 4, 1, api_name="/compare") for i in range(100)]
    finished, refusals = 0, []
    for job in submitted:
        try:
            finished += bool(job.result(timeout=TIMEOUT_MS / 1000))
        except Exception as error:
            refusals.append(f"{type(error).__name__}: {error}")
    assert finished >= 20
    assert [text for text in refusals if "full" not in text.lower()] == [], "every refusal must say that the queue is full"
    page.locator("#prompt textarea").fill("a boat")
    page.locator("#compare").click()
    wait_for_pairs(page, 4, "a boat")
