"""The models that the page offers. Each is loaded when someone chooses it, and leaves memory when another one needs the room."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import torch

from erasure.errors import UserError, unknown_value_error
from erasure.families.base import DiffusionModel
from erasure.loading.loader import load_model
from erasure.loading.model_source import SHIPPED_MODELS
from erasure.loading.weight_files import bytes_in_memory

ROOM = 1.3  # a model needs this many times its weights: what it computes with comes on top


@dataclass(frozen=True)
class StudioModel:
    """A model in memory, and the fingerprint of its weights without edits."""

    model: DiffusionModel
    fingerprint: str

    @property
    def source(self) -> str:
        return self.model.source

    @property
    def is_pocket(self) -> bool:
        """Whether it is one of the shipped models, whose words and judges are known."""
        return self.source in SHIPPED_MODELS


@dataclass
class StudioModels:
    """The models of a studio, by source.

    Attributes:
        sources: what visitors may choose, the first one to begin with.
        load: makes a model from a source.
        loaded: those in memory, the most recently used last.
    """

    sources: tuple[str, ...]
    load: Callable[[str], DiffusionModel] = load_model
    loaded: "OrderedDict[str, StudioModel]" = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, model: DiffusionModel) -> "StudioModels":
        """Return a studio's models with one that is loaded already."""
        return cls((model.source,), loaded=OrderedDict({model.source: StudioModel(model, model.fingerprint())}))

    def get(self, source: str) -> StudioModel:
        """Return a model; load it if it is not in memory.

        Raises:
            UserError: The page does not offer it, it cannot be loaded, or memory is too small for it.
        """
        if source not in self.sources:
            raise unknown_value_error("model", source, self.sources)
        with self.lock:
            if source not in self.loaded:
                self._make_room(source)
                model = self.load(source)
                # computed now: later another thread may have an edit applied
                self.loaded[source] = StudioModel(model, model.fingerprint())
            self.loaded.move_to_end(source)
            return self.loaded[source]

    def is_loaded(self, source: str) -> bool:
        return source in self.loaded

    def _make_room(self, source: str) -> None:
        """Drop the models that were not used for longest until a new one fits.

        Raises:
            UserError: It does not fit even alone.
        """
        needed = bytes_in_memory(source, on_gpu=torch.cuda.is_available())
        if needed is None:
            return  # a hub id whose files are not here; loading says what is wrong
        while self.loaded and free_bytes() < ROOM * needed:
            self.loaded.popitem(last=False)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if free_bytes() < ROOM * needed:
            gib, free = ROOM * needed / 2**30, free_bytes() / 2**30
            raise UserError(f"{source} needs about {gib:.1f} GiB of memory, and {free:.1f} GiB are free. Close what else uses memory.")


def free_bytes() -> int:
    """Return the free memory of the GPU if there is one, otherwise of the machine."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
