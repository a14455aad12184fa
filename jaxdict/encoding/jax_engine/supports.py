"""Best supports of a given size by plain JAX: atoms join by their correlation, then exchanges of one for one, all samples abreast.

A sample keeps the rows B of the Gram matrix of the atoms that it uses. With their inverse Gram matrix H, W = H B, and q2 the squared
norms of what of all atoms lies outside their span,

    exchange i for j:   (c_j + z_i W_ij / H_ii)^2 / (2 (q2_j + W_ij^2 / H_ii)) - z_i^2 / (2 H_ii)

is how much the error falls with signs free, and at most so much with values that must stay non-negative. The numba kernels take the
same moves.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.encoding.jax_engine.values import by_blocks, least_squares, support_solve
from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.slots import Slots
from jaxdict.numerics import einsum, matmul

# Above this many atoms the Gram matrix is not formed: its rows come from products, as they are wanted.
GRAM_ATOMS = 2048
# Entries of the largest array of a block of samples, (block, slots, atoms).
BLOCK_ENTRIES = 2**22
# Exchanges of a sample that are tried at once, those of the largest bounds.
TRIED = 4
# Additions that a sample may take, as multiples of its slots: with values that may become zero, atoms come and go.
ADDITIONS = 8


class State(NamedTuple):
    """A block of samples: atoms in use (a value of zero: an empty slot), rows of the Gram matrix by slot, moves made."""

    indices: Int[Array, "samples slots"]
    values: Float[Array, "samples slots"]
    rows: Float[Array, "samples slots atoms"]
    added: Int[Array, " samples"]
    made: Int[Array, " samples"]
    done: Int[Array, " samples"]  # one: no move helps


class Given(NamedTuple):
    """What the moves of a block need: correlations of its targets, their energies, how many atoms each may use."""

    pulls: Float[Array, "samples atoms"]
    energy: Float[Array, " samples"]
    most: Int[Array, " samples"]
    norms: Float[Array, " atoms"]  # squared
    bar: Float[Array, " samples"]  # what an exchange must gain


def supports_by_jax(
    lasso: Lasso, start: Slots, most: Int[Array, " samples"], tol, *, signed: bool, max_steps: int
) -> tuple[Slots, Int[Array, " samples"], Int[Array, " samples"]]:
    """At most `most` atoms a sample from those in `start`; exchanges made, and one where `max_steps` cut them short."""
    atoms = lasso.atoms
    gram = matmul(atoms, atoms.T) if atoms.shape[0] <= GRAM_ATOMS else None
    rows_of = (lambda new: gram[new]) if gram is not None else (lambda new: matmul(atoms[new], atoms.T))
    norms = jnp.sum(atoms * atoms, axis=1)

    def one(targets, indices, values, most):
        energy = 0.5 * jnp.sum(targets * targets, axis=1)
        bar = jnp.maximum(tol, 4 * float(jnp.finfo(energy.dtype).eps)) * energy
        given = Given(matmul(targets, atoms.T), energy, most, norms, bar)
        return _search(given, rows_of, Slots(indices, values), signed, max_steps)

    n, n_slots = start.values.shape
    arrays = (lasso.targets, start.indices.astype(jnp.int32), start.values, most.astype(jnp.int32))
    return by_blocks(one, arrays, n, n_slots * atoms.shape[0], BLOCK_ENTRIES)


def _search(given: Given, rows_of, start: Slots, signed: bool, max_steps: int):
    """Moves until no sample has one left."""
    n_slots = start.values.shape[1]
    inside = start.values != 0 if signed else start.values > 0
    indices, values = jnp.where(inside, start.indices, 0), jnp.where(inside, start.values, 0)
    rows = jax.lax.map(rows_of, indices.T).swapaxes(0, 1)
    zeros = jnp.zeros_like(indices[:, 0])
    state = _refitted(given, State(indices, values, rows, zeros, zeros, zeros), signed)
    add, exchange = partial(_add, given, rows_of, signed), partial(_exchange, given, rows_of, signed)

    def adding(state: State):
        used = jnp.sum(state.values != 0, axis=1, dtype=given.most.dtype)
        return (state.done == 0) & (used < given.most) & (state.added < ADDITIONS * n_slots)

    def full(state: State):
        return (state.done == 0) & ~adding(state) & (state.made < max_steps)

    def move(state: State):
        wanted = adding(state)
        return jax.lax.cond(jnp.any(wanted), lambda s: add(s, wanted), lambda s: exchange(s, full(s)), state)

    found = jax.lax.while_loop(lambda s: jnp.any(adding(s) | full(s)), move, state)
    cut = ((found.done == 0) & (given.most > 0)).astype(jnp.int32)
    return Slots(found.indices, found.values), found.made, cut


def _correlations(given: Given, state: State) -> Float[Array, "samples atoms"]:
    return given.pulls - einsum("ns,nsk->nk", state.values, state.rows)


def _blocks_of(state: State) -> Float[Array, "samples slots slots"]:
    """The Gram matrix of each sample's slots."""
    return jnp.take_along_axis(state.rows, state.indices[:, None, :], axis=2)


