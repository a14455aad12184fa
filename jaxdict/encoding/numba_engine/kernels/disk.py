"""Compiled targets on disk, for the next process: known by the source of all kernels, since a target holds the code of many files."""

import contextlib
import hashlib
import sys
from pathlib import Path

from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc


def sources_of(function) -> str:
    """The digest of all files of code beside a function's own."""
    digest = hashlib.sha256()
    for path in sorted(Path(function.__code__.co_filename).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class _Cache(FunctionCache):
    """Numba's own, which asks for the time and size of one file alone, under a name of our own."""

    def __init__(self, name, function):
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(
            self._cache_path, f"{name}-{sys.version_info.minor}", sources_of(function)
        )

    def _index_key(self, signature, codegen):
        return signature, codegen.magic_tuple()  # the sources say the rest


def c_function(name: str, function) -> CFunc:
    """A function of one address, compiled for C callers; from disk where it is there and a folder for it can be written."""
    function = getattr(function, "py_func", function)
    compiled = CFunc(function, ((types.int64,), types.int64), {}, {"nopython": True})
    # A folder that cannot be written is no reason to fail.
    with contextlib.suppress(RuntimeError):
        compiled._cache = _Cache(name, function)  # pyright: ignore[reportAttributeAccessIssue]
    compiled.compile()
    return compiled
