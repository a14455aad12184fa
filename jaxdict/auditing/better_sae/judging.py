"""What fresh rows say of a polished SAE: paired differences with standard errors, of its dictionary and of it as it runs."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.auditing.better_sae.rows import Parts, Seen
from jaxdict.auditing.better_sae.running import CHUNK_ENTRIES, Own, own_codes
from jaxdict.auditing.descending import Search
from jaxdict.auditing.split_rows import rows_by_size
from jaxdict.auditing.steps import squared_errors
from jaxdict.numerics import matmul, unit_rows
from jaxdict.population.comparisons import SHOWN, Comparison
from jaxdict.problem import Dictionary, Problem
from jaxdict.sae.models import SAE
from jaxdict.streaming.sums import chunk_rows, code_tol, solve_chunk

# A better SAE has no more features on than before: up to this share of them, or what their mean may be off by in standard errors.
MORE, UNSURE = 0.01, 2.0
# Rows of a batch whose best codes are searched, and entries (atoms, atoms) of cosines that are held at once.
MOST_IN_BATCH, LEAST_IN_BATCH, COSINES = 512, 32, 2**24


class Best(NamedTuple):
    """What a dictionary is worth with the best codes that are found: by row, and on how many rows each atom is on."""

    values: Float[np.ndarray, " rows"]
    counts: Float[np.ndarray, " atoms"]


class Verdict(NamedTuple):
    """A paired comparison, and both means."""

    gain: Comparison
    before: float
    after: float
    floor: float  # what a mean of this size is rounded by

    @property
    def shown(self) -> bool:
        """Whether the gain is above three standard errors, and above rounding."""
        return float(self.gain.gain) > max(SHOWN * float(self.gain.standard_error), self.floor)

    def words(self) -> str:
        """Both means and the gain, in words."""
        gain, error = float(self.gain.gain), float(self.gain.standard_error)
        told = "shown" if self.shown else "not shown"
        return f"from {self.before:.6g} to {self.after:.6g} (gain {gain:.3g} +- {error:.1g}, {told})"


def verdict(parts: Parts, numbers, before: Float[np.ndarray, " rows"], after: Float[np.ndarray, " rows"], dtype):
    """How much lower values by row are after than before, on rows of these numbers."""
    floor = 64 * float(jnp.finfo(dtype).eps) * float(np.mean(np.abs(before)))
    return Verdict(parts.gain(before - after, numbers), float(np.mean(before)), float(np.mean(after)), floor)


def best_of_problem(problem: Problem, dictionary: Dictionary, rows: Seen) -> Best:
    """F by row with exact codes."""
    K, d = dictionary.atoms.shape
    size, values, counts = chunk_rows(problem, K, d), [], np.zeros(K)
    for at in range(0, len(rows), size):
        x = rows[at : at + size]
        found = solve_chunk(problem, dictionary, x, code_tol(x.dtype))
        values.append(found.values)
        counts += np.bincount(found.codes.indices, minlength=K)
    return Best(np.concatenate(values), counts)


def best_of_size(dictionary: Dictionary, rows: Seen, sizes, search: Search) -> Best:
    """The squared error by row with the best codes found of so many features a row."""
    K = dictionary.atoms.shape[0]
    size = batch_rows(len(rows), K)
    values, counts = [], np.zeros(K)
    for x, at in rows.chunks(size):
        few = np.zeros(size, np.int32)
        few[: at.stop - at.start] = sizes[at]
        codes = search(dictionary, x, few)
        values.append(np.asarray(squared_errors(dictionary, codes, x))[: at.stop - at.start])
        counts += np.bincount(np.asarray(codes.indices)[np.asarray(codes.values) != 0], minlength=K)
    return Best(np.concatenate(values).astype(float), counts)


def batch_rows(n_rows: int, n_atoms: int) -> int:
    """Rows whose best codes are searched at a time."""
    return min(n_rows, max(LEAST_IN_BATCH, min(MOST_IN_BATCH, CHUNK_ENTRIES // n_atoms)))


def searched(parts: Parts, n_atoms: int, l0: float) -> np.ndarray:
    """Which of the rows that judge, by place, have their best codes searched: fewer where a search is dear, evenly spread."""
    n = len(parts.judged)
    return np.unique(np.linspace(0, n - 1, min(n, rows_by_size(n_atoms, l0))).round().astype(int))


def as_they_run(parts: Parts, rows: Seen, before: Own, after: SAE, lam: float | None):
    """The verdict on the SAE as it runs, and the mean number of features on, before and after.

    Where features are what it pays in (no lam), a gain with more of them on is none.
    """
    there = own_codes(after, rows, lam)
    active = float(np.mean(before.active)), float(np.mean(there.active))
    found = verdict(parts, parts.judged, before.values, there.values, rows.dtype)
    rise = parts.gain((there.active - before.active).astype(float), parts.judged)
    if lam is None and float(rise.gain) > max(MORE * active[0], UNSURE * float(rise.standard_error)):
        found = found._replace(floor=np.inf)
    return found, active


def nearest_atoms(
    atoms: Float[Array, "atoms d"], others: Float[Array, "atoms d"]
) -> tuple[Float[np.ndarray, " atoms"], np.ndarray, Float[np.ndarray, " atoms"]]:
    """Each atom's cosine with the same one of others, the nearest one and the cosine with it; no (atoms, atoms) array beyond `COSINES`.

    >>> [part.tolist() for part in nearest_atoms(jnp.eye(2), jnp.eye(2)[::-1])]
    [[0.0, 0.0], [1, 0], [1.0, 1.0]]
    """
    atoms, others = unit_rows(atoms), unit_rows(others)
    size, nearest, cosine = max(1, COSINES // others.shape[0]), [], []
    for at in range(0, atoms.shape[0], size):
        block = matmul(atoms[at : at + size], others.T)
        nearest.append(np.asarray(jnp.argmax(block, axis=1)))
        cosine.append(np.asarray(jnp.max(block, axis=1)))
    return np.asarray(jnp.sum(atoms * others, axis=1)), np.concatenate(nearest), np.concatenate(cosine)
