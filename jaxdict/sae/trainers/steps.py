"""The one training step of all architectures: Adam along the loss's slopes, dead latents counted and given a new life.

Each step's slopes are divided by their length. Adam remembers squares over a thousand steps, and those of the first ones, large beside
all later ones, would hold it back as long; SAE packages clip theirs at one, which does the same where the loss's units happen to fit.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide, safe_norm, unit_rows
from jaxdict.sae.trainers.architectures import Architecture, Here, Params
from jaxdict.sae.trainers.parts import geometric_median

# Rows that say where training starts.
START_ROWS = 4096
# A latent reborn starts with an encoder this much of the mean length of those alive (Bricken et al. 2023).
REBORN_LENGTH = 0.2
# T10's alternations from a residual to an atom.
BIRTH_STEPS = 2
# No latent is reborn in the last fifth of the steps, where the learning rate falls.
LAST_BIRTH = 0.8


class State(NamedTuple):
    """A run between two steps."""

    params: Params
    moments: Any  # optax's
    unused: Int[Array, " d_sae"]  # steps since a latent was last used
    running: Float[Array, " running"]


class Course(NamedTuple):
    """What steps follow, arrays all of it, so that other values are the same program; rates and weights a step each."""

    rates: Float[Array, " steps"]
    lams: Float[Array, " steps"]
    k: Float[Array, ""]
    steps: Float[Array, ""]
    dead_steps: Int[Array, ""]
    scale: Float[Array, ""]  # of the rows


class Origin(NamedTuple):
    """Where training starts: the rows' geometric median, and one over their root mean square distance from it."""

    offset: Float[Array, " d"]
    scale: Float[Array, ""]


@on_any_mesh
@partial(jax.jit, static_argnames="scaled")
def origin(X: Float[Array, "samples d"], scaled: bool) -> Origin:
    """Offset and scale of rows, of some that are spread evenly over them where there are many.

    >>> found = origin(jnp.array([[0.0], [2.0], [4.0]]), True)
    >>> round(float(found.offset[0]), 3), round(float(1 / found.scale) ** 2, 3)  # mean of 4, 0, 4
    (2.0, 2.667)
    """
    few = X.shape[0] <= START_ROWS
    sample = X if few else X[np.linspace(0, X.shape[0] - 1, START_ROWS).round().astype(int)]
    offset = geometric_median(sample)
    spread = jnp.sqrt(jnp.mean(jnp.sum((sample - offset) ** 2, axis=1)))
    found = jnp.where(spread > 0, 1 / jnp.where(spread > 0, spread, 1), 1)
    return Origin(offset, found if scaled else jnp.ones_like(found))


@on_any_mesh
@partial(jax.jit, static_argnames=("architecture", "d_sae"))
def first_state(architecture: Architecture, key, start: Origin, d_sae: int) -> State:
    """Random unit atoms, their transpose for an encoder, the rows' median for an offset."""
    return _first_state(architecture, key, start, d_sae)


@on_any_mesh
@partial(jax.jit, static_argnames=("architecture", "d_sae"))
def first_states(architecture: Architecture, keys, start: Origin, d_sae: int) -> State:
    """`first_state` of each key."""
    return jax.vmap(lambda key: _first_state(architecture, key, start, d_sae))(keys)


def _first_state(architecture, key, start, d_sae) -> State:
    zeros = jnp.full_like(start.scale, 0, shape=(d_sae,))  # born from the rows, so that it varies where they do
    atoms = unit_rows(jax.random.normal(key, (d_sae, start.offset.shape[0]), zeros.dtype)) + zeros[:, None]
    atoms = atoms * architecture.start_norm
    params = _around(architecture, atoms, atoms, start.offset * start.scale)
    moments = optax.scale_by_adam(b1=architecture.momentum).init(params)
    moments = jax.tree.map(lambda moment: moment + jnp.zeros_like(zeros[0], moment.dtype), moments)
    return State(params, moments, jnp.zeros_like(zeros, jnp.int32), architecture.running(zeros[0]))


def _around(architecture: Architecture, atoms, encoders, b_dec) -> Params:
    """Parameters with these rows of decoder and encoder, and nothing else known."""
    zeros = jnp.zeros_like(atoms[:, 0])
    tied = architecture.name == "matching_pursuit"
    W_enc: Any
    b_enc: Any
    W_enc, b_enc = (None, None) if tied else (encoders.T, zeros)
    return Params(W_enc, b_enc, atoms, b_dec, **architecture.more(zeros))


@on_any_mesh
@partial(jax.jit, static_argnames="architecture")
def one_step(architecture: Architecture, state: State, rows: Float[Array, "samples d"], course: Course, first, at):
    """A step on rows that were read elsewhere; number `at`, `first` being that of the course's first entry."""
    return _step(architecture, state, rows, course, first, at, _some_dead(state, course))


@on_any_mesh
@partial(jax.jit, static_argnames=("architecture", "size"))
def some_steps(
    architecture: Architecture, state: State, key, X: Float[Array, "samples d"], course: Course, first, until, size: int
):
    """Steps `first` to `until` on batches drawn from X: the key of a step is `fold_in(key, step)`."""

    def step(at, carry):
        rows = _drawn(key, at, X, size)
        return _step(architecture, carry[0], rows, course, first, at, _some_dead(carry[0], course))

    return jax.lax.fori_loop(first, until, step, (state, jnp.zeros_like(state.params.b_dec[0])))


