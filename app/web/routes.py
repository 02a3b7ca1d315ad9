"""Addresses beside the page itself: images and downloads of results, and reports of audits as pages of their own."""

from collections.abc import Callable

from fastapi import FastAPI, HTTPException, Response

from app.web import images
from app.web.studio import Studio
from erasure.errors import UserError

NEVER_STORE = {"Cache-Control": "private, no-store"}
REPORT_HEADERS = NEVER_STORE | {"Content-Security-Policy": "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"}


def add_routes(site: FastAPI, studio: Studio) -> None:
    """Add the routes of a studio to its site; names come from lists of the studio and are never joined to a path."""

    @site.get("/studio/results/{id_}/images/{name}.png")
    def result_image(id_: str, name: str) -> Response:
        return answer(lambda: images.to_png(studio.results.get(id_).image(name)), "image/png", {"Cache-Control": "private, max-age=3600"})

    @site.get("/studio/results/{id_}/download.zip")
    def result_download(id_: str) -> Response:
        headers = NEVER_STORE | {"Content-Disposition": 'attachment; filename="comparison.zip"'}
        return answer(lambda: studio.results.get(id_).as_zip(), "application/zip", headers)

    @site.get("/studio/reports/{name:path}")
    def report(name: str) -> Response:
        return answer(lambda: studio.report(name).read_bytes(), "text/html; charset=utf-8", REPORT_HEADERS)


def answer(make: Callable[[], bytes], media_type: str, headers: dict[str, str]) -> Response:
    """Return what a function makes, or code 404 with the reason."""
    try:
        return Response(make(), media_type=media_type, headers=headers)
    except UserError as error:
        raise HTTPException(404, str(error)) from None
