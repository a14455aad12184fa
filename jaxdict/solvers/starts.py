"""Where a fit starts: atoms from the data or at random, by an explicit key."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdict.compiling import compiled_in_a_hurry
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, pairwise_sum, safe_norm, unit_rows
from jaxdict.problem import Dictionary, Problem, sample_weights

STARTS = ("data", "random")
# A sample this many times as far from the middle as the median one is an outlier.
OUTLYING = 100


def initial_offset(problem: Problem, X: Float[Array, "samples d"]) -> Float[Array, " d"]:
    """The weighted mean where the offset is free (optimal for zero codes), else zeros; outliers, which would drag it away from all
    the others, do not count."""
    if not problem.offset:
        return jnp.zeros_like(X[0])
    return _mean(problem, X, outliers(problem, X))


def outliers(problem: Problem, X: Float[Array, "samples d"]) -> Bool[Array, " samples"]:
    """Samples more than a hundred times as far as the median one from the coordinates' medians (from zero without an offset).

    Their squares outweigh all others, so a start that knows nothing of them ends at a point that serves them badly and nobody else.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> outliers(jd.Problem(lam=0.1), jnp.array([[1.0], [2.0], [3.0], [4.0], [900.0]])).tolist()
    [False, False, False, False, True]
    """
    counted = sample_weights(problem, X) > 0
    middle = _median(X, counted) if problem.offset else jnp.zeros_like(X[0])
    far = safe_norm(X - middle[None])
    typical = _median(far[:, None], counted)[0]
    return counted & (far > OUTLYING * typical) & (typical > 0)


def _median(values: Float[Array, "samples d"], counted) -> Float[Array, " d"]:
    """The (lower) median of each column over the samples that count.

    By halving on numbers that order as floats do, bit for bit: only counts are summed over samples, where a sort would bring them together.
    """
    kind = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    ends = jnp.iinfo(kind)
    ordered = _mirrored(jax.lax.bitcast_convert_type(values, kind))
    n_counted = jnp.sum(counted)

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)
        enough = jnp.sum((ordered <= middle) & counted[:, None], axis=0) > (n_counted - 1) // 2
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    bounds = jnp.full_like(ordered[0], ends.min), jnp.full_like(ordered[0], ends.max)
    found = jax.lax.fori_loop(0, ends.bits, halve, bounds)[1]
    return jnp.where(n_counted > 0, jax.lax.bitcast_convert_type(_mirrored(found), values.dtype), jnp.inf)


def _mirrored(bits):
    """A float's bits as an integer that orders as the float does, and back."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _mean(problem: Problem, X: Float[Array, "samples d"], left_out) -> Float[Array, " d"]:
    w = sample_weights(problem, X)
    kept = jnp.where(left_out, 0, w)
    share = jnp.where(jnp.any(left_out), pairwise_sum(kept) / X.shape[0], 1)
    return pairwise_sum(kept[:, None] * X) / X.shape[0] / share


def start_dictionary(
    problem: Problem, X: Float[Array, "samples d"], n_atoms: int, key, start: str = "data"
) -> Dictionary:
    """Unit atoms to start from: "data", directions of distinct samples; "random", uniform on the sphere.

    Samples are drawn without replacement, those whose direction repeats another's (found by sorting one random projection)
    or has weight or length zero only when no others are left. With either start `outliers` come first and get an atom each, up to
    half of the atoms, the farthest first.

    >>> import jax, jax.numpy as jnp, jaxdict as jd
    >>> start_dictionary(jd.Problem(lam=0.1), jnp.eye(4), 3, jax.random.key(0)).atoms.shape
    (3, 4)
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is unknown; use one of {STARTS} or a Dictionary")
    return _start_on_any_mesh(problem, X, n_atoms, key, start)


@partial(compiled_in_a_hurry, light=lambda: True, static_argnums=(2, 4))
def _start(problem: Problem, X: Float[Array, "samples d"], n_atoms: int, key, start: str) -> Dictionary:
    X = jax.lax.optimization_barrier(
        X
    )  # data that a program closes over are sorted when it runs, not for seconds while it compiles
    extreme = outliers(problem, X)
    offset = _mean(problem, X, extreme) if problem.offset else jnp.zeros_like(X[0])
    draw, project = jax.random.split(key)
    moved = X - offset[None]
    directions = unit_rows(moved)
    usable = (sample_weights(problem, X) > 0) & jnp.any(directions != 0, axis=1)
    height = matmul(directions, jax.random.normal(project, X.shape[1:], X.dtype))
    order = jnp.argsort(height)
    sorted_height = height[order]
    close = jnp.abs(jnp.diff(sorted_height)) <= 32 * jnp.finfo(X.dtype).eps * (1 + jnp.abs(sorted_height[1:]))
    repeats = jnp.zeros_like(usable).at[order[1:]].set(close)
    luck = jax.random.uniform(draw, usable.shape, X.dtype) + jnp.where(usable & ~repeats, 1, 0)
    far = jnp.where(extreme & ~repeats, safe_norm(moved), 0)
    farthest, places = jax.lax.top_k(far, max(1, n_atoms // 2))
    luck = luck.at[places].add(jnp.where(farthest > 0, 2, 0).astype(X.dtype))
    chosen = jax.lax.top_k(luck, n_atoms)[1]
    atoms = directions[chosen]
    spare = unit_rows(jax.random.normal(key if start == "random" else project, atoms.shape, X.dtype))
    drawn = jnp.any(atoms != 0, axis=1) & ((luck[chosen] > 2) | (start == "data"))
    return Dictionary(jnp.where(drawn[:, None], atoms, spare), offset)


_start_on_any_mesh = on_any_mesh(_start)
