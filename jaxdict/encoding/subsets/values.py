"""`refit_values`: the best values on given supports; `values_gap`: how far any values are from them."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxdict.encoding.engines import on_engine
from jaxdict.encoding.implicit import implicit_codes
from jaxdict.encoding.jax_engine.values import by_blocks, support_solve
from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.shards import by_shards, rows_of
from jaxdict.encoding.slots import Slots
from jaxdict.encoding.subsets.doors import check_inputs, plain, where_finite
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul
from jaxdict.problem import Codes, Dictionary, SparseCodes, sparse_codes
from jaxdict.validation import check_codes

# Entries of the largest array of a block of samples.
BLOCK_ENTRIES = 2**24


def refit_values(
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    *,
    signed: bool = False,
    metric=None,
    slots: int | None = None,
    method: str = "auto",
) -> SparseCodes:
    """The best values on each row's own support: `argmin_{z >= 0, z = 0 off S_n} 1/2 ||x - b - z D||_m^2`, S_n where codes are not zero.

    Non-negative least squares, exactly, by an active set (Lawson and Hanson 1974); `values_gap` proves it. What an encoder loses
    to shrinking and mixing up its values, at the features that it chose, is the difference. A value may become zero.

    **Arguments:**

    - `codes`: (samples, atoms), or `SparseCodes`; of negative ones only with `signed`.
    - `signed`: values with signs free, plain least squares on the support.
    - `metric`: (d,) positive weight of each input dimension; by default ones.
    - `slots`: of dense codes, how many a row may have (default: what the fullest row has; to be given under jit, where the largest
      ones are kept).
    - `method`: "numba" (compiled kernels for the CPU), "jax", or "auto": "numba" on a CPU where it is installed.

    **Returns** `SparseCodes` with the indices that sparse codes came with. On a support with an atom in the span of others the values
    are one best choice of many. Derivatives with respect to atoms, offset, metric and X hold the support (implicit function theorem).
    **Raises** ValueError as `encode`. Works under jit and vmap, and on rows spread over devices.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> shrunken = jnp.array([[2.5, 0.0]])
    >>> jd.refit_values(jd.Dictionary(jnp.eye(2)), shrunken, jnp.array([[3.0, 0.25]])).values.tolist()
    [[3.0]]
    """
    problem, dictionary, X = check_inputs(dictionary, X, signed, metric, method)
    codes = sparse_codes(check_codes(codes, dictionary, X, signed=signed), slots)
    given = problem, dictionary, X
    arrays = jax.lax.stop_gradient((*given, codes))
    rows = rows_of(X)
    found = _refit(*arrays, method=method, rows=rows)
    return implicit_codes(*given, found, rows=rows)  # type: ignore[return-value]


@partial(jax.jit, static_argnames=("method", "rows"))
def _refit(problem, dictionary, X, codes, *, method, rows):
    def refit_rows(shared, by_sample):
        (problem, dictionary), (X, codes) = shared, by_sample
        lasso, units = plain(problem, dictionary, X)
        call = lambda engine, *args: engine.values(*args, signed=problem.signed)  # noqa: E731
        slots = Slots(codes.indices.astype(jnp.int32), units.to_codes(codes.values))
        values = units.of_codes(where_finite(lasso, on_engine(method, call, lasso, slots)))
        return codes._replace(values=jnp.where(codes.values != 0, values, 0))

    return by_shards(rows, refit_rows, (problem, dictionary), (X, codes))


def values_gap(
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    *,
    support: Codes | None = None,
    signed: bool = False,
    metric=None,
    slots: int | None = None,
) -> Float[Array, " samples"]:
    """How much a row's error `1/2 ||x - b - z D||_m^2` is above the least one on its support, at most: zero proves the values best.

    With `c = <D_S, r>_m` and `v = c` (at a value of zero that must not be negative `max(c, 0)`), convexity gives
    `1/2 ||r||^2 - min <= 1/2 v (D_S m D_S^T)^-1 v`: with signs free this is the gap itself. Computed from the point alone, so it
    trusts no solver; on a support with dependent atoms it holds to rounding.

    **Arguments:** as `refit_values`, and `support`: codes whose non-zero entries say where values may be (default: `codes`). The gap
    of codes that are not zero elsewhere is infinite.

    **Returns** (samples,) in the units of X squared. **Raises** ValueError as `encode`. Works under jit, vmap and grad.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> D, X = jd.Dictionary(jnp.eye(2)), jnp.array([[3.0, 0.25]])
    >>> jd.values_gap(D, jnp.array([[2.5, 0.0]]), X).tolist(), jd.values_gap(D, jnp.array([[3.0, 0.0]]), X).tolist()
    ([0.125], [0.0])
    """
    problem, dictionary, X = check_inputs(dictionary, X, signed, metric, "auto")
    codes = sparse_codes(check_codes(codes, dictionary, X, signed=signed), slots)
    within = codes if support is None else sparse_codes(check_codes(support, dictionary, X, signed=True), slots)
    return _gap(problem, dictionary, X, codes, within)


def _gaps(problem, dictionary, X, codes, support):
    lasso, units = plain(problem, dictionary, X)
    values = units.to_codes(codes.values)
    entries = support.indices.shape[1] * max(support.indices.shape[1], codes.indices.shape[1], X.shape[1])
    arrays = (lasso.targets, codes.indices, values, support.indices, support.values != 0)
    gap = by_blocks(jax.vmap(partial(_gap_of, lasso, problem.signed)), arrays, X.shape[0], entries, BLOCK_ENTRIES)
    return gap * units.targets * units.targets


_gap = on_any_mesh(jax.jit(_gaps), lambda rows: P(rows))


def _gap_of(lasso: Lasso, signed: bool, y, indices, values, at, inside):
    """The bound for one sample, whose values may be where `at` says, `inside`."""
    same = inside[:, None] & (at[:, None] == indices[None])  # which slot of the support holds which value
    earlier = jnp.tril(at[:, None] == at[None], -1) & inside[None]
    inside = inside & ~jnp.any(earlier, axis=1)  # an atom named twice counts once
    z = matmul(same.astype(values.dtype), values)
    used = jnp.where(inside[:, None], lasso.atoms[at], 0)
    pull = matmul(used, y - matmul(values, lasso.atoms[indices]))
    slack = pull if signed else jnp.where(z > 0, pull, jnp.maximum(pull, 0))
    gap = 0.5 * matmul(slack, support_solve(matmul(used, used.T), inside)(slack))
    covered = jnp.all((values == 0) | jnp.any(same, axis=0))
    return jnp.where(covered, jnp.maximum(gap, 0), jnp.inf)
