"""A written page as a browser would parse it, and the check that it runs and requests nothing."""

from html.parser import HTMLParser

HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'><a href=//evil.example>{{ 7*7 }} url(http://evil.example/x)"
VOID = {"meta", "img", "input", "br", "path", "circle", "rect"}


class Page(HTMLParser):
    """The tags of a page with their attributes in order, and its text by the tag that holds it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.open, self.words = text, [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag in ("path", "circle", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"closed out of order: {tag}"

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data))

    def visible_text(self) -> str:
        return " ".join(" ".join(data for tag, data in self.words if tag != "style").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def assert_harmless(page: Page) -> None:
    """Check that the page has no script and no handler, and that nothing in it would be fetched."""
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "use", "foreignobject", "a"}
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("srcset", "xlink:href", "href", "action", "poster")], tag
        assert (attrs.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert "url(" not in (attrs.get("style") or "")
    style = "".join(data for tag, data in page.words if tag == "style")
    assert "url(" not in style and "@import" not in style and len(page.all("style")) == 1
    policy = next(attrs["content"] or "" for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
