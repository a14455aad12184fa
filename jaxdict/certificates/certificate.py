"""All that a point proves about itself, in one object: T1, T2, T4 and T10 to T13 of theory.md."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdict.certificates.births import Birth, birth_of
from jaxdict.certificates.curvature import (
    Curvature,
    curvature_of,
    in_data_units,
    strictness_tolerance,
    support_size,
)
from jaxdict.certificates.slopes import steepest_slope
from jaxdict.certificates.stationarity import Stationarity, from_moments
from jaxdict.certificates.wide_limits import wide_limit_of
from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.meshes import on_any_mesh
from jaxdict.objectives import moments_of
from jaxdict.points import check_point
from jaxdict.problem import Codes, Dictionary, Problem
from jaxdict.units import units_of


class DualityGap(NamedTuple):
    """How far the codes are from optimal for their dictionary (T2), in F's units: mean over samples, worst sample."""

    mean: Float[Array, ""]
    max: Float[Array, ""]


class Shares(NamedTuple):
    """What the point may lack, as shares of its objective: by its codes (T2), over all widths (T12), by a new atom (T10)."""

    duality_gap: Float[Array, ""]
    global_gap: Float[Array, ""]
    birth: Float[Array, ""]


class Certificate(NamedTuple):
    """What has been proved or refuted about a point; every number is recomputed from it, in the data's dtype."""

    objective: Float[Array, ""]
    stationarity: Stationarity  # T1, scale-free, by block
    directional_derivative: Float[
        Array, ""
    ]  # F's slope along the unit steepest feasible direction (`slopes`); zero iff stationary
    duality_gap: DualityGap  # T2
    wide_bound: Float[Array, ""]  # certified lower bound of F over all widths (T11)
    global_gap: Float[Array, ""]  # objective - wide_bound (T12)
    max_residual_ratio: Float[Array, ""]  # max ||m r_n|| / lam (T13)
    birth: Birth  # the best atom found to add, and by how much it lowers F (T10)
    curvature: Curvature | None  # T4, where asked for
    n_rays: Int[Array, ""]  # distinct directions counted in the wide optimum: the atoms it needs (T13)
    n_dead: Int[Array, ""]  # atoms that no sample uses
    shares: Shares  # gaps and the new atom's gain over the objective: known where the values themselves are too small

    def is_stationary(self, tol: float = 1e-6) -> Bool[Array, ""]:
        """Whether every block of T1 is within `tol` (False where it is NaN)."""
        return self.stationarity.worst <= tol

    def is_globally_optimal(self, tol: float = 1e-6) -> Bool[Array, ""]:
        """Whether T13 proves optimality over all widths: codes, offset and `||m r_n|| <= lam`, each within `tol`."""
        blocks = jnp.maximum(self.stationarity.codes, self.stationarity.offset)
        return (blocks <= tol) & (self.max_residual_ratio <= 1 + tol)

    def message(self, tol: float = 1e-6) -> str:
        """What has been proved or refuted, in plain sentences. For one point: index a batch first."""
        if jnp.ndim(self.objective):
            raise ValueError(
                f"the certificate has a batch of shape {jnp.shape(self.objective)}; take one run: "
                "jax.tree.map(lambda leaf: leaf[0], certificate).message()"
            )
        first = _say_stationarity(self, tol), _say_dead(self), _say_codes(self)
        return " ".join(filter(None, (*first, _say_curvature(self, tol), _say_width(self, tol))))


def certify(
    problem: Problem, dictionary: Dictionary, codes: Codes, X: Float[Array, "samples d"], *, curvature: bool = False
) -> Certificate:
    """The certificate of a point, from the point alone.

    How far it is from stationary (T1), its codes from the best for its dictionary (T2), its value from a bound that
    holds for every width (T12), and what a new atom would gain (T10).

    Dictionary (K, d), codes (N, K) dense or `SparseCodes`, X (N, d); numpy arrays will do. All is computed in X's
    dtype (at least float32); values in F's units, squared units of the data, and dimensionless where the field says
    so. With `curvature=True` the second-order condition T4 too: much dearer, see `jaxdict.certificates.curvature`.
    Fit for jit and vmap, the latter over any of the arrays. NaN anywhere gives NaN measures, hence a point that is
    not stationary.

    Measures without units are right at every scale of the data. Values are computed in units of the data's own size and
    are 0 or infinite where the dtype cannot hold them in the data's; `shares` says what they are of the objective.
    Derivatives: of the wide bound and the new atom's gain by the envelope theorem; none of curvature, the atom, counts.

    Raises ValueError, before any compute, where shapes or kinds do not fit.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> from jaxdict.certificates.certificate import certify
    >>> X, problem = jnp.array([[3.0], [-3.0], [0.0]]), jd.Problem(lam=1.0)
    >>> pair = jd.Dictionary(jnp.array([[1.0], [-1.0]]), jnp.zeros(1))
    >>> certificate = certify(problem, pair, jnp.array([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), X)
    >>> bool(certificate.is_stationary()), bool(certificate.is_globally_optimal()), int(certificate.n_rays)
    (True, True, 2)
    """
    point = check_point(problem, dictionary, codes, X)
    return _certify(*point, support_size(point[2], point[1]) if curvature else None)


