"""The hull condition (T5): a feature's cosines against what the other features do while it is off."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxdict.arrays import as_jax, real_array
from jaxdict.certificates.stationarity import Direction
from jaxdict.conditions.coactivations import counted, mean_weights, refuse_negative
from jaxdict.conditions.nearest_point import nearest_point
from jaxdict.geometry import sphere_tolerance
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide, safe_norm, select
from jaxdict.points import check_activations_of, check_feature
from jaxdict.problem import Codes, Dictionary, canonical, dense_codes


class HullCondition(NamedTuple):
    """T5 for one feature, or several on a leading axis. Either `weights` or (`row`, `constant`) proves the answer."""

    inside: Bool[Array, ""]  # distance <= tolerance: no row i descends
    distance: Float[Array, ""]  # from (1 - G_ij)_j to the hull or cone of (z_nj / zbar_j)_j; inf for an empty hull
    weights: Float[Array, " samples"]  # of the nearest point; convex (offset free) or non-negative; zero off I_i
    row: Float[Array, " atoms"]  # A_i, zero at i and at dead features, and where inside
    constant: Float[Array, ""]  # c_i, zero without offset
    violation: Float[Array, ""]  # beyond rounding it proves "outside": F falls at rate lam * violation
    steps: Int[Array, ""]


def hull(
    dictionary: Dictionary, codes: Codes, feature, *, offset: bool = True, weights=None, tol=None
) -> HullCondition:
    """Whether no change of feature i with the others that keeps the reconstruction lowers the penalty (T5); codes >= 0.

    With `I_i = {n : z_ni = 0}`: is `(1 - G_ij)_{j != i}` in the convex hull (offset free) or the cone (no offset) of
    `(z_nj / zbar_j)_{j != i}`, n in I_i? This is T5 divided by zbar_j; dead j drop out, a dead i is as good as any.

    - inside: `weights` reproduce the point, `sum_n weights_n z_nj / zbar_j = 1 - G_ij` to `distance`;
    - outside: `row`, `constant` separate, `constant + row . z_n >= 0` on I_i, with `||row zbar|| = 1` and
      `violation = -(constant + sum_j row_j zbar_j (1 - G_ij)) > 0`, which equals `distance`.

    An empty I_i is outside: offset free by lowering z_i everywhere (row 0, constant -1, violation 1, distance inf);
    without an offset unless `d_j = d_i` for all live j.

    **Arguments**: `feature` an integer or an array of them (then all fields have a leading axis); `weights` of the
    samples (those of weight 0 do not count); `tol` for `inside`, by default the square root of the dtype's epsilon.
    Dense work: a step costs samples x atoms + 4 atoms^3, with about as many steps as atoms. `distance` and
    `violation` are differentiable where positive; weights, row and constant are constants to differentiation.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> bool(hull(jd.Dictionary(jnp.eye(2)), codes, 0).inside)  # exclusive features
    True
    >>> child = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    >>> float(hull(jd.Dictionary(jnp.eye(2)), child, 0).violation)  # feature 1 fires only with feature 0
    1.0
    """
    refuse_negative(codes, "the hull condition")
    dictionary, codes, weights = check_activations_of(dictionary, codes, weights)
    feature = check_feature(feature, dictionary.atoms.shape[0])
    tol = sphere_tolerance(dictionary.atoms.dtype) if tol is None else tol
    return _hulls(dictionary, codes, weights, feature, tol, offset)


@functools.partial(jax.jit, static_argnums=5)
def _hulls_of(dictionary, codes, weights, feature, tol, offset) -> HullCondition:
    unit, codes = canonical(dictionary, counted(codes, weights))
    Z = dense_codes(codes, unit.atoms.shape[0])
    one = functools.partial(_hull, unit.atoms, Z, mean_weights(Z, weights), offset=offset)
    found = jax.vmap(one)(feature.reshape(-1))
    found = jax.tree.map(lambda leaf: leaf.reshape(feature.shape + leaf.shape[1:]), found)
    inside = found.distance <= tol
    row, constant, violation = select(~inside, (found.row, found.constant, found.violation), (0, 0, 0))
    return found._replace(inside=inside, row=row, constant=constant, violation=violation)


_hulls = on_any_mesh(_hulls_of)


def _hull(units, Z, w, feature, *, offset):
    means = matmul(w, Z)
    used = (means > 0) & (jnp.arange(means.shape[0]) != feature)
    scale = jnp.where(used, means, 1)
    target = jnp.where(used, 1 - matmul(units, units[feature]), 0)
    points = safe_divide(Z, means)
    allowed = (Z[:, feature] <= 0) & (w > 0)
    search = nearest_point(*jax.lax.stop_gradient((points, allowed, target)), hull=offset, axes=used)
    # By the envelope theorem the distance's derivative is that at fixed weights.
    left = target - matmul(search.weights, points) * used
    distance = jnp.where(jnp.all(jnp.isfinite(left)), safe_norm(left), jnp.nan)
    ahead = safe_divide(left, distance)
    reach = jnp.max(jnp.where(allowed, matmul(points, ahead), -jnp.inf), initial=-jnp.inf)
    row, constant = -ahead / scale, reach if offset else jnp.zeros_like(reach)
    violation = matmul(ahead, target) - constant
    if not offset:  # the row must not point into the cone, but for rounding; else it refutes nothing
        rounding = 64 * jnp.finfo(Z.dtype).eps * jnp.max(safe_norm(points), initial=1) * safe_norm(target)
        feasible = reach * distance <= rounding
        violation = jnp.where(feasible, violation, -reach)
    empty = ~jnp.any(allowed)
    if offset:
        distance = jnp.where(empty, jnp.inf, distance)
        row, constant = jnp.where(empty, 0, row), jnp.where(empty, -1, constant)
        violation = jnp.where(empty, 1, violation)
    inside = jnp.zeros_like(empty)  # set by the caller, who knows the tolerance
    weights, row, constant = jax.lax.stop_gradient((search.weights, row, constant))
    return HullCondition(inside, distance, weights, row, constant, violation, search.steps)


def hull_direction(dictionary: Dictionary, codes: Codes, feature, condition: HullCondition) -> Direction:
    """The refutation as a direction: F's slope along it is `-lam * condition.violation` (T5), whatever the data.

    `row_direction` of the condition's row and constant, for one feature; of use where `violation > 0`.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.eye(2), jnp.zeros(2)), jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    >>> move = hull_direction(*point, 0, hull(*point, 0))
    >>> round(float(jd.directional_derivative(jd.Problem(lam=0.5), *point, jnp.ones((3, 2)), move)), 6)
    -0.5
    """
    return row_direction(dictionary, codes, feature, condition.row, condition.constant)  # pyright: ignore[reportArgumentType]


def row_direction(dictionary: Dictionary, codes: Codes, feature, row, constant=0.0) -> Direction:
    """A change of feature i with the others that keeps the reconstruction to first order (theory.md section 2).

    `dz_ni = c + sum_j A_j z_nj`, `dd_j = -A_j d_i`, `db = -c d_i`, with A = row (atoms,), c = constant, unit atoms.
    What would lengthen atom j goes to its code instead (`dz_nj = -A_j G_ij z_nj`), so atoms keep their norms and the
    direction is feasible in both gauges. Where `z_ni = 0` only increases stay; if that cuts nothing, F's slope is
    `lam (c + sum_j A_j zbar_j (1 - G_ij))` (constrained gauge: at unit atoms).

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> move = row_direction(jd.Dictionary(jnp.eye(2)), jnp.array([[2.0, 1.0]]), 0, jnp.array([0.0, -1.0]))
    >>> move.atoms[1].tolist(), move.codes.tolist()
    ([1.0, 0.0], [[-1.0, 0.0]])
    """
    dictionary, codes, _ = check_activations_of(dictionary, codes)
    n_atoms, dtype = dictionary.atoms.shape[0], dictionary.atoms.dtype
    row = real_array(row, "row")
    if row.shape != (n_atoms,):
        raise ValueError(f"row has shape {row.shape} but there are {n_atoms} atoms; give one number an atom")
    feature = check_feature(feature, n_atoms)
    return _row(dictionary, codes, feature, as_jax(row, dtype), jnp.asarray(constant, dtype))


@jax.jit
def _row_of(dictionary, codes, feature, row, constant) -> Direction:
    unit, canonical_codes = canonical(dictionary, codes)
    Z, atom = dense_codes(canonical_codes, unit.atoms.shape[0]), unit.atoms[feature]
    row = row.at[feature].set(0)
    cosine = matmul(unit.atoms, atom)
    own = matmul(Z, row) + constant
    own = jnp.where(Z[:, feature] > 0, own, jnp.maximum(own, 0))
    d_codes = (-(row * cosine) * Z).at[:, feature].set(own)
    d_atoms = -row[:, None] * (atom - cosine[:, None] * unit.atoms)
    norms = safe_norm(dictionary.atoms)
    return Direction(d_atoms * norms[:, None], d_codes / jnp.where(norms > 0, norms, 1), -constant * atom)


_row = on_any_mesh(_row_of, lambda rows: Direction(P(), P(rows), P()))  # type: ignore
