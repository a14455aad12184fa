"""`best_subset`: at most so many codes a row, the best that greedy pursuit and exchanges find."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.arrays import is_concrete, look
from jaxdict.encoding.engines import Engine, on_engine
from jaxdict.encoding.exact import BEST_FOUND, EXCHANGES_CUT, NOT_FINITE, Encoding
from jaxdict.encoding.implicit import implicit_codes
from jaxdict.encoding.jax_engine.looks import slot_residual
from jaxdict.encoding.lasso import Lasso, Units
from jaxdict.encoding.shards import by_shards, rows_of
from jaxdict.encoding.slots import Slots, empty_slots
from jaxdict.encoding.subsets.doors import check_inputs, check_n_active, plain, slots_for, where_finite
from jaxdict.encoding.subsets.values import values_gap
from jaxdict.numerics import select
from jaxdict.problem import Codes, Dictionary, SparseCodes, sparse_codes
from jaxdict.validation import check_codes

# Exchanges of a sample, unless max_steps says otherwise.
MAX_STEPS = 200


def best_subset(
    dictionary: Dictionary,
    X: Float[Array, "samples d"],
    n_active: int | Int[Array, " samples"],
    *,
    start: Codes | None = None,
    signed: bool = False,
    metric=None,
    tol=1e-6,
    max_steps: int = MAX_STEPS,
    slots: int | None = None,
    method: str = "auto",
) -> Encoding:
    """Codes of at most `n_active[n]` features a row with a small error `1/2 ||x - b - z D||_m^2`: an upper bound on the least one.

    Orthogonal pursuit: the atom with the largest correlation for its norm joins, and all values are solved again (non-negative
    least squares), until a row has `n_active` codes or nothing correlates. Then exchanges: the one atom out and one atom in, values
    solved again, that lower the error most, until none lowers it by more than `tol` of `1/2 ||x - b||_m^2`. All pairs are looked
    at, so the end is a local optimum of exchanges; the least error over all supports is not known (the problem is NP-hard).

    **Arguments:**

    - `n_active`: how many codes a row may have, a number or (samples,).
    - `start`: codes to start from, at most `n_active` a row: each row's exchanges begin at the better of these, with the best values
      and with more atoms where there is room, and of the pursuit. So no row ends worse than it started, nor than the pursuit.
    - `signed`, `metric`, `method`: as in `refit_values`.
    - `tol`: a number; below about 1e-6 it means nothing in float32.
    - `max_steps`: exchanges of a row at most; 0 gives the pursuit alone.
    - `slots`: columns of the codes, at least the largest `n_active`; to be given where that is traced.

    **Returns** `Encoding(codes, gap, status, steps)`: `SparseCodes`; the gap of their values on the support found, as `values_gap`;
    `message()`; the most exchanges that a row took. Codes have derivatives that hold the support. **Raises** ValueError as `encode`,
    for an `n_active` that is no whole number from 0 on, and for a start with more codes. Works under jit and vmap (a start's
    largest codes are then taken), and on rows spread over devices.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> done = jd.best_subset(jd.Dictionary(jnp.eye(3)), jnp.array([[3.0, 0.25, 2.0]]), 2)
    >>> jd.dense_codes(done.codes, 3).tolist(), done.message()[:10]
    ([[3.0, 0.0, 2.0]], 'best found')
    """
    problem, dictionary, X = check_inputs(dictionary, X, signed, metric, method)
    n_atoms = dictionary.atoms.shape[0]
    size = slots_for(n_active, slots, n_atoms)
    most = check_n_active(n_active, X, n_atoms)
    if jnp.ndim(tol) != 0:
        raise ValueError(f"tol has shape {jnp.shape(tol)}; give a number")
    start = None if start is None else _checked_start(start, dictionary, X, most, signed)
    given = problem, dictionary, X
    stopped = jax.lax.stop_gradient((*given, start, jnp.asarray(tol, X.dtype)))
    rows = rows_of(X)
    codes, status, steps = _search(*stopped, most, method=method, slots=size, max_steps=int(max_steps), rows=rows)
    gap = values_gap(stopped[1], codes, stopped[2], signed=signed, metric=stopped[0].metric)
    return Encoding(implicit_codes(*given, codes, rows=rows), gap, status, steps)


def _checked_start(start: Codes, dictionary: Dictionary, X, most, signed: bool) -> Codes:
    """Codes to start from, which must have no more than n_active codes a row, where that can be looked at."""
    start = check_codes(start, dictionary, X, signed=signed)
    values = start.values if isinstance(start, SparseCodes) else start
    if is_concrete(values) and is_concrete(most):
        over = look(lambda xp, z, n: xp.sum(z != 0, axis=1) - n, values, most)
        if over.size and int(over.max()) > 0:
            row = int(over.argmax())
            raise ValueError(
                f"start has {int(over.max()) + int(most[row])} codes in row {row}, n_active {int(most[row])}; "
                "raise n_active, or start from fewer codes"
            )
    return start


@partial(jax.jit, static_argnames=("method", "slots", "max_steps", "rows"))
def _search(problem, dictionary, X, start, tol, most, *, method, slots, max_steps, rows):
    """Codes, status and steps."""

    def search_rows(shared, by_sample):
        (problem, dictionary, tol), (X, start, most) = shared, by_sample
        lasso, units = plain(problem, dictionary, X)
        begin = empty_slots(lasso.targets, slots) if start is None else _begin(start, units, most, slots)
        options = {"started": start is not None, "signed": problem.signed, "max_steps": max_steps}
        call = lambda engine, *args: _found(engine, *args, **options)  # noqa: E731
        found, made, cut = on_engine(method, call, lasso, begin, most, tol)
        codes = SparseCodes(jnp.where(found.values != 0, found.indices, 0), units.of_codes(found.values))
        return codes, made, cut

    codes, made, cut = by_shards(rows, search_rows, (problem, dictionary, tol), (X, start, most))
    bad = ~jnp.all(jnp.isfinite(codes.values))
    status = jnp.where(bad, NOT_FINITE, jnp.where(jnp.any(cut > 0), EXCHANGES_CUT, BEST_FOUND)).astype(jnp.int32)
    return codes, status, jnp.max(made, initial=0)


def _begin(start: Codes, units: Units, most, slots: int) -> Slots:
    """The largest `most` codes of the start, in the units of the plain problem."""
    listed = start if isinstance(start, SparseCodes) else sparse_codes(start, start.shape[1])
    sizes, order = jax.lax.top_k(jnp.abs(listed.values), min(slots, listed.values.shape[1]))
    kept = (jnp.arange(order.shape[1], dtype=most.dtype)[None] < most[:, None]) & (sizes > 0)
    values = jnp.where(kept, units.to_codes(jnp.take_along_axis(listed.values, order, axis=1)), 0)
    indices = jnp.where(kept, jnp.take_along_axis(listed.indices, order, axis=1), 0).astype(jnp.int32)
    room = [(0, 0), (0, slots - order.shape[1])]
    return Slots(jnp.pad(indices, room), jnp.pad(values, room))


def _found(engine: Engine, lasso: Lasso, begin: Slots, most, tol, *, started: bool, signed: bool, max_steps: int):
    """Slots after pursuit and exchanges, the exchanges made, and one where they were cut short."""
    search = partial(engine.supports, lasso, most=most, tol=tol, signed=signed)
    empty = begin._replace(values=jnp.zeros_like(begin.values))
    if started:
        pursued, own = search(empty, max_steps=0)[0], search(begin, max_steps=0)[0]
        begin = select(_error(lasso, pursued) < _error(lasso, own), pursued, own)
    found, made, cut = search(begin if started else empty, max_steps=max_steps)
    values = where_finite(lasso, engine.values(lasso, found, signed=signed))
    return _sorted(found._replace(values=values)), made, cut


def _sorted(slots: Slots) -> Slots:
    """The largest first, whichever way they were found."""
    order = jnp.argsort(-jnp.abs(slots.values), axis=1)
    return Slots(*(jnp.take_along_axis(array, order, axis=1) for array in slots))


def _error(lasso: Lasso, slots: Slots) -> Float[Array, " samples"]:
    return jnp.sum(slot_residual(lasso, slots) ** 2, axis=1)
