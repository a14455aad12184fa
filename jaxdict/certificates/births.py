"""The best atom to add to a dictionary, and whether any helps (T10 and T13 of theory.md)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.certificates.wide_limits import shrink
from jaxdict.geometry import soft_threshold
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, safe_norm, unit_rows
from jaxdict.objectives import residual_of
from jaxdict.points import check_point
from jaxdict.problem import Codes, Dictionary, Problem, metric_of, sample_weights
from jaxdict.units import units_of


class Birth(NamedTuple):
    """The best new atom found (T10): F's exact decrease if it is added with its best codes, and the unit atom."""

    gain: Float[Array, ""]
    atom: Float[Array, " d"]


def max_residual_ratio(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"]
) -> Float[Array, ""]:
    """`max_n ||m r_n|| / lam` over samples of positive weight: no single atom helps iff it is at most one (T10, T13).

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Problem(lam=0.5), jd.Dictionary(jnp.eye(2)), jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]])
    >>> float(max_residual_ratio(*point))
    10.0
    """
    return _ratio(*check_point(problem, dictionary, codes, X))


def _ratio_in_units(problem, dictionary, codes, X: Float[Array, "samples d"]):
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    r = residual_of(units.scaled_dictionary(dictionary), units.scaled_codes(codes), X)
    heights = jnp.where(sample_weights(problem, X) > 0, safe_norm(metric_of(problem, r) * r), 0)
    return jnp.max(heights, initial=0) / problem.lam


_ratio = on_any_mesh(jax.jit(_ratio_in_units))


def birth(
    problem: Problem,
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    *,
    starts: int = 16,
    max_steps: int = 200,
) -> Birth:
    """The best new unit atom found: it lowers F by `E[(<d, r>_m - lam)_+^2] / (2 ||d||_m^2)` with its best codes (T10).

    From each start the atom's best codes and the codes' best atom alternate, which never lowers the gain (m = 1: the
    iteration `d <- normalise(E[(<d, r> - lam)_+ r])`). Starts are residuals: half the largest, half spread over all
    that exceed lam. The gain is exact at the returned atom and a lower bound of the best; it is zero, with a unit
    atom, iff every `||m r_n|| <= lam`. Signed codes have `|<d, r>_m|`. Dictionary (K, d), codes dense or sparse, X
    (N, d); the gain is in F's units, with the derivatives of the best gain (envelope theorem); the atom has none.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> new = birth(jd.Problem(lam=1.0), jd.Dictionary(jnp.eye(2)), jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]))
    >>> round(float(new.gain), 3), [round(float(v), 3) for v in new.atom]  # (5 - 1)^2 / 2
    (8.0, [0.6, 0.8])
    """
    return _birth(*check_point(problem, dictionary, codes, X), starts, max_steps)


def birth_of(problem, dictionary, codes, X: Float[Array, "samples d"], starts: int = 16, max_steps: int = 200) -> Birth:
    """`birth` of arrays that fit and are of moderate size."""
    return birth_from_residual(problem, residual_of(dictionary, codes, X), starts, max_steps)


def birth_from_residual(problem, r: Float[Array, "samples d"], starts: int = 16, max_steps: int = 200) -> Birth:
    """`birth` from what the codes leave over, of moderate size."""
    atom = _searched(*jax.lax.stop_gradient((problem, r)), starts, max_steps)
    return Birth(birth_gains(problem, atom[None], r)[0], atom)


def _birth_in_units(problem, dictionary, codes, X: Float[Array, "samples d"], starts, max_steps):
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    found = birth_of(problem, units.scaled_dictionary(dictionary), units.scaled_codes(codes), X, starts, max_steps)
    return Birth(units.of_objective(found.gain), found.atom)


_birth = on_any_mesh(jax.jit(_birth_in_units, static_argnums=(4, 5)))


def _searched(problem, r, starts, max_steps) -> Float[Array, " d"]:
    """The best unit atom met, from all starts side by side."""
    w = sample_weights(problem, r) / r.shape[0]
    pulls = metric_of(problem, r) * r
    heights = jnp.where(w > 0, safe_norm(pulls), 0)
    atoms = unit_rows(pulls[_start_rows(heights, problem.lam, min(starts, r.shape[0]))])
    atoms = jnp.where(safe_norm(atoms)[:, None] > 0, atoms, jnp.eye(1, r.shape[1], dtype=r.dtype))

    def improve(carry):
        atoms, gains, _, step = carry
        new = atoms_of(problem, codes_alone(problem, atoms, pulls), w, r, atoms)
        new_gains = birth_gains(problem, new, r)
        better = new_gains > gains
        kept = jnp.where(better[:, None], new, atoms), jnp.where(better, new_gains, gains)
        return *kept, jnp.max(kept[1] - gains), step + 1

    def improving(carry):
        _, gains, change, step = carry
        return (step < max_steps) & (change > jnp.finfo(r.dtype).eps ** 0.75 * jnp.max(gains))

    gains = birth_gains(problem, atoms, r)
    carry = (atoms, gains, jnp.full_like(gains[0], jnp.inf), jnp.zeros_like(gains[0], dtype=int))
    atoms, gains, _, _ = jax.lax.while_loop(improving, improve, carry)
    return atoms[jnp.argmax(gains)]


def birth_gains(
    problem: Problem, atoms: Float[Array, "atoms d"], r: Float[Array, "samples d"]
) -> Float[Array, " atoms"]:
    """How much each unit atom, added with its best codes, lowers F: `E[(<d, r>_m - lam)_+^2] / (2 ||d||_m^2)` (T10).

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> [float(g) for g in birth_gains(jd.Problem(lam=1.0), jnp.eye(2), jnp.array([[3.0, 0.0]]))]
    [2.0, 0.0]
    """
    w, m = sample_weights(problem, r) / r.shape[0], metric_of(problem, r)
    z = codes_alone(problem, atoms, m * r)
    return 0.5 * pairwise_sum(w[:, None] * z * z) * jnp.sum(m * atoms * atoms, axis=1)


def codes_alone(problem, atoms, pulls):
    """Each unit atom's best codes when it is alone, `(<d, r>_m - lam)_+ / ||d||_m^2`, (samples, atoms)."""
    products, lam = matmul(pulls, atoms.T), jnp.asarray(problem.lam, pulls.dtype)
    kept = soft_threshold(products, lam) if problem.signed else jnp.maximum(products - lam, 0)
    return kept / jnp.sum(metric_of(problem, pulls) * atoms * atoms, axis=1)


def atoms_of(problem, z, w, r, otherwise):
    """The codes' best atoms, unit minimisers of `1/2 E[z^2] ||d - c||_m^2 + lam E|z| ||d||`, `c = E[z r]/E[z^2]`."""
    power = matmul(w, z * z)
    used = power > 0
    power = jnp.where(used, power, 1)
    centres = matmul((w[:, None] * z).T, r) / power[:, None]
    radius, p = shrink(centres, problem.lam * matmul(w, jnp.abs(z)) / power, problem.metric)
    # p is the direction of the minimiser; a start without codes stays where it is.
    return jnp.where((used & (radius > 0))[:, None], unit_rows(p), otherwise)


def _start_rows(heights, lam, starts):
    """Rows to start from: the highest, then an even spread over the order of those above lam."""
    order = jnp.argsort(-heights)
    top = (starts + 1) // 2
    above = jnp.maximum(jnp.sum(heights > lam), 1)
    spread = (jnp.arange(starts - top) + 1) * (above - 1) // max(starts - top, 1)
    return order[jnp.concatenate([jnp.arange(top), spread])]
