"""A dictionary's descent at the same sparsity: codes at each row's own number of features, steps of T20, rows in batches.

Lam has no part in it, and no array is larger than a batch of rows by the atoms, or than the atoms themselves.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.auditing.parting import Source
from jaxdict.auditing.split_rows import Budget
from jaxdict.auditing.steps import best_share, squared_errors, step_over
from jaxdict.certificates.births import codes_alone
from jaxdict.encoding.subsets.search import best_subset
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_norm, unit_rows
from jaxdict.objectives import residual
from jaxdict.population.comparisons import paired
from jaxdict.problem import Dictionary, Problem, SparseCodes, canonical, sparse_codes

# Rows behind a step at most.
WINDOW = 2**14
# Exchanges of a row in a batch; the rows that are compared have as many as they need.
FEW_EXCHANGES = 8
# Atoms are placed by the residuals of so many rows for each.
ROWS_A_BIRTH, LEAST_SURVEY, PLACING_STEPS = 32, 512, 20


class Search(NamedTuple):
    """How codes of a given number of features a row are found."""

    signed: bool
    slots: int

    def __call__(self, dictionary: Dictionary, X: Float[Array, "rows d"], sizes, **options) -> SparseCodes:
        """The codes found, slots of one number so that one program serves all batches."""
        found = best_subset(dictionary, X, sizes, signed=self.signed, slots=self.slots, **options)
        return sparse_codes(found.codes)


class Aside(NamedTuple):
    """Rows kept aside, with codes and squared errors of the last dictionary that gained on them."""

    X: Float[Array, "rows d"]
    sizes: Int[np.ndarray, " rows"]
    codes: SparseCodes
    errors: Float[Array, " rows"]


class Descent(NamedTuple):
    """The last dictionary that gained on rows kept aside, None where none did; the rows it was fitted to, and atoms added."""

    dictionary: Dictionary | None
    rows: int
    added: int = 0


def descended(start: Dictionary, source: Source, search: Search, budget: Budget, *, beside: Dictionary) -> Descent:
    """The best codes of other rows, then T20's step of all atoms at once, again and again until rows kept aside gain no more.

    A step is over at most `WINDOW` rows, each atom's shrunk by its noise (T17) and as long as the rows kept aside say. Kept is what
    gains there over `beside`, the dictionary before atoms of `start` were placed. Unit atoms throughout.
    """
    descent = Descent(None, 0)
    for descent, _ in descending(start, source, search, budget, beside=beside):  # noqa: B007
        pass
    return descent


def descending(
    start: Dictionary, source: Source, search: Search, budget: Budget, *, beside: Dictionary, window: int = WINDOW
) -> Iterator[tuple[Descent, Float[Array, " rows"]]]:
    """`descended` step by step: where it stands, and the squared errors of the rows kept aside; a step is over `window` rows."""
    best = _aside(beside, source, search)
    last = best if start is beside else _looked(start, best, search)
    at, kept, coded, fitted = start, None, 0, 0
    size = source.batch * max(1, int(min(window, budget.rows, len(source.train))) // source.batch)
    rows = _batches(source)
    while budget.allows(coded + size):
        parts = [next(rows) for _ in range(size // source.batch)]
        step = step_over(at, (_coded(at, source, search, part) for part in parts))
        at = canonical(best_share(at, step, last.codes, last.X), last.codes)[0]
        now = _looked(at, last, search)
        coded += size
        if _gains(best, now):
            best, kept, fitted = now, at, coded
        yield Descent(kept, min(fitted or coded, len(source.train))), best.errors
        if not _gains(last, now):
            break
        last = now


def _coded(at: Dictionary, source: Source, search: Search, rows) -> tuple[SparseCodes, Float[Array, "rows d"]]:
    X, sizes = source.read(rows)
    return search(at, X, sizes, max_steps=FEW_EXCHANGES), X


def _batches(source: Source):
    """Rows again and again, each time in another order; what does not fill a batch waits for the next time."""
    epoch = 0
    while True:
        order = source.train if epoch == 0 else np.random.default_rng(epoch).permutation(source.train)
        for first in range(0, len(order) - source.batch + 1, source.batch):
            yield order[first : first + source.batch]
        epoch += 1


def _aside(dictionary: Dictionary, source: Source, search: Search) -> Aside:
    X, sizes = source.read(source.aside)
    codes = search(dictionary, X, sizes)
    return Aside(X, sizes, codes, squared_errors(dictionary, codes, X))


def _looked(dictionary: Dictionary, aside: Aside, search: Search) -> Aside:
    """The rows kept aside at another dictionary."""
    codes = search(dictionary, aside.X, aside.sizes, start=aside.codes)
    return aside._replace(codes=codes, errors=squared_errors(dictionary, codes, aside.X))


def _gains(before: Aside, after: Aside) -> bool:
    """Whether the rows kept aside gained more than the gain's standard error."""
    falls = before.errors - after.errors
    found = paired(falls, jnp.ones_like(falls), None)
    return bool(found.gain > found.standard_error)


