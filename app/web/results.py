"""Finished comparisons and sheets in memory, under names that cannot be guessed: the page's images and downloads come from here.

Nothing is written to disk. The oldest results leave when together they take too much.
"""

import io
import secrets
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from app.web import images
from app.web.comparison import CompareRequest, Comparison, Sheet
from erasure.errors import UserError

MAX_BYTES = 256 * 2**20
SIDES = ("before", "after", "difference")


@dataclass(frozen=True)
class Result:
    """What a visitor made: the request, and its comparison or its sheet."""

    id: str
    request: CompareRequest
    content: Comparison | Sheet

    @property
    def size(self) -> int:
        if isinstance(self.content, Comparison):
            return self.content.base.nbytes + self.content.erased.nbytes
        return sum(image.nbytes for row in self.content.images for image in row)

    def image(self, name: str) -> Image.Image:
        """Return one image by its name, such as "0-before" of a comparison or "1-2" (row and column) of a sheet.

        Raises:
            UserError: The result has no image of that name.
        """
        first, _, second = name.partition("-")
        try:
            if isinstance(self.content, Sheet):
                row, column = int(first), int(second)
                return images.to_image(self.content.images[row][column], self.content.is_blurred(row, column))
            i, blurred = int(first), self.content.is_blurred(int(first))
            if second == "difference" and not blurred:
                return images.to_heatmap(self.content.difference(i))
            return images.to_image({"before": self.content.base, "after": self.content.erased}[second][i], blurred)
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(f"this result has no image {name!r}.") from error

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield the name of every image, and what its file is called in a download."""
        if isinstance(self.content, Sheet):
            for row in range(len(self.content.images)):
                yield from ((f"{row}-{column}", f"row-{row + 1}-column-{column + 1}") for column in range(len(self.content.columns)))
        else:
            for i, seed in enumerate(self.content.seeds):
                yield from (
                    (f"{i}-{side}", f"seed-{seed}-{side}") for side in SIDES if side != "difference" or not self.content.is_blurred(i)
                )

    def montage(self) -> Image.Image:
        """Return all images as one: of a comparison before above after, one column a seed; of a sheet its rows and columns."""
        if isinstance(self.content, Sheet):
            cells = [[self.image(f"{r}-{c}") for c in range(len(row))] for r, row in enumerate(self.content.images)]
        else:
            cells = [[self.image(f"{i}-{side}") for i in range(len(self.content.seeds))] for side in ("before", "after")]
        return images.arrange(cells)

    def as_zip(self) -> bytes:
        """Return a zip of every image, of all of them as one image, and of the settings."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("settings.json", self.request.as_json() + "\n")
            archive.writestr("all.png", images.to_png(self.montage()))
            for name, file_name in self.names():
                archive.writestr(f"{file_name}.png", images.to_png(self.image(name)))
        return stream.getvalue()


@dataclass
class Results:
    """The results that the page still knows."""

    by_id: "OrderedDict[str, Result]" = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: CompareRequest, content: Comparison | Sheet) -> Result:
        """Keep a result under a new name."""
        result = Result(secrets.token_urlsafe(16), request, content)
        with self.lock:
            self.by_id[result.id] = result
            while sum(other.size for other in self.by_id.values()) > MAX_BYTES and len(self.by_id) > 1:
                self.by_id.popitem(last=False)
        return result

    def get(self, id_: str) -> Result:
        """Return a result.

        Raises:
            UserError: It has left memory, or never was there.
        """
        with self.lock:
            if id_ not in self.by_id:
                raise UserError("these images have left memory; press Compare again.")
            return self.by_id[id_]

    def known(self, ids: Sequence[str]) -> list[Result]:
        """Return those of some results that are still in memory, in the same order."""
        with self.lock:
            return [self.by_id[id_] for id_ in ids if id_ in self.by_id]
