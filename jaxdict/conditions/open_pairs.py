"""Parents and children where the penalty is not L1: pairs that no objective of supports determines, and what does (T21 to T23)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.conditions.coactivations import column, counted, mean_weights, refuse_negative
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_norm
from jaxdict.objectives import residual_of
from jaxdict.points import check_activations_of, check_pairs, check_point
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, canonical, sparse_codes


class FlatPair(NamedTuple):
    """Child j inside parent i: along `z_i += a z_j, d_j -= a d_i` no reconstruction changes, and no support for a above `lowest`."""

    share: Float[Array, "..."]  # P(i on | j on); T21 speaks where it is one
    lowest: Float[
        Array, "..."
    ]  # the flat interval is from here upwards: -min z_i / z_j over the child's rows; 0 where none is flat
    cosine: Float[Array, "..."]  # of the two atoms as they are
    absorbed: Float[Array, "..."]  # at `lowest`, the parent drawn into the child: the largest that the objective allows

    @property
    def opposite(self) -> Float[Array, "..."]:
        """The cosine towards the interval's other end, a without bound: -1 where a pair is flat, else the cosine as it is."""
        return jnp.where(self.share == 1, -jnp.ones_like(self.cosine), self.cosine)


class PrefixPair(NamedTuple):
    """What a Matryoshka loss says along the path that is flat for one reconstruction: a parabola in a."""

    slope: Float[
        Array, "..."
    ]  # at a = 0: - sum_p E[z_j <d_i, r_p>], p the prefixes with the parent and without the child
    curvature: Float[Array, "..."]  # (number of such p) ||d_i||^2 E[z_j^2]; 0: no prefix parts the pair
    step: Float[Array, "..."]  # the best a, -slope / curvature, no support kept in mind; 0 where the curvature is
    gain: Float[Array, "..."]  # what that step gains, slope^2 / (2 curvature)
    slope_error: Float[
        Array, "..."
    ]  # standard error of the slope, samples independent: at an optimum it is near zero, not zero


def flat_pairs(dictionary: Dictionary, codes: Codes, i, j, weights=None) -> FlatPair:
    """How far the decoders of parents i and children j are left open by supports and reconstructions alone (T21).

    Where j is on only where i is, `z_i += a z_j, d_j -= a d_i` leaves every reconstruction as it was and, for
    `a > -min_{z_j > 0} z_i / z_j`, every support: TopK, BatchTopK and JumpReLU's L0 are constant along it, and unit atoms then
    have the cosine

        (G_ij - a) / sqrt(1 - 2 a G_ij + a^2),

    anything from -1 to its value at the lower end, where i is absorbed into j. So the objective does not determine this pair. An L1
    penalty does: C1 forbids it.

    `i`, `j` are integer arrays of one shape, which the fields have too; codes (samples, atoms) dense or sparse, >= 0, scaled here
    to unit atoms; samples of weight 0 do not count. NaN for a feature that is never on. Under jit, vmap. Raises ValueError for
    concrete negative codes, and ids that are not there.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes = jnp.array([[2.0, 1.0], [1.0, 0.0]])  # feature 1 is on only with feature 0, at half its size
    >>> found = flat_pairs(jd.Dictionary(jnp.eye(2)), codes, 0, 1)
    >>> float(found.lowest), float(found.cosine), round(float(found.absorbed), 4), float(found.opposite)
    (-2.0, 0.0, 0.8944, -1.0)
    """
    refuse_negative(codes, "T21")
    dictionary, codes, weights = check_activations_of(dictionary, codes, weights)
    i, j = check_pairs(i, j, dictionary.atoms.shape[0])
    return _flat_pairs(dictionary, codes, weights, i, j)


