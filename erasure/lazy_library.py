"""Import a library when something in it is first used, although another library imports it at once."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _LazyLibrary(ModuleType):
    """Stands for a library in sys.modules until an attribute of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            self.__dict__.update(import_module(self.__name__).__dict__)
            return getattr(self, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def import_lazily(name: str) -> None:
    """Let a later `import name` cost nothing until an attribute of the library is used; nothing happens if it is not installed.

    diffusers imports bitsandbytes whenever it is installed, which takes a second, though only 8-bit training needs it.
    """
    if name in sys.modules or (spec := find_spec(name)) is None:
        return
    library = _LazyLibrary(name)
    # these are asked for by code that only looks around; __path__ is left out, so that importing a part of the library loads it first
    library.__spec__, library.__file__ = spec, spec.origin
    sys.modules[name] = library