def how_many(n_atoms: int, source: Source) -> int:
    """Atoms to add: an eighth of those there are, at most one for every `ROWS_A_BIRTH` rows to fit them to."""
    return max(1, min(n_atoms // 8, len(source.train) // ROWS_A_BIRTH))


def survey(dictionary: Dictionary, source: Source, search: Search, count: int) -> tuple[Float[Array, "rows d"], float]:
    """What the best codes of some rows leave over, enough to place so many atoms, and what a row's weakest feature is worth."""
    wanted = max(LEAST_SURVEY, ROWS_A_BIRTH * count)
    left, weakest = [], []
    for rows in _batches(source):
        X, sizes = source.read(rows)
        codes = search(dictionary, X, sizes, max_steps=FEW_EXCHANGES)
        left.append(residual(dictionary, codes, X))
        values = np.abs(np.asarray(codes.values))
        least = np.min(np.where(values > 0, values, np.inf), axis=1)
        weakest.append(least[np.isfinite(least)])
        if len(left) * source.batch >= min(wanted, len(source.train) - source.batch + 1):
            break
    known = np.concatenate(weakest)
    return jnp.concatenate(left), float(np.median(known)) if known.size else 0.0


def births(R: Float[Array, "rows d"], count: int, worth: float, *, signed: bool) -> Float[Array, "births d"]:
    """So many atoms for these residuals: T10's iteration `d <- normalise(E[(<d, r> - lam)_+ r])`, each row left to one atom.

    At the same sparsity a new atom is on in a row only where it beats the row's weakest feature, and lam stands for what that is
    worth. The start is residuals drawn with the weight of T10's gain, `(||r|| - lam)_+^2`.
    """
    heights = np.asarray(safe_norm(R), np.float64)
    gain = np.maximum(heights - worth, 0) ** 2
    gain = gain if np.count_nonzero(gain) >= count else heights**2 + np.finfo(np.float64).tiny
    drawn = np.random.default_rng(2).choice(len(gain), count, replace=count > len(gain), p=gain / gain.sum())
    return _placed(Problem(lam=worth, signed=signed).astype(R.dtype), unit_rows(R[np.sort(drawn)]), R)


@on_any_mesh
@jax.jit
def _placed(problem: Problem, atoms: Float[Array, "births d"], R: Float[Array, "rows d"]) -> Float[Array, "births d"]:
    def improve(_, atoms):
        z = codes_alone(problem, atoms, R)
        size = jnp.abs(z)
        mine = (size > 0) & (size == jnp.max(size, axis=1, keepdims=True))
        pulled = matmul(jnp.where(mine, z, 0).T, R)
        return jnp.where(jnp.any(mine, axis=0)[:, None], unit_rows(pulled), atoms)

    return jax.lax.fori_loop(0, PLACING_STEPS, improve, atoms)


def revived(dictionary: Dictionary, dead: np.ndarray, source: Source, search: Search) -> tuple[Dictionary, np.ndarray]:
    """The dictionary with atoms that no row uses moved to where residuals want one, and which were: no more than rows allow."""
    dead = dead[: len(source.train) // ROWS_A_BIRTH]
    if not len(dead):
        return dictionary, dead
    new = _surveyed_births(dictionary, source, search, len(dead))
    return Dictionary(dictionary.atoms.at[dead].set(new), dictionary.offset), dead


def widened(dictionary: Dictionary, source: Source, search: Search) -> tuple[Dictionary, np.ndarray]:
    """The dictionary with more atoms, placed by the residuals of its best codes, and their numbers."""
    K = dictionary.atoms.shape[0]
    count = how_many(K, source)
    new = _surveyed_births(dictionary, source, search, count)
    return Dictionary(jnp.concatenate([dictionary.atoms, new]), dictionary.offset), np.arange(K, K + count)


def _surveyed_births(dictionary: Dictionary, source: Source, search: Search, count: int) -> Float[Array, "births d"]:
    R, worth = survey(dictionary, source, search, count)
    return births(R, count, worth, signed=search.signed)