@on_any_mesh
@partial(jax.jit, static_argnames=("architecture", "size"))
def some_steps_of_all(
    architecture: Architecture,
    states: State,
    keys,
    X: Float[Array, "samples d"],
    courses: Course,
    first,
    until,
    size: int,
):
    """`some_steps` of many runs side by side, each with its key, its weights and its k, on the same rows."""
    own = Course(rates=None, lams=0, k=0, steps=None, dead_steps=None, scale=None)  # type: ignore[arg-type]

    def step(at, carry):
        # Asked of all runs at once: asked of each, vmap would compute for all of them what only a dead latent calls for.
        some_dead = _some_dead(carry[0], courses)

        def one(state, key, course):
            return _step(architecture, state, _drawn(key, at, X, size), course, first, at, some_dead)

        return jax.vmap(one, in_axes=(0, 0, own))(carry[0], keys, courses)

    return jax.lax.fori_loop(first, until, step, (states, jnp.zeros_like(states.params.b_dec[:, 0])))


def _drawn(key, step, X: Float[Array, "samples d"], size: int):
    return X[jax.random.randint(jax.random.fold_in(key, step), (size,), 0, X.shape[0])]


def _some_dead(states: State, course: Course) -> Bool[Array, ""]:
    return jnp.any(states.unused >= course.dead_steps)


def _step(
    architecture: Architecture, state: State, rows, course: Course, first, at, some_dead
) -> tuple[State, Float[Array, ""]]:
    """One step; the loss it started from, in the units of training."""
    x, place = rows * course.scale, at - first
    lam, dead = course.lams[place], state.unused >= course.dead_steps
    here = Here(lam, course.k, jnp.asarray(at, x.dtype), course.steps, dead, some_dead, state.running)

    def loss_of(params):
        return architecture.loss(params, x, here)

    (loss, seen), slopes = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    length = optax.tree.norm(slopes)
    slopes = jax.tree.map(lambda slope: safe_divide(slope, length), slopes)
    directions, moments = optax.scale_by_adam(b1=architecture.momentum).update(slopes, state.moments)
    rate = course.rates[place]
    params = jax.tree.map(lambda array, direction: array - rate * direction, state.params, directions)
    unused = jnp.where(seen.fired, 0, state.unused + 1)
    state = State(params, moments, unused, seen.running)
    if not architecture.reborn:
        return state, loss
    due = ((at + 1) % course.dead_steps == 0) & (at + 1 < LAST_BIRTH * course.steps)
    revive = partial(_revived, architecture, architecture.level(lam), seen.residual)
    return jax.lax.cond(due, lambda: revive(state, state.unused >= course.dead_steps), lambda: state), loss


def _revived(architecture: Architecture, level, r, state: State, dead: Bool[Array, " d_sae"]) -> State:
    """Dead latents moved to where the residuals of the batch want an atom (T10), moments and all.

    Each starts at a residual of its own, the largest first, and goes on by T10's iteration; it is reborn where it would gain.
    """
    order = jnp.argsort(-safe_norm(r))
    atoms = unit_rows(r[order[(jnp.cumsum(dead) - 1) % r.shape[0]]])
    for _ in range(BIRTH_STEPS):
        z = jax.nn.relu(matmul(r, atoms.T) - level)
        better = unit_rows(matmul(z.T, r))
        atoms = jnp.where(jnp.any(z > 0, axis=0)[:, None], better, atoms)
    born = dead & jnp.any(matmul(r, atoms.T) > level, axis=0)
    params, alive = state.params, ~dead
    encoders = atoms if params.W_enc is None else atoms * REBORN_LENGTH * _mean_over(safe_norm(params.W_enc.T), alive)
    fresh = _around(architecture, atoms * _mean_over(safe_norm(params.W_dec), alive), encoders, params.b_dec)
    blank = jax.tree.map(jnp.zeros_like, params)
    moments = state.moments._replace(
        mu=_by_latent(born, blank, state.moments.mu), nu=_by_latent(born, blank, state.moments.nu)
    )
    unused = jnp.where(born, 0, state.unused)
    return State(_by_latent(born, fresh, params), moments, unused, state.running)


def _mean_over(values: Float[Array, " d_sae"], which: Bool[Array, " d_sae"]) -> Float[Array, ""]:
    """The mean of some of them; one where there are none."""
    count = jnp.sum(which)
    total = jnp.sum(jnp.where(which, values, 0))
    return jnp.where(count > 0, total / jnp.maximum(count, 1).astype(values.dtype), 1)


def _by_latent(where: Bool[Array, " d_sae"], new: Params, old: Params) -> Params:
    """The new parameters of some latents, the old ones of the rest; the offset stays."""
    one = {"W_dec": where[:, None]}

    def merged(name) -> Any:
        former, latter = getattr(old, name), getattr(new, name)
        return former if former is None or name == "b_dec" else jnp.where(one.get(name, where), latter, former)

    return Params(*(merged(name) for name in Params._fields))
