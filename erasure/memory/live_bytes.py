"""Count the bytes of the tensors that are alive while a piece of code runs, on any device, the meta device included."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation makes, forward and backward, until the last tensor on it is gone.

    A meta tensor has no values, but its storage has a size and dies with its last tensor like any other. Code that runs on meta tensors
    therefore shows the peak that it will have on real ones, at any size and without the memory. What a kernel allocates for itself is not
    seen.

    Args:
        existing: tensors that do not count, such as the weights.

    Attributes:
        live: bytes alive now.
        peak: the largest `live` since the start or the last `reset_peak`.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.live = self.peak = 0
        self._storages: dict[int, Any] = {}
        for tensor in existing:
            self._follow(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(value, Tensor):
                self._follow(value)
        return out

    def reset_peak(self) -> None:
        """Start a new peak at what is alive now."""
        self.peak = self.live

    def _follow(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes() if counted else 0
        if key in self._storages:  # a view
            return

        def forget(_: Any) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)
