"""HTML from the templates in app/templates. Every value that a template takes is escaped."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)


def render_html(template: str, /, **values: Any) -> str:
    """Return the text of a template, such as "result", with values in it."""
    return _environment().get_template(f"{template}.html.j2").render(**values)