@jax.jit
def _flat_pairs_of(dictionary, codes, weights, i, j) -> FlatPair:
    unit, codes = canonical(dictionary, counted(codes, weights))
    w = mean_weights(codes, weights)

    def one(pair):
        a, b = pair
        z_i, z_j = column(codes, a), column(codes, b)
        on, cosine = z_j > 0, matmul(unit.atoms[a], unit.atoms[b])
        used = jnp.any(on) & jnp.any(z_i > 0)
        inside = jnp.all(jnp.where(on, z_i, 1) > 0)
        parts = jnp.sum(jnp.where(on & (z_i > 0), w, 0)), jnp.sum(jnp.where(on, w, 0))
        # One exactly where the child is inside, whatever the weights are rounded to.
        share = jnp.where(
            inside, 1.0, jnp.minimum(parts[0] / jnp.where(parts[1] > 0, parts[1], 1), 1 - jnp.finfo(w.dtype).eps)
        )
        room = jnp.min(jnp.where(on, z_i / jnp.where(on, z_j, 1), jnp.inf), initial=jnp.inf)
        lowest = jnp.where(inside & used, 0 - room, 0.0)
        known = [jnp.where(used, value, jnp.nan).astype(w.dtype) for value in (share, lowest, cosine)]
        return FlatPair(*known, cosine_at(known[2], known[1]))

    return _over_pairs(one, i, j)


_flat_pairs = on_any_mesh(_flat_pairs_of)


def cosine_at(cosine, a):
    """The cosine of d_i and `d_j - a d_i`, unit atoms of cosine G: `(G - a) / sqrt((1 - G^2) + (G - a)^2)`.

    >>> import jax.numpy as jnp
    >>> float(cosine_at(jnp.array(0.0), jnp.array(-0.75)))
    0.6000000238418579
    """
    along = cosine - a
    length = jnp.sqrt(jnp.maximum(1 - cosine * cosine, 0) + along * along)
    return along / jnp.where(length > 0, length, 1)


def prefix_pairs(
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    prefixes: tuple[int, ...],
    i,
    j,
    weights=None,
    prefix_weights: tuple[float, ...] | None = None,
) -> PrefixPair:
    """What a Matryoshka loss `sum_p v_p E 1/2 ||x - b - z_{<p} D_{<p}||^2` says of pairs along T21's path (T22).

    The prefixes p with the parent i and without the child j see `z_i += a z_j` alone: slope `- sum_p v_p E[z_j <d_i, r_p>]` at
    a = 0, curvature `(sum of such v_p) ||d_i||^2 E[z_j^2]`. Where j is on only where i is, the prefixes with both see nothing,
    so the loss determines the pair: at an optimum the slope is zero, and absorbing by a costs `a^2 curvature / 2`.

    `prefixes` are numbers of atoms, ascending, `prefix_weights` the v_p, by default one each; `i`, `j` as in `flat_pairs`, as X,
    codes and weights are in `jaxdict.objective`. Atoms of any norm, a in units of the codes as given. Holds (prefixes, samples, d).
    Under jit (prefixes and their weights static), vmap.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> X = jnp.array([[2.0, 1.0], [1.0, 0.0]])
    >>> found = prefix_pairs(jd.Dictionary(jnp.eye(2)), X, X, (1, 2), 0, 1)  # the truth: nothing to gain
    >>> float(found.slope), float(found.curvature), float(found.gain)
    (0.0, 0.5, 0.0)
    """
    refuse_negative(codes, "T22")
    problem, dictionary, codes, X = check_point(Problem(lam=1.0, weights=weights), dictionary, codes, X)
    n_atoms = dictionary.atoms.shape[0]
    sizes = tuple(int(size) for size in prefixes)
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > n_atoms:
        raise ValueError(f"prefixes={prefixes} make no sense; give ascending numbers of atoms from 1 to {n_atoms}")
    v = (1.0,) * len(sizes) if prefix_weights is None else tuple(float(weight) for weight in prefix_weights)
    if len(v) != len(sizes) or not all(0 < weight < float("inf") for weight in v):
        raise ValueError(
            f"prefix_weights={prefix_weights} do not fit {len(sizes)} prefixes; give a positive number for each"
        )
    i, j = check_pairs(i, j, n_atoms)
    return _prefix_pairs(problem, dictionary, codes, X, i, j, (sizes, v))


