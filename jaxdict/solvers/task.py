"""What the rounds of a fit work on: problem, data and start in units of the problem's own size, and a solver with slots."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.encoding.engines import on_engine, on_numba
from jaxdict.encoding.exact import MAX_ROUNDS, MORE_SLOTS
from jaxdict.encoding.lasso import lasso_of
from jaxdict.numerics import unit_rows
from jaxdict.problem import Dictionary, Problem
from jaxdict.solvers.combined import SLOTS, Combined, stages_of, with_plain_search, with_slots
from jaxdict.solvers.spread import is_spread
from jaxdict.solvers.starts import initial_offset, start_dictionary
from jaxdict.units import Units, units_of

# Up to this many atoms all may have a slot.
FEW_ATOMS = 24
# A rough estimate's relative gap, and the steps that it may take.
ROUGH, ROUGH_STEPS = 1e-2, 10_000


class Task(NamedTuple):
    """A problem in the constrained gauge (at unit atoms both agree), data, start and tolerance; units take the answer back."""

    problem: Problem
    X: Float[Array, "samples d"]
    dictionary: Dictionary
    tol: Float[Array, ""]
    solver: Any
    units: Units


def task_of(
    problem: Problem,
    X: Float[Array, "samples d"],
    n_atoms: int,
    key,
    start: str | Dictionary,
    tol,
    solver,
    *,
    sparse: bool = False,
) -> Task:
    """The task; `sparse` where no dense codes may be formed to look at it."""
    units = units_of(problem, X)
    problem = Problem(problem.lam, problem.offset, problem.signed, "constrained", problem.metric, problem.weights)
    problem, X = units.scaled(problem, X)
    if isinstance(start, Dictionary):
        dictionary = _given_start(problem, X, units.scaled_dictionary(start))
    else:
        dictionary = start_dictionary(problem, X, n_atoms, key, start)
    return Task(problem, X, dictionary, tol, _slotted(solver, problem, X, dictionary, sparse), units)


def _given_start(problem: Problem, X: Float[Array, "samples d"], start: Dictionary) -> Dictionary:
    offset = initial_offset(problem, X) if start.offset is None else start.offset
    return Dictionary(unit_rows(start.atoms), offset if problem.offset else jnp.zeros_like(X[0]))


def _slotted(solver, problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, sparse: bool):
    """The solver, by default `Combined`, with slots: its own where it has them, else as many as the start asks for."""
    solver = Combined() if solver is None else solver
    solver = with_plain_search(solver) if is_spread(X) else solver
    if all(stage.solver.slots is not None for stage in stages_of(solver)):
        return solver
    return with_slots(solver, _slots_for(problem, X, dictionary, sparse))


def _slots_for(problem: Problem, X: Float[Array, "samples d"], dictionary: Dictionary, sparse: bool) -> int:
    """Slots a sample for a fit: a power of two, so that like data share programs, half as many again as the fullest code has at
    the start, which a rough estimate tells."""
    plain = dictionary.atoms.shape[0] * (2 if problem.signed else 1)
    if plain <= FEW_ATOMS or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem, X, dictionary))):
        return min(plain, SLOTS)
    if sparse:
        fullest = _fullest_in_slots(problem, dictionary, X, plain)
    else:
        fullest = int(_fullest(problem, dictionary, X, method="numba" if on_numba() else "gradient"))
    return slots_of(fullest, plain)


def slots_of(fullest: int, plain: int) -> int:
    """The power of two that holds half as many again as the fullest code, at least 16, but no more than there are atoms.

    >>> slots_of(11, 100), slots_of(20, 24)
    (16, 24)
    """
    return min(plain, max(16, 1 << (3 * fullest // 2 - 1).bit_length()))


@partial(compiled_in_a_hurry, light=on_numba, static_argnames="method")
def _fullest(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"], *, method: str):
    """Active atoms of the fullest sample, roughly."""

    def solve(engine, lasso):
        return engine.solve(
            lasso, None, jnp.asarray(ROUGH, X.dtype), None, n_slots=1, dense=True, max_rounds=ROUGH_STEPS
        )

    _, Z, _ = on_engine(method, solve, lasso_of(problem, dictionary, X))
    return jnp.max(jnp.sum(Z > 0, axis=1))


def _fullest_in_slots(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"], plain: int) -> int:
    """`_fullest` without dense codes: in as many slots as it takes."""
    n_slots = min(plain, SLOTS)
    fullest, overflow = _fullest_of(problem, dictionary, X, n_slots=n_slots)
    while bool(overflow) and n_slots < plain:
        n_slots = min(plain, MORE_SLOTS * n_slots)
        fullest, overflow = _fullest_of(problem, dictionary, X, n_slots=n_slots)
    return int(fullest)


@partial(compiled_in_a_hurry, light=on_numba, static_argnames="n_slots")
def _fullest_of(problem: Problem, dictionary: Dictionary, X: Float[Array, "samples d"], *, n_slots: int):
    tol = jnp.asarray(ROUGH, X.dtype)
    solve = lambda engine, lasso: engine.solve(  # noqa: E731
        lasso, None, tol, None, n_slots=n_slots, dense=False, max_rounds=MAX_ROUNDS
    )
    slots, _, done = on_engine("auto", solve, lasso_of(problem, dictionary, X))
    return jnp.max(jnp.sum(slots.values > 0, axis=1)), jnp.any(done.overflow)
