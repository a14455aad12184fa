"""Derivatives of exact codes: the implicit function theorem on their active set, never the solver unrolled.

On the support S of a sample (codes that are not zero, signs sigma) T1's codes line is an equation,

    g(z, theta) = rate_S sigma - <D_S, x - b - z D_S>_m = 0,       dg/dz = H = D_S m D_S^T,

so that `dz = -H^-1 (dg/dtheta) dtheta`, with one Cholesky factor a sample. The rule is written with the codes that it
differentiates, so it can be differentiated again, forward and in reverse.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from jaxdict.encoding.shards import Rows, by_shards
from jaxdict.numerics import matmul
from jaxdict.objectives import penalty_rates
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, metric_of, offset_of

# Slots of a sample's support where codes are traced, so that they cannot be counted.
TRACED_SLOTS = 64
# More slots than this are tried at half their number first.
FEW_SLOTS = 24
# Entries of the largest array of a block of samples; blocks recompute their factors in reverse mode instead of keeping them.
BLOCK_ENTRIES = 2**24


def implicit_codes(
    problem: Problem,
    dictionary: Dictionary,
    X: Float[Array, "samples d"],
    codes: Codes,
    *,
    slots: int | None = None,
    rows: Rows | None = None,
) -> Codes:
    """The given optimal codes, as a differentiable function of lam, metric, atoms, offset and data.

    Values are those given, untouched; derivatives are those of `argmin_{z >= 0} 1/2 ||x - b - z D||_m^2 + lam sum_k ||d_k|| z_k`
    on the support that the codes have: `dz_S = -(D_S m D_S^T)^-1 dg_S`, `dz = 0` off it. They are exact where the support is:
    what is left of g on it is first taken away by one Newton step (where that keeps all signs), so that codes solved to a
    loose tolerance do not blur them. Works under `grad`, `jvp`, `vjp`, `hessian`, jit and vmap.

    - **Changes of support**: a code at zero stays at zero. Where a zero code has correlation one (a kink) this is the derivative
      from the side on which it stays off.
    - **Singular supports** (an atom twice): a ridge of rounding's size gives nearly the smallest `dz`; changes of the
      data are shared by the copies, a change of one copy alone has no derivative and gives huge numbers.
    - Samples with NaN get derivative zero, and leave the others as they are.
    - `slots` bounds the support's size (default: what concrete codes need, else the slots of sparse codes, else 64 or the number
      of atoms). A sample of dense codes with a larger support gets NaN derivatives.

    - `rows`: how the samples are spread over devices, where that is known; each device then differentiates its own.

    Memory: samples x slots x max(slots, d) numbers, in blocks of bounded size.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> X, D = jnp.array([[3.0, 0.25]]), jd.Dictionary(jnp.eye(2))
    >>> def codes(lam):
    ...     problem = jd.Problem(lam=lam)
    ...     solved = jd.encode(jax.lax.stop_gradient(problem), D, X).codes
    ...     return implicit_codes(problem, D, X, solved)
    >>> jax.jacobian(codes)(0.5).tolist()
    [[-1.0, 0.0]]
    """
    X = jnp.asarray(X)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((problem, dictionary, X))):
        return codes  # nothing here can be differentiated
    problem = eqx.tree_at(lambda p: p.weights, problem, None, is_leaf=lambda leaf: leaf is None).astype(X.dtype)
    dictionary = Dictionary(jnp.asarray(dictionary.atoms, X.dtype), offset_of(dictionary).astype(X.dtype))
    given = jax.lax.stop_gradient(codes)
    if isinstance(given, SparseCodes):
        indices, values = given
        return SparseCodes(indices, _implicit((values.shape[1], rows), (problem, dictionary, X), indices, values))
    slots = _slots_for(given) if slots is None else min(slots, given.shape[1])
    return _implicit((slots, rows), (problem, dictionary, X), None, given)


def _slots_for(codes) -> int:
    """What the fullest of concrete codes needs, in eights so that similar codes share a compilation."""
    if isinstance(codes, Tracer) or not codes.is_fully_addressable:
        return min(TRACED_SLOTS, codes.shape[1])
    fullest = int(np.max(np.sum(np.asarray(codes) != 0, axis=1), initial=1))
    return min(codes.shape[1], 8 * -(-fullest // 8))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _implicit(static, inputs, indices, values):
    return values


@_implicit.defjvp
def _implicit_jvp(static, primals, tangents):
    inputs, indices, values = primals
    values = _implicit(static, inputs, indices, values)  # so that the rule's own derivative knows how codes move
    slots, rows = static

    def change(shared, by_sample):
        (problem, dictionary), (moved_problem, moved_dictionary) = shared
        X, moved_X, indices, values = by_sample
        inputs, moved = (problem, dictionary, X), (moved_problem, moved_dictionary, moved_X)
        return (
            _changes(inputs, moved, indices, values)
            if indices is not None
            else _dense_changes(slots, inputs, moved, values)
        )

    moved = tangents[0]
    shared, by_sample = (inputs[:2], moved[:2]), (inputs[2], moved[2], indices, values)
    return values, by_shards(rows, change, shared, by_sample)


def _dense_changes(slots, inputs, moved, values):
    """The change of dense codes; NaN where a sample has more than `slots` of them."""
    largest = jax.lax.top_k(jnp.abs(jax.lax.stop_gradient(values)), slots)[1]
    change = _changes(inputs, moved, largest, jnp.take_along_axis(values, largest, axis=1))
    # NaN by a product, which reverse mode keeps: a constant would be dropped there.
    complete = jnp.where(jnp.sum(values != 0, axis=1) <= slots, 1, jnp.nan).astype(values.dtype)
    at = jnp.arange(values.shape[0], dtype=largest.dtype)[:, None]
    return jnp.zeros_like(values).at[at, largest].add(change * complete[:, None])


@jax.jit
def _changes(inputs, moved, indices, values):
    """The slots' change `dz`; on half the slots, at a quarter of the cost, where all supports fit in them."""
    half = 8 * -(-indices.shape[1] // 16)
    if indices.shape[1] <= FEW_SLOTS:
        return _changes_on(inputs, moved, indices, values)

    def on_half(inputs, moved, indices, values):
        kept = jax.lax.top_k(jnp.abs(jax.lax.stop_gradient(values)), half)[1]
        part = [jnp.take_along_axis(array, kept, axis=1) for array in (indices, values)]
        at = jnp.arange(values.shape[0], dtype=kept.dtype)[:, None]
        return jnp.zeros_like(values).at[at, kept].add(_changes_on(inputs, moved, *part))

    fits = jnp.all(jnp.sum(values != 0, axis=1) <= half)
    return jax.lax.cond(fits, on_half, _changes_on, inputs, moved, indices, values)


def _changes_on(inputs, moved, indices, values):
    """The change of exactly these slots for a change of (problem, dictionary, X), sample by sample, in blocks where they are many."""
    problem, dictionary, X = inputs
    shared, shared_moved = (problem, dictionary), (moved[0], moved[1])

    def one(sample):
        x, dx, index, z = sample
        known = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(z))
        x, z = jnp.where(known, x, 0), jnp.where(known, z, 0)
        return active_set_change(shared, shared_moved, x, dx, index, z)

    samples = (X, moved[2], indices, values)
    n_samples, n_slots = indices.shape
    block = max(1, BLOCK_ENTRIES // (n_slots * max(n_slots, X.shape[1])))
    if n_samples <= block:
        return jax.vmap(one)(samples)
    return jax.lax.map(jax.checkpoint(one), samples, batch_size=block)


def active_set_change(shared, moved, x, dx, index, z):
    """One sample's `dz = -H^-1 dg` on its slots, linear in the changes (moved, dx)."""
    inside = z != 0

    def slope(shared, x, z):
        problem, dictionary = shared
        used = dictionary.atoms[index]
        pull = metric_of(problem, x) * (x - dictionary.offset - matmul(z, used))
        return jnp.where(inside, penalty_rates(problem, dictionary)[index] * jnp.sign(z) - matmul(used, pull), 0)

    solve = support_solver(shared, index, inside)
    step = jax.lax.stop_gradient(-solve(slope(shared, x, z)))
    z = z + jnp.where(jnp.all(jnp.sign(z + step) == jnp.sign(z)), step, 0)
    return -solve(jax.jvp(lambda shared, x: slope(shared, x, z), (shared, x), (moved, dx))[1])


def support_solver(shared, index, inside):
    """`v -> H^-1 v` on the slots inside the support, zero outside, by Cholesky of H scaled to a unit diagonal.

    The ridge lets duplicate atoms pass; one step of refinement takes its effect away wherever H is not singular.
    """
    problem, dictionary = shared
    used = jnp.where(inside[:, None], dictionary.atoms[index], 0)
    gram = matmul(used * metric_of(problem, used)[None], used.T)
    scale = jnp.where(inside, 1 / jnp.sqrt(jnp.where(inside, jnp.diagonal(gram), 1)), 0)
    gram = scale[:, None] * gram * scale[None]
    ridge = 8 * index.shape[0] * float(jnp.finfo(gram.dtype).eps)
    factor = jnp.linalg.cholesky(gram + jnp.diag(jnp.where(inside, ridge, 1).astype(gram.dtype)))

    def solve(v):
        v = scale * v
        first = cho_solve((factor, True), v)
        return scale * (first + cho_solve((factor, True), v - matmul(gram, first)))

    return solve