def _in_units(problem, dictionary, codes, X: Float[Array, "samples d"], slots) -> Certificate:
    """Everything in units of the data's own size, so that nothing overflows or underflows; values then in the data's."""
    units = units_of(problem, X)
    problem, X = units.scaled(problem, X)
    dictionary, codes = units.scaled_dictionary(dictionary), units.scaled_codes(codes)
    sums, limit = moments_of(problem, dictionary, codes, X), wide_limit_of(problem, X)
    slope, best = steepest_slope(problem, dictionary, codes, X, sums), birth_of(problem, dictionary, codes, X)
    gap = sums.objective - limit.dual_value  # pyright: ignore[reportOptionalOperand]
    size = jnp.maximum(jnp.abs(sums.objective), jnp.finfo(X.dtype).tiny)  # type: ignore
    of_value = units.of_objective
    return Certificate(
        objective=of_value(sums.objective),
        stationarity=from_moments(problem, dictionary, sums),
        directional_derivative=of_value(slope),
        duality_gap=DualityGap(of_value(sums.gap), of_value(sums.gap_max)),
        wide_bound=of_value(limit.dual_value),
        global_gap=of_value(gap),
        max_residual_ratio=sums.residual_max / problem.lam,
        birth=Birth(of_value(best.gain), best.atom),
        curvature=None if slots is None else in_data_units(curvature_of(problem, dictionary, codes, X, slots), units),
        n_rays=limit.n_rays,
        n_dead=jnp.sum(sums.mean_codes == 0),
        shares=Shares(sums.gap / size, gap / size, best.gain / size),  # type: ignore
    )


_certify = on_any_mesh(compiled_in_a_hurry(_in_units, light=lambda: True, static_argnums=4))


def _say_stationarity(c, tol):
    blocks = {"codes": c.stationarity.codes, "atoms": c.stationarity.atoms, "offset": c.stationarity.offset}
    parts = ", ".join(f"{name} {float(size):.1e}" for name, size in blocks.items())
    if not np.isfinite(float(c.objective)) or np.isnan(float(c.stationarity.worst)):
        worst = float(c.stationarity.worst)
        return f"Nothing is proved: the objective is {float(c.objective):g} and the worst block {worst:g}."
    if bool(c.is_stationary(tol)):
        return f"Stationary to {tol:.0e}: no feasible direction descends to first order ({parts})."
    worst = max(blocks, key=lambda name: float(blocks[name]))
    slope = float(c.directional_derivative)
    return f"Not stationary to {tol:.0e}: worst block {worst} ({parts}); the steepest direction has slope {slope:.1e}."


def _say_dead(c):
    dead, total = int(c.n_dead), c.stationarity.by_atom.shape[0]
    return f"{dead} of {total} atoms {'is' if dead == 1 else 'are'} dead: used by no sample." if dead else ""


def _say_codes(c):
    return f"The codes are within {float(c.shares.duality_gap):.1e} of the objective of the best ones for this dictionary (duality gap)."


def _say_curvature(c, tol):
    if c.curvature is None:
        return ""
    value, error = float(c.curvature.eigenvalue), float(c.curvature.residual_norm)
    found = f"Smallest curvature found {value:.1e} (scaled, error {error:.0e})"
    if not bool(c.is_stationary(tol)):
        return f"{found}; it decides nothing where the point is not stationary."
    # What the precision, and the ridge that decided, cannot tell from zero.
    flat = max(error, strictness_tolerance(c.curvature.eigenvalue.dtype))
    if float(c.curvature.second_derivative) < 0 and value < -error:
        return f"A saddle, not a local minimum. {found}; its direction escapes."
    if value > flat:
        return f"{found}: positive, so a local minimum if no zero code has correlation one."
    if abs(value) <= flat:
        return f"{found}: flat as far as this precision can tell, so neither a strict minimum nor a saddle."
    return f"{found}: its sign is not decided."


def _say_width(c, tol):
    if bool(c.is_globally_optimal(tol)):
        share = float(c.shares.global_gap)
        return f"Globally optimal over all widths, within {share:.1e} of its objective: no residual exceeds lam."
    share = float(c.shares.global_gap)
    gap = f"The objective is {float(c.global_gap):.3g} ({share:.1%}) above the certified bound for every width."
    rays = (
        f"The widest optimum has {int(c.n_rays)} distinct directions, as counted: no more atoms than that are needed."
    )
    if float(c.max_residual_ratio) <= 1:
        return f"{gap} {rays} No single new atom helps: every residual is within lam."
    return f"{gap} {rays} One more atom would lower it by at least {float(c.birth.gain):.3g} ({float(c.shares.birth):.1%})."
