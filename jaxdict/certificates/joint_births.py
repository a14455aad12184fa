"""Several atoms to add at once, each row's gain counted once (T10 of theory.md)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.certificates.births import atoms_of, codes_alone
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import pairwise_sum, safe_norm, select, unit_rows
from jaxdict.objectives import residual_of
from jaxdict.points import check_point
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, metric_of, sample_weights
from jaxdict.units import units_of

# Rows that candidates start from: so many an atom wanted, so many at least, and at most so many entries (rows, candidates).
SEEDS_AN_ATOM, LEAST_SEEDS, MOST_ENTRIES = 2, 16, 2**24
# T10's steps of each candidate alone, before some are chosen.
STEPS_ALONE = 8
# Sweeps end where one raises the gain by a smaller share of it.
LEVEL = 1e-3


class JointBirths(NamedTuple):
    """New atoms found together (T10): F's exact decrease if all are added, each row using the one that serves it best, and what is
    each one's part of it, largest first."""

    gain: Float[Array, ""]
    gains: Float[Array, " births"]  # zero where an atom found no row
    atoms: Float[Array, "births d"]


def joint_births(
    problem: Problem,
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    count: int,
    *,
    key,
    max_sweeps: int = 20,
) -> JointBirths:
    """Up to `count` new unit atoms that do not overlap: they lower F by `E[max_k (<d_k, r>_m - lam)_+^2 / (2 ||d_k||_m^2)]`.

    That is T10's gain with each row given to one of them, all else fixed, so the parts add up. Candidates are rows of the residual
    drawn with the weight `(||m r_n|| - lam)_+^2`, as they are and after T10's iteration; they are chosen one by one by what they add.
    Where two serve rows of the same old atom (by its largest codes), the second is left to that one, which turns to it once the first
    has taken the others: an atom of m kinds of rows needs m - 1 new ones. Then rows are given to their best atom and atoms moved to
    their rows' best by turns, which never lowers the sum. Exact at the atoms returned, a lower bound of the best; gains are zero beyond
    those found. Dictionary (K, d), codes dense or sparse, X (N, d).

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.eye(2)), jnp.zeros((3, 2)), jnp.array([[3.0, 4.0], [6.0, 8.0], [-5.0, 0.0]])
    >>> new = joint_births(jd.Problem(lam=1.0), *point, 3, key=jax.random.key(0))
    >>> [round(float(gain), 2) for gain in new.gains]  # ((5 - 1)^2 + (10 - 1)^2) / 6, (5 - 1)^2 / 6
    [16.17, 2.67, 0.0]
    """
    return _joint(*check_point(problem, dictionary, codes, X), key, count=count, max_sweeps=max_sweeps)


@on_any_mesh
@partial(jax.jit, static_argnames=("count", "max_sweeps"))
def _joint(problem, dictionary, codes, X: Float[Array, "samples d"], key, *, count, max_sweeps) -> JointBirths:
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    r = residual_of(units.scaled_dictionary(dictionary), units.scaled_codes(codes), X)
    served = _served_by(codes, dictionary.atoms.shape[0]), dictionary.atoms.shape[0] + 1
    found = _from_residual(problem, r, served, key, count, max_sweeps)
    return found._replace(gain=units.of_objective(found.gain), gains=units.of_objective(found.gains))


def _served_by(codes: Codes, n_atoms: int) -> Int[Array, " samples"]:
    """The old atom of each row's largest code; `n_atoms` where all are zero."""
    sparse = isinstance(codes, SparseCodes)
    sizes = jnp.abs(codes.values if sparse else codes)
    largest = jnp.argmax(sizes, axis=1)
    if sparse:
        largest = jnp.take_along_axis(codes.indices, largest[:, None], axis=1)[:, 0]
    return jnp.where(jnp.max(sizes, axis=1) > 0, largest, n_atoms)


def _from_residual(problem, r: Float[Array, "samples d"], served, key, count: int, max_sweeps: int) -> JointBirths:
    def better(carry):
        atoms, codes, parts, _, sweep = carry
        new = _moved(problem, r, atoms, codes)
        new_codes, new_parts = _given(problem, r, new, usable)
        rise = jnp.sum(new_parts) - jnp.sum(parts)
        kept = select(rise > 0, (new, new_codes, new_parts), (atoms, codes, parts))
        return *kept, rise, sweep + 1

    def going(carry):
        _, _, parts, rise, sweep = carry
        return (sweep < max_sweeps) & (rise > LEVEL * jnp.sum(parts))

    atoms, usable = _chosen(problem, r, _candidates(problem, r, key, count), served, count)
    codes, parts = _given(problem, r, atoms, usable)
    carry = atoms, codes, parts, jnp.full_like(parts[0], jnp.inf), jnp.zeros_like(parts[0], dtype=int)
    atoms, _, parts, _, _ = jax.lax.while_loop(going, better, carry)
    order = jnp.argsort(-parts)
    return JointBirths(jnp.sum(parts), parts[order], atoms[order])


