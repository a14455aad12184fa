"""Growing: a fit that begins with few atoms and adds more where T10 says that rows want them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.problem import Dictionary, Problem
from jaxdict.solvers.widening import widened, worthwhile_atoms

# Where the largest residual is within so many lam, the point is brought to tol before another atom is looked for: T13 may hold there.
NEAR_GLOBAL = 1.5


class Growing(eqx.Module):
    """Grow to at most `max_atoms`, each width `factor` times the last, then fit by `solver` to the end.

    From `n_atoms` (by default one), or from a Dictionary as start: widths on the way are fitted until the stationarity is `rough`,
    warm-started, new atoms are T10's (`certificates.joint_births`), those that no row uses or that two share are taken away. Ends
    with fewer atoms where a point of fewer is certified optimal over all widths (T13), or where no atom found lowers F. `jaxdict.grow`
    keeps the whole path, and judges it on rows kept aside.

    For `jaxdict.fit` only, and not under jit or vmap: how wide it ends depends on the values. `steps` and `history` are the last width's.

    >>> import jax, jaxdict as jd
    >>> X = jd.synthetic.rays(jax.random.key(0), 80, 3, 4).X
    >>> solver = jd.solvers.Growing(max_atoms=8)
    >>> grown = jd.fit(jd.Problem(lam=0.1, offset=False), X, key=jax.random.key(1), solver=solver, tol=1e-4)
    >>> grown.dictionary.atoms.shape[0], bool(grown.certificate.is_globally_optimal(1e-3))
    (3, True)
    """

    max_atoms: int = eqx.field(static=True)
    factor: float = eqx.field(static=True, default=2.0)
    rough: float = eqx.field(static=True, default=0.05)
    solver: Any = None

    def __check_init__(self):
        if self.max_atoms != int(self.max_atoms) or self.max_atoms < 1:
            raise ValueError(f"max_atoms={self.max_atoms!r} makes no sense; give a whole number from 1")
        if not 1 < self.factor < float("inf"):
            raise ValueError(f"factor={self.factor!r} makes no sense; give a number above 1")
        if not self.rough >= 0:
            raise ValueError(f"rough={self.rough!r} makes no sense; give a number from 0")
        if isinstance(self.solver, Growing):
            raise ValueError("solver is another Growing; give the solver of each width, as Combined()")


def grown(
    fit: Callable,
    growing: Growing,
    problem: Problem,
    X: Float[Array, "samples d"],
    n_atoms: int | None,
    key,
    start,
    tol,
) -> Dictionary:
    """Where the last fit of `Growing` starts; `fit(problem, X, start=..., solver=..., tol=...)` fits the widths on the way."""
    _refuse_traced(problem, X)
    X, tol = jnp.asarray(X), float(tol)
    problem = problem.like(X)
    found = _first(growing, problem, X, n_atoms, key, start)
    options = {"solver": growing.solver, "sparse": True, "allow_wide": True}
    before = 0
    while (width := found.atoms.shape[0]) < growing.max_atoms:
        solution = fit(problem, X, start=found, tol=max(tol, growing.rough), **options)
        if float(solution.certificate.max_residual_ratio) <= NEAR_GLOBAL:
            solution = fit(problem, X, start=solution.dictionary, tol=tol, **options)
        kept = worthwhile_atoms(problem, solution.dictionary, solution.codes, X)
        found = Dictionary(solution.dictionary.atoms[kept], solution.dictionary.offset)
        if bool(solution.certificate.is_globally_optimal(tol)) or np.sum(kept) <= before:
            break
        if not kept.all():
            continue
        wanted = min(growing.max_atoms, max(width + 1, round(growing.factor * width))) - width
        new = widened(problem, found, solution.codes, X, wanted, jax.random.fold_in(key, width))
        if not new.born:
            break
        found, before = new.dictionary, width
    return found


def _first(growing: Growing, problem: Problem, X: Float[Array, "samples d"], n_atoms, key, start) -> Dictionary:
    """Where growth begins, all checks done: a Dictionary that is given, else atoms born of no atoms."""
    if key is None:
        raise ValueError("key is not given; give jax.random.key(seed), so that the same key gives the same result")
    given = isinstance(start, Dictionary)
    if not given and start != "data":
        raise ValueError(
            f"start={start!r} cannot go with Growing, which begins with new atoms or a Dictionary; leave it out"
        )
    first = np.shape(start.atoms)[0] if given else 1 if n_atoms is None else n_atoms
    if given and n_atoms not in (None, first):
        raise ValueError(f"n_atoms={n_atoms} but start has {first} atoms; leave n_atoms out")
    if not 1 <= first <= growing.max_atoms:
        raise ValueError(f"growth cannot begin with {first} atoms; give 1 to max_atoms={growing.max_atoms}")
    return start if given else widened(problem, None, None, X, first, key).dictionary


def _refuse_traced(problem: Problem, X: Float[Array, "samples d"]) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem, X))):
        raise ValueError(
            "solver=Growing(...) chooses the width by the values, which are not known under jit or vmap; call fit outside, "
            "or give another solver"
        )
