"""Where training takes its batches from: rows in memory, drawn anew for each step, or rows that stay on disk, in shuffled order."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdict.arrays import as_jax
from jaxdict.sae.trainers.architectures import Architecture
from jaxdict.sae.trainers.steps import START_ROWS, Course, State, one_step, some_steps
from jaxdict.streaming.sources import open_source
from jaxdict.validation import check_data


class InMemory:
    """Rows of an array: a batch is drawn with replacement, by the key of its step."""

    def __init__(self, X, batch_size: int, key):
        self.X, self.key = check_data(X, wide="allow"), key
        (self.n, self.d), self.dtype = self.X.shape, self.X.dtype
        self.size = min(batch_size, self.n)

    def steps(self, architecture: Architecture, state: State, course: Course, first: int, until: int):
        """Steps `first` to `until`, in one program."""
        numbers = jnp.asarray(first), jnp.asarray(until)
        return some_steps(architecture, state, self.key, self.X, course, *numbers, size=self.size)


class OnDisk:
    """Rows of a source: each once an epoch, in an order drawn by the epoch's key, the next batch read while one is worked on."""

    def __init__(self, source, batch_size: int, key):
        draw, self.order = jax.random.split(key)
        self.source = open_source(source, None, 0, draw)
        self.n, self.d = self.source.n, self.source.d
        self.size = min(batch_size, self.n)
        sample: Any = self.source.sample(min(START_ROWS, self.n), draw).rows
        self.X = check_data(sample, name="the source", wide="allow")  # where training starts
        self.dtype = self.X.dtype
        self.coming: Iterator | None = None

    def steps(self, architecture: Architecture, state: State, course: Course, first: int, until: int):
        """Steps `first` to `until`, a batch each."""
        self.coming = self._from(first) if self.coming is None else self.coming
        loss = None
        for at in range(first, until):
            rows = as_jax(next(self.coming), self.dtype)
            state, loss = one_step(architecture, state, rows, course, jnp.asarray(first), jnp.asarray(at))
        return state, loss

    def _from(self, step: int) -> Iterator[np.ndarray]:
        """The batches of step after step, from any one on: the step's number says which epoch and which of its batches."""
        while True:
            epoch, first = divmod(step, self.n // self.size)
            for piece in self.source.batches(jax.random.fold_in(self.order, epoch), first, self.size):
                yield piece.rows
                step += 1


def rows_of(X: Any, batch_size: int, key) -> InMemory | OnDisk:
    """The reader that suits what is given; raises ValueError for what is neither rows nor batches of rows."""
    in_memory = isinstance(X, jax.Array | np.ndarray) and not isinstance(X, np.memmap)
    numbers = isinstance(X, list | tuple) and all(np.ndim(row) == 1 for row in X)
    return InMemory(X, batch_size, key) if in_memory or numbers else OnDisk(X, batch_size, key)