@functools.partial(jax.jit, static_argnums=6)
def _prefix_pairs_of(problem, dictionary, codes, X: Float[Array, "samples d"], i, j, prefixes) -> PrefixPair:
    prefixes, v = prefixes
    codes = counted(codes, problem.weights)
    listed = codes if isinstance(codes, SparseCodes) else sparse_codes(codes, codes.shape[1])
    w, sizes = mean_weights(codes, problem.weights), jnp.asarray(prefixes)

    def left_by(size):
        return residual_of(dictionary, listed._replace(values=jnp.where(listed.indices < size, listed.values, 0)), X)

    residuals = jax.lax.map(left_by, sizes)

    def one(pair):
        a, b = pair
        d_i, z_j = dictionary.atoms[a], column(codes, b)
        parting = jnp.where((a < sizes) & (b >= sizes), jnp.asarray(v, X.dtype), 0)
        pulls = matmul(parting, matmul(residuals, d_i)) * z_j
        slope = 0 - matmul(w, pulls)
        # w^2 of one row less: what is not known is the mean
        error = safe_norm(w * (pulls + slope)) / jnp.sqrt(jnp.maximum(1 - jnp.sum(w * w), jnp.finfo(X.dtype).eps))
        curvature = jnp.sum(parting) * jnp.sum(d_i * d_i) * jnp.sum(w * z_j * z_j)
        safe = jnp.where(curvature > 0, curvature, 1)
        step, gain = (jnp.where(curvature > 0, value, 0) for value in (-slope / safe, 0.5 * slope * slope / safe))
        return PrefixPair(slope, curvature, step, gain, error)

    return _over_pairs(one, i, j)


_prefix_pairs = on_any_mesh(_prefix_pairs_of)


def penalty_cosines(dictionary: Dictionary, codes: Codes, slope: Callable, i, j, weights=None) -> Float[Array, "..."]:
    """The cosine at which a child that is on only with its parent stays, under a penalty `sum_k E rho(z_k)` (T23).

    `G_ij = E[rho'(z_i) z_j] / E[rho'(z_j) z_j]`, noiseless to first order; `slope` is rho', applied to codes > 0 alone. L1: 1, so
    the pair merges (C1); concave rho with a strong parent: near 0.

    Codes of unit atoms after scaling, `i`, `j` as in `flat_pairs`. NaN where j is on without i, or never. Under jit (`slope`
    static: another function is another program), vmap.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes = jnp.array([[4.0, 1.0], [1.0, 0.0]])
    >>> both = [penalty_cosines(jd.Dictionary(jnp.eye(2)), codes, rho, 0, 1) for rho in (jnp.ones_like, lambda z: 0.5 * z**-0.5)]
    >>> [float(cosine) for cosine in both]
    [1.0, 0.5]
    """
    refuse_negative(codes, "T23")
    dictionary, codes, weights = check_activations_of(dictionary, codes, weights)
    i, j = check_pairs(i, j, dictionary.atoms.shape[0])
    return _penalty_cosines(dictionary, codes, weights, i, j, slope)


@functools.partial(jax.jit, static_argnums=5)
def _penalty_cosines_of(dictionary, codes, weights, i, j, slope):
    _, codes = canonical(dictionary, counted(codes, weights))
    w = mean_weights(codes, weights)

    def one(pair):
        z_i, z_j = (column(codes, k) for k in pair)
        on = z_j > 0
        means = [jnp.sum(jnp.where(on, w * slope(jnp.where(on & (z > 0), z, 1)) * z_j, 0)) for z in (z_i, z_j)]
        inside = jnp.any(on) & jnp.all(jnp.where(on, z_i, 1) > 0)
        return jnp.where(inside, means[0] / jnp.where(means[1] > 0, means[1], 1), jnp.nan)

    return _over_pairs(one, i, j)


_penalty_cosines = on_any_mesh(_penalty_cosines_of)


def _over_pairs(one: Callable, i, j):
    found = jax.lax.map(one, (i.reshape(-1), j.reshape(-1)))
    return jax.tree.map(lambda leaf: leaf.reshape(i.shape), found)