def _candidates(problem, r: Float[Array, "samples d"], key, count: int) -> Float[Array, "candidates d"]:
    """Directions of drawn rows, and where T10's iteration takes each of them."""
    n = r.shape[0]
    wanted = max(LEAST_SEEDS, SEEDS_AN_ATOM * count)
    seeds = min(n, max(count, min(wanted, MOST_ENTRIES // (2 * n))))
    w, pulls = sample_weights(problem, r) / n, metric_of(problem, r) * r
    worth = w * jnp.maximum(safe_norm(pulls) - problem.lam, 0) ** 2
    # The largest of log(u) / weight: drawn without replacement, each by its weight (Efraimidis and Spirakis 2006).
    luck = jnp.log(jax.random.uniform(key, worth.shape, r.dtype, minval=jnp.finfo(r.dtype).tiny))
    luck = jnp.where(worth > 0, luck / jnp.where(worth > 0, worth, 1), -jnp.inf)
    rows = unit_rows(pulls[jax.lax.top_k(luck, seeds)[1]])
    rows = jnp.where(safe_norm(rows)[:, None] > 0, rows, jnp.eye(1, r.shape[1], dtype=r.dtype))

    def step(_, atoms):
        return atoms_of(problem, codes_alone(problem, atoms, pulls), w, r, atoms)

    return jnp.concatenate([jax.lax.fori_loop(0, STEPS_ALONE, step, rows), rows])


def _chosen(problem, r: Float[Array, "samples d"], candidates, served, count: int):
    """One after another the candidate that adds most to what the rows gain, each row by the best of those chosen, but for those that
    are left to old atoms; and which of the places are filled."""
    gains, (main, classes) = _row_gains(problem, candidates, r), served
    by_class = jax.ops.segment_sum(gains, main, classes)
    of_candidate = jnp.argmax(by_class, axis=0)
    none = jnp.zeros_like(by_class[:, 0], dtype=int)

    def choose(carry, _):
        covered, picked = carry
        adds = jnp.sum(jnp.maximum(gains - covered[:, None], 0), axis=0)
        best = jnp.argmax(adds).astype(none.dtype)
        its = of_candidate[best]
        taken = (adds[best] > 0) & ((picked[its] != 1) | (its == classes - 1))
        return (jnp.maximum(covered, gains[:, best]), picked.at[its].add(1)), (best, taken)

    # Each atom that is left to an old one follows one that is not: twice as many looks are enough.
    _, (chosen, taken) = jax.lax.scan(choose, (jnp.zeros_like(gains[:, 0]), none), length=2 * count)
    order = jnp.argsort(~taken, stable=True)[:count]
    return candidates[chosen[order]], taken[order]


def _row_gains(problem, atoms, r: Float[Array, "samples d"]) -> Float[Array, "samples atoms"]:
    """`w_n / N (<d_k, r_n>_m - lam)_+^2 / (2 ||d_k||_m^2)`."""
    w, m = sample_weights(problem, r) / r.shape[0], metric_of(problem, r)
    z = codes_alone(problem, atoms, m * r)
    return 0.5 * w[:, None] * z * z * jnp.sum(m * atoms * atoms, axis=1)


def _given(problem, r: Float[Array, "samples d"], atoms, usable):
    """Codes of rows that are given to the (first) atom that serves each best, and what each atom's rows gain."""
    gains = jnp.where(usable, _row_gains(problem, atoms, r), 0)
    codes = codes_alone(problem, atoms, metric_of(problem, r) * r)
    # Of atoms that serve a row alike, beyond rounding, the first has it: no two share a ray.
    best = (1 - 64 * jnp.finfo(r.dtype).eps) * jnp.max(gains, axis=1, keepdims=True)
    first = jnp.argmax(gains >= best, axis=1)[:, None]
    own = (first == jnp.arange(atoms.shape[0])) & (gains > 0)
    return jnp.where(own, codes, 0), pairwise_sum(jnp.where(own, gains, 0))


def _moved(problem, r: Float[Array, "samples d"], atoms, codes):
    """Each atom at one step of T10's iteration over its own rows."""
    return atoms_of(problem, codes, sample_weights(problem, r) / r.shape[0], r, atoms)
