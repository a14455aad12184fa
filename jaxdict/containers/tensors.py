"""Named tensors of one file, read on demand and checked: every complaint names the file and the field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdict.storage import listing

# A configuration is a page of text; anything larger is not one.
MAX_CONFIG_BYTES = 2**22


class BadFileError(ValueError):
    """A file that is damaged, unknown or hostile; the message is one line and names the file and the field."""


class Entry(NamedTuple):
    """A tensor that has been described but not read: its shape, its dtype, and how to read it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Tensors:
    """What a weights file holds: tensors by name, and the plain values (strings, numbers) that came with them.

    >>> import numpy as np
    >>> tensors = Tensors("w.npz", {"b": Entry((2,), np.dtype("f4"), lambda: np.ones(2, "f4"))}, container="npz")
    >>> tensors.take("b", (2,))
    array([1., 1.], dtype=float32)
    >>> tensors.take("b", (3,))
    Traceback (most recent call last):
    jaxdict.containers.tensors.BadFileError: w.npz: tensor 'b' has shape (2,), expected (3,)
    """

    def __init__(self, path, entries: dict[str, Entry], values: dict[str, Any] | None = None, container: str = ""):
        self.path = Path(path)
        self.entries = entries
        self.values = values or {}
        self.container = container

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def has(self, *names: str) -> bool:
        """Whether every name is a tensor of this file."""
        return all(name in self.entries for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._entry(name).shape

    def take(self, name: str, shape: tuple[int | None, ...] | None = None, finite: bool = True) -> np.ndarray:
        """A floating point tensor, half precision widened to float32; `None` in `shape` stands for any size.

        Raises ValueError if it is missing, has another shape, is not real, or (with `finite`) holds NaN or infinity.
        """
        entry = self._entry(name)
        if shape is not None and not _fits(entry.shape, shape):
            wanted = tuple("any" if size is None else size for size in shape)
            raise BadFileError(f"{self.path}: tensor {name!r} has shape {entry.shape}, expected {_tuple(wanted)}")
        array = entry.read()
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise BadFileError(f"{self.path}: tensor {name!r} has dtype {array.dtype}, expected real numbers")
        # Half precision is for storage; float32 holds each of its values exactly.
        array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
        if finite and not np.all(np.isfinite(array)):
            bad = int(array.size - np.sum(np.isfinite(array)))
            raise BadFileError(
                f"{self.path}: tensor {name!r} holds {bad} NaN or infinite values; "
                "the file is damaged or training diverged"
            )
        return array

    def scalar(self, name: str) -> float:
        """A tensor of one element, as a Python number."""
        array = self.take(name)
        if array.size != 1:
            raise BadFileError(f"{self.path}: tensor {name!r} has shape {array.shape}, expected one number")
        return float(array.reshape(()))

    def _entry(self, name):
        if name not in self.entries:
            raise BadFileError(f"{self.path}: tensor {name!r} is missing; found {listing(self.entries)}")
        return self.entries[name]


def _fits(shape, wanted):
    return len(shape) == len(wanted) and all(b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _tuple(items):
    return "(" + ", ".join(map(str, items)) + ("," if len(items) == 1 else "") + ")"


class Config:
    """A JSON object on disk whose values are checked as they are taken; an absent file reads as an empty object."""

    def __init__(self, path: Path, values: dict[str, Any], found: bool = True):
        self.path = path
        self.values = values
        self.found = found

    @classmethod
    def read(cls, path: Path, most: int = MAX_CONFIG_BYTES) -> "Config":
        """The JSON object in a file of at most so many bytes. Raises ValueError if it is larger or holds anything else."""
        if not path.is_file():
            return cls(path, {}, found=False)
        if path.stat().st_size > most:
            raise BadFileError(f"{path}: {path.stat().st_size} bytes is too large for a configuration")
        try:
            values = json.loads(path.read_bytes().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadFileError(f"{path}: not valid JSON ({_first_line(error)})") from None
        if not isinstance(values, dict):
            raise BadFileError(f"{path}: holds a {type(values).__name__}, expected an object")
        return cls(path, values)

    @classmethod
    def first(cls, *paths: Path) -> "Config":
        """The first of several files that exists."""
        return cls.read(next((path for path in paths if path.is_file()), paths[0]))

    def section(self, name: str) -> "Config":
        """An object inside this one; empty when it is absent."""
        inner = self.values.get(name)
        if inner is None:
            return Config(self.path, {}, self.found)
        if not isinstance(inner, dict):
            raise BadFileError(f"{self.path}: {name!r} is {_short(inner)}, expected an object")
        return Config(self.path, inner, self.found)

    def text(self, name: str, default: str | None = None) -> str | None:
        """A string, or the default where it is absent or null."""
        return self._typed(name, default, str, "a string")

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return bool(self._typed(name, default, bool, "true or false"))

    def number(self, name: str, default: float | None = None) -> float | None:
        """A finite number, or the default where it is absent or null."""
        value = self._typed(name, default, (int, float), "a number")
        # The bound also keeps whole numbers too long for a float away.
        if value is not None and (isinstance(value, bool) or not abs(value) < 1e300):
            raise BadFileError(f"{self.path}: {name!r} is {_short(value)}, expected a finite number")
        return None if value is None else float(value)

    def count(self, name: str, most: int) -> int:
        """A whole number from 1 to `most`. Raises ValueError if it is absent."""
        value: Any = self.values.get(name)
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
        if not whole or not 1 <= value <= most:
            raise BadFileError(f"{self.path}: {name!r} is {_short(value)}, expected a whole number from 1 to {most}")
        return int(value)

    def _typed(self, name, default, kinds, what):
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, kinds):
            raise BadFileError(f"{self.path}: {name!r} is {_short(value)}, expected {what}")
        return value


def _short(value):
    shown = repr(value)
    return shown if len(shown) <= 48 else shown[:45] + "..."


def _first_line(error):
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
