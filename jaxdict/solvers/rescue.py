"""What first-order steps cannot do: give dead atoms a new life (T10), leave a saddle along negative curvature (T4)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.certificates.births import birth, birth_from_residual, codes_alone
from jaxdict.certificates.curvature import curvature
from jaxdict.encoding.exact import problem_slots
from jaxdict.numerics import select, unit_rows
from jaxdict.objectives import residual_of
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, metric_of
from jaxdict.solvers.reduced import Iterate, next_point_and_codes

# A re-birth must lower F by at least this share of it, else a dead atom is left and reported.
WORTHWHILE = 1e-9
# Step sizes tried along an escape direction of unit length, both ways.
ESCAPES = (0.5, 0.1, 0.02, 0.004)


def worthwhile_gain(problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes):
    """The best gain of one more atom where some atom is dead and the gain is worth a re-birth, else zero."""

    def gain(_):
        return birth(problem, point.dictionary, codes, X).gain

    dead = jnp.any(point.mean_codes == 0)
    found = jax.lax.cond(dead, gain, lambda _: jnp.zeros_like(point.objective), None)
    return jnp.where(found > worthwhile(point), found, 0)


def worthwhile(point: Iterate) -> Float[Array, ""]:
    """What a new atom must gain more than."""
    return max(WORTHWHILE, 8 * float(jnp.finfo(point.objective.dtype).eps)) * point.objective


def revive(problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes):
    """Dead atoms `reborn`, where there are any: the point, its codes solved anew, and the codes, sparse where they were given so."""

    def again(point, codes):
        atoms, _ = reborn(problem, X, point, codes, point.mean_codes == 0, -jnp.inf)
        dictionary = Dictionary(atoms, point.dictionary.offset)
        return next_point_and_codes(problem, X, dictionary, point.slots, sparse=isinstance(codes, SparseCodes))

    return jax.lax.cond(jnp.any(point.mean_codes == 0), again, lambda p, Z: (p, Z), point, codes)


def reborn(problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes, dead, bar):
    """The atoms, each dead one in turn moved to T10's best atom for what the others leave over: with its best codes F only falls.

    And what the first gains, zero where none is dead; it moves alone where that is not above the bar.
    """

    def any_left(carry):
        return jnp.any(carry[2]) & (carry[3] > bar)

    def born(carry):
        atoms, r, dead, gain = carry
        first, k = jnp.isinf(gain), jnp.argmax(dead)
        r = jnp.where(first, residual_of(point.dictionary, codes, X), r)
        new = birth_from_residual(problem, r)
        worth = new.gain > 0
        z = jnp.where(worth, codes_alone(problem, new.atom[None], metric_of(problem, r)[None] * r)[:, 0], 0)
        atoms = atoms.at[k].set(jnp.where(worth, new.atom, atoms[k]))
        return atoms, r - z[:, None] * new.atom, dead.at[k].set(False), jnp.where(first, new.gain, gain)

    # A loop over the dead alone, which under vmap takes no turn where no run has any.
    carry = point.dictionary.atoms, X, dead, jnp.full_like(point.objective, jnp.inf)
    atoms, _, _, gain = jax.lax.while_loop(any_left, born, carry)
    return atoms, jnp.where(jnp.any(dead), gain, 0)


def escape(problem: Problem, X: Float[Array, "samples d"], point: Iterate, codes: Codes):
    """A lower point along the direction of most negative curvature with its codes, and whether there is one.

    At a first-order point whose T4 Hessian has a negative eigenvalue F falls both ways along its eigenvector; several step
    sizes are tried on the true reduced problem, codes solved exactly each time.
    """
    slots = problem_slots(problem, point.dictionary, point.slots)
    seen = curvature(problem, point.dictionary, slots, X)
    moved = partial(_moved, problem, X, point, seen.direction, isinstance(codes, SparseCodes))
    negative = seen.eigenvalue < -(float(jnp.finfo(X.dtype).eps) ** 0.5)

    def attempt(_):
        sizes = jnp.asarray([sign * size for size in ESCAPES for sign in (1, -1)], X.dtype)

        def trial(best, size):
            found = moved(size)
            return select(found[0].objective < best[0].objective, found, best), None

        (best, best_codes), _ = jax.lax.scan(trial, (point, codes), sizes)
        lower = best.objective < point.objective * (1 - 8 * jnp.finfo(X.dtype).eps)
        return *select(lower, (best, best_codes), (point, codes)), lower

    return jax.lax.cond(negative, attempt, lambda _: (point, codes, negative), None)


def _moved(problem, X: Float[Array, "samples d"], point, direction, sparse: bool, size):
    atoms = unit_rows(point.dictionary.atoms + size * direction.atoms)
    dictionary = Dictionary(atoms, point.dictionary.offset + size * direction.offset)
    return next_point_and_codes(problem, X, dictionary, point.slots, sparse=sparse)
