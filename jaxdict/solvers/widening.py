"""A wider dictionary from a narrower one, and a narrower one without what is worth nothing: what growth is made of."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdict.certificates.joint_births import joint_births
from jaxdict.numerics import unit_rows
from jaxdict.objectives import Moments, moments
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, metric_of, offset_of
from jaxdict.solvers.rescue import WORTHWHILE
from jaxdict.solvers.starts import initial_offset

# Atoms closer than this cosine are one.
SAME_ATOM = 1 - 1e-4


class Widened(NamedTuple):
    """A dictionary with new atoms behind the old ones, and F's exact fall if each row uses the new one that serves it best (T10)."""

    dictionary: Dictionary
    gain: float
    born: int  # how many are new

    @property
    def width(self) -> int:
        """Atoms, old and new."""
        return self.dictionary.atoms.shape[0]


def no_atoms(problem: Problem, X: Float[Array, "samples d"]) -> tuple[Dictionary, SparseCodes]:
    """The point that uses no atom: the best offset for zero codes, and one atom, which stands for none."""
    none = jnp.zeros((X.shape[0], 1), X.dtype)
    atom = jnp.eye(1, X.shape[1], dtype=X.dtype)
    return Dictionary(atom, initial_offset(problem, X)), SparseCodes(none.astype(jnp.int32), none)


def widened(
    problem: Problem,
    dictionary: Dictionary | None,
    codes: Codes | None,
    X: Float[Array, "samples d"],
    count: int,
    key,
    *,
    objective: float | None = None,
) -> Widened:
    """The dictionary with up to `count` new atoms (`joint_births`): fewer where fewer lower F beyond rounding; None for no atoms yet.

    `objective` is F at the point, where it is known.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X = jnp.array([[3.0, 4.0], [6.0, 8.0], [-5.0, 0.0]])
    >>> widened(jd.Problem(lam=1.0, offset=False), None, None, X, 3, jax.random.key(0)).width
    2
    """
    here, codes = no_atoms(problem, X) if dictionary is None or codes is None else (dictionary, codes)
    new = joint_births(problem, here, codes, X, count, key=key)
    objective = float(jnp.asarray(moments(problem, here, codes, X).objective)) if objective is None else objective
    least = max(WORTHWHILE, 8 * float(jnp.finfo(X.dtype).eps)) * objective
    gains = np.asarray(new.gains)
    kept = gains > least
    atoms = np.asarray(new.atoms)[kept]
    old = atoms[:0] if dictionary is None else np.asarray(unit_rows(dictionary.atoms))
    whole = Dictionary(jnp.asarray(np.concatenate([old, atoms])), offset_of(here))
    return Widened(whole, float(np.sum(gains[kept])), len(atoms))


def worthwhile_atoms(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> Bool[np.ndarray, " atoms"]:
    """Which unit atoms are worth keeping: used by some row, and not the same as one that is used more.

    Without atom k, its codes at zero and all else fixed, F rises by at most `E[z_k^2] ||d_k||_m^2 / 2` (T10); below rounding it is worth
    nothing. Of two atoms of cosine .9999 or more the one with the larger mean code stays: its codes take the other's.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> D, Z = jd.Dictionary(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])), jnp.array([[1.0, 2.0, 0.0]])
    >>> worthwhile_atoms(jd.Problem(lam=0.1), D, Z, jnp.array([[3.1, 0.0]])).tolist()
    [False, True, False]
    """
    return worthwhile_of(problem, dictionary, moments(problem, dictionary, codes, X), X)


def worthwhile_of(
    problem: Problem, dictionary: Dictionary, sums: Moments, X: Float[Array, "samples d"]
) -> Bool[np.ndarray, " atoms"]:
    """`worthwhile_atoms` from the point's sums."""
    atoms, mean = np.asarray(dictionary.atoms, float), np.asarray(sums.mean_codes, float)
    metric = np.asarray(metric_of(problem, X), float)
    cost = 0.5 * np.asarray(sums.mean_squares, float) * np.sum(metric * atoms**2, axis=1)
    kept = cost > max(WORTHWHILE, 8 * float(jnp.finfo(X.dtype).eps)) * float(jnp.asarray(sums.objective))
    cosines = atoms @ atoms.T
    if problem.signed:
        cosines = np.abs(cosines)
    for k in np.argsort(-mean, kind="stable"):
        if kept[k]:
            kept &= (cosines[k] < SAME_ATOM) | (np.arange(len(kept)) == k)
    return kept