def _refitted(given: Given, state: State, signed: bool) -> State:
    """The state with the best values on its slots."""
    pull = jnp.take_along_axis(_correlations(given, state), state.indices, axis=1)
    scale = jnp.max(jnp.abs(given.pulls), axis=1, initial=0)
    solve = jax.vmap(partial(least_squares, signed=signed))
    return state._replace(values=solve(_blocks_of(state), pull, state.values, state.values != 0, scale))


def _outside(state: State, array, filling):
    """An array over all atoms, with the filling at those in use."""
    rows = jnp.arange(array.shape[0], dtype=jnp.int32)[:, None]
    at = jnp.where(state.values != 0, state.indices, array.shape[-1])
    return array.at[rows, at].set(filling, mode="drop")


def _add(given: Given, rows_of, signed: bool, state: State, wanted) -> State:
    """The atom with the largest correlation for its norm joins each wanted sample, in an empty slot."""
    c = _correlations(given, state)
    noise = 16 * float(jnp.finfo(c.dtype).eps) * jnp.sqrt(2 * given.energy * jnp.max(given.norms))
    height = _outside(state, jnp.abs(c) if signed else c, 0)
    pulls = height > noise[:, None]
    share = jnp.where(pulls, height / jnp.sqrt(jnp.where(given.norms > 0, given.norms, 1)), 0)
    new, slot = jnp.argmax(share, axis=1).astype(jnp.int32), jnp.argmax(state.values == 0, axis=1).astype(jnp.int32)
    values, fall = _tried(given, state, c, slot[:, None], new[:, None], signed)
    takes = wanted & jnp.any(pulls, axis=1) & (fall[:, 0] > 0)
    state = _moved(state, rows_of, takes, slot, new, values[:, 0])
    return state._replace(added=state.added + takes.astype(jnp.int32), done=jnp.where(wanted & ~takes, 1, state.done))


def _exchange(given: Given, rows_of, signed: bool, state: State, wanted) -> State:
    """The exchange that lowers the error of each wanted sample most, if it does so by more than the bar."""
    c = _correlations(given, state)
    gains = jnp.where(wanted[:, None, None], _bounds(given, state, c, signed), -jnp.inf)
    none = jnp.zeros_like(state.indices[:, 0])
    tried = min(TRIED, gains.shape[1])
    at = jnp.arange(gains.shape[0], dtype=jnp.int32)[:, None]

    def untried(carry):
        gains, best = carry[:2]
        return jnp.any(jnp.max(gains, axis=(1, 2)) > best)

    def attempt(carry):
        gains, best, out, new, values = carry
        inward = jnp.argmax(gains, axis=2).astype(jnp.int32)
        tops = jnp.take_along_axis(gains, inward[:, :, None], axis=2)[..., 0]
        tops, slots = jax.lax.top_k(tops, tried)
        slots = slots.astype(jnp.int32)
        atoms = jnp.take_along_axis(inward, slots, axis=1)
        found, falls = _tried(given, state, c, slots, atoms, signed)
        falls = jnp.where(tops > best[:, None], falls, -jnp.inf)
        first = jnp.argmax(falls, axis=1)[:, None]
        pick = lambda array: jnp.take_along_axis(array, first, axis=1)[:, 0]  # noqa: E731
        better = pick(falls) > best
        chosen = jnp.take_along_axis(found, first[:, :, None], axis=1)[:, 0]
        return (
            gains.at[at, slots, atoms].set(-jnp.inf),
            jnp.where(better, pick(falls), best),
            jnp.where(better, pick(slots), out),
            jnp.where(better, pick(atoms), new),
            jnp.where(better[:, None], chosen, values),
        )

    start = (gains, given.bar, none - 1, none, state.values)
    _, _, out, new, values = jax.lax.while_loop(untried, attempt, start)
    takes = wanted & (out >= 0)
    state = _moved(state, rows_of, takes, jnp.maximum(out, 0), new, values)
    return state._replace(made=state.made + takes.astype(jnp.int32), done=jnp.where(wanted & ~takes, 1, state.done))


