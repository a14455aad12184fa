"""The processes of a `jax.distributed` run: what each takes of rows, and sums that all of them hold to the same digit."""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from jaxdict.storage import one_line


class Processes(NamedTuple):
    """This process, by number, among how many.

    >>> Processes(1, 3).share(10)
    (3, 6)
    """

    index: int = 0
    count: int = 1

    def share(self, n: int) -> tuple[int, int]:
        """First and last of this process's things among n in a row, exclusive; the shares of all are as good as equal."""
        return n * self.index // self.count, n * (self.index + 1) // self.count

    def gathered(self, tree) -> list[Any]:
        """A tree of arrays of every process, in their order; shapes and types must agree. Bytes travel, so every digit does.

        RuntimeError in one line where another process is gone.
        """
        if self.count == 1:
            return [tree]
        leaves, form = jax.tree.flatten(tree)
        arrays = [np.asarray(leaf) for leaf in leaves]
        packed = np.concatenate([np.frombuffer(array.tobytes(), np.uint8) for array in arrays])
        try:
            received = np.asarray(multihost_utils.process_allgather(packed))
        except (ValueError, RuntimeError) as error:  # of the kind that the collectives happen to raise
            lost = (
                f"process {self.index} of {self.count} has lost another one, so the run ends here; start all of them again, and with "
                f"a checkpoint the same call goes on from its last state ({one_line(error)[:160]})"
            )
            # Said at once: where the process is lost that coordinates, JAX ends this one before an exception can be shown.
            logging.getLogger("jaxdict").error(lost)
            raise RuntimeError(lost) from None
        return [jax.tree.unflatten(form, _unpacked(row, arrays)) for row in received]

    def total(self, tree, add: Callable) -> Any:
        """What `add` makes of the trees of all processes, from the first on: the same digits in each."""
        return functools.reduce(add, self.gathered(tree))

    def joined(self, rows: Float[np.ndarray, " own"], counts: list[int]) -> Float[np.ndarray, " samples"]:
        """Numbers of all processes one after the other; `counts` says how many each has."""
        padded = np.zeros(max(counts), rows.dtype)
        padded[: len(rows)] = rows
        parts = self.gathered(padded)
        return np.concatenate([part[:count] for part, count in zip(parts, counts, strict=True)])


ALONE = Processes()


def these_processes() -> Processes:
    """This process among those that `jax.distributed` knows."""
    return Processes(jax.process_index(), jax.process_count())


def _unpacked(packed, like: list[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([array.nbytes for array in like])
    parts = np.split(packed, ends[:-1])
    return [
        np.frombuffer(part.tobytes(), array.dtype).reshape(array.shape) for part, array in zip(parts, like, strict=True)
    ]