def _bounds(given: Given, state: State, c, signed: bool) -> Float[Array, "samples slots atoms"]:
    """How much each exchange lowers the error at most, with signs free exactly; -inf where there is none."""
    inside, B = state.values != 0, state.rows
    eye = jnp.eye(inside.shape[1], dtype=B.dtype)
    inverse = jax.vmap(lambda gram, inside: jax.vmap(support_solve(gram, inside), 1, 1)(eye))(_blocks_of(state), inside)
    W = einsum("nst,ntk->nsk", inverse, jnp.where(inside[:, :, None], B, 0))
    outside = given.norms[None] - jnp.sum(jnp.where(inside[:, :, None], W * B, 0), axis=1)
    h = jnp.where(inside, jnp.diagonal(inverse, axis1=1, axis2=2), 1)
    h, z = h[:, :, None], state.values[:, :, None]
    pull, part = c[:, None] + z * W / h, outside[:, None] + W * W / h
    least = max(1e-10, 1000 * float(jnp.finfo(B.dtype).eps))  # smaller parts are rounding
    good = (part > least * given.norms) & inside[:, :, None]
    good = good if signed else good & (pull > 0)
    gains = jnp.where(good, 0.5 * pull * pull / jnp.where(good, part, 1) - 0.5 * z * z / h, -jnp.inf)
    return jax.vmap(_outside, (None, 1, None), 1)(state, gains, -jnp.inf)


def _tried(given: Given, state: State, c, out, new, signed: bool):
    """Best values with atom `new` in slot `out`, for several of both (samples, tries); how much the error falls."""

    def one(gram, rows, indices, values, pulls, c, scale, out, new):
        here = jnp.arange(values.shape[0], dtype=out.dtype) == out
        row = jnp.where(here, given.norms[new], rows[:, new])
        gram = jnp.where(here[:, None], row[None], jnp.where(here[None], row[:, None], gram))
        q = jnp.where(here, pulls[new], pulls[indices])
        kept = jnp.where(here, 0, values)
        pull = jnp.where(here, c[new], c[indices]) + values[out] * jnp.where(here, rows[out, new], rows[out, indices])
        z = least_squares(gram, pull, kept, here | (values != 0), scale, signed=signed)
        before = jnp.sum(values * (pulls[indices] + c[indices]))
        return z, 0.5 * (jnp.sum(z * (q + pull - matmul(gram, z - kept))) - before)

    sizes = jnp.max(jnp.abs(given.pulls), axis=1, initial=0)
    several = jax.vmap(one, (None,) * 7 + (0, 0))
    shared = (_blocks_of(state), state.rows, state.indices, state.values, given.pulls, c, sizes)
    return jax.vmap(several)(*shared, out, new)


def _moved(state: State, rows_of, takes, slot, new, values) -> State:
    """The state of samples that take a move: its values, its atom in its slot."""
    put = takes[:, None] & (jnp.arange(state.values.shape[1], dtype=slot.dtype)[None] == slot[:, None])
    rows = jnp.where(put[:, :, None], rows_of(new)[:, None, :], state.rows)
    return state._replace(
        indices=jnp.where(put, new[:, None], state.indices),
        values=jnp.where(takes[:, None], values, state.values),
        rows=rows,
    )
