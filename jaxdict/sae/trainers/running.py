"""`train`: rows, an architecture and a key in, a sparse autoencoder out; `train_batch`: many of one shape as one program."""

from collections import namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxdict.meshes import on_any_mesh
from jaxdict.sae.models import SAE
from jaxdict.sae.trainers.architectures import Architecture
from jaxdict.sae.trainers.asking import asked, check_training, steps_wanted
from jaxdict.sae.trainers.rows import InMemory, rows_of
from jaxdict.sae.trainers.steps import Course, Origin, State, first_state, first_states, origin, some_steps_of_all
from jaxdict.storage import digest
from jaxdict.streaming.checkpoints import Checkpoints

# Steps between two calls of the callback: one compiled loop each.
STEPS_PER_LOOK = 100


def train(
    X: Float[Array, "samples d_in"],
    d_sae: int,
    *,
    key,
    architecture: str | Architecture = "standard",
    lam: float | None = None,
    k: float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 1024,
    learning_rate: float | Callable = 1e-3,
    lam_warm_up: int = 0,
    dead_steps: int = 1000,
    scaled: bool = True,
    checkpoint=None,
    callback: Callable[[int, int, float], Any] | None = None,
) -> SAE:
    """A sparse autoencoder trained by Adam, one compiled step for all architectures.

    | `architecture` | sparse by | loss, in the mean over a batch, `r = x - x_hat` |
    |---|---|---|
    | "standard" | `lam` | `1/2 ||r||^2 + lam sum_k ||d_k|| f_k`: problem P's, half that of SAE packages at `l1_coefficient = 2 lam` |
    | "gated" | `lam` | `1/2 ||r||^2 + lam sum_k ||d_k|| relu(g_k) + 1/2 ||x - relu(g) D - b||^2`, g what opens the gates |
    | "jumprelu" | `lam` | `1/2 ||r||^2 + lam sum_k 1[p_k > theta_k]`, slopes in theta estimated near it |
    | "p_anneal" | `lam` | `1/2 ||r||^2 + c lam sum_k (||d_k|| f_k)^p`, p from 1 to 0.2 |
    | "topk", "batchtopk" | `k` | `1/2 ||r||^2 + 1/2 ||r - z' D||^2`, k codes in each row, or on average; z' codes of dead latents |
    | "matryoshka" | `k` | as batchtopk, `1/2 ||r||^2` summed over prefixes of the latents |
    | "matching_pursuit" | `k` | `1/2 ||r||^2`, codes by k steps of matching pursuit |

    Each is a class in `jaxdict.sae.trainers` (`Standard`, `JumpReLU(bandwidth=...)`, `Matryoshka(group_sizes=...)`, ...) whose docstring
    has the formulas and whose fields are its fixed numbers; give an instance to set them. Decoder rows start as random vectors of norm
    0.1 (1 for jumprelu and matching pursuit), the encoder as their transpose, `b_dec` as the rows' geometric median; each step's slopes
    are divided by their length before Adam sees them. The result has unit decoder rows, is for X as given, and codes as training did;
    batch top-k and Matryoshka end with one threshold, as jumprelu SAEs.

    - `X`: (samples, d_in) activations in memory, batches drawn with replacement; or a memory map, `jaxdict.files.Shards`, or batches
      of rows (as for `jaxdict.fit_stream`), read as they are needed, each row once an epoch. Arrays on disk are shuffled anew for each
      epoch; batches keep the order of their source: a list, a grain `MapDataset` that was batched, a grain `DataLoader` of one epoch
      (`num_epochs=1`), or a function that returns a new iterator. `key`: same key, same result.
    - `lam` or `k`, as the table says; `lam_warm_up`: steps over which lam rises from zero.
    - `steps` (5000 where nothing is said) or `epochs`, of batches of `batch_size` rows.
    - `learning_rate`: a number, reached over a twentieth of the steps and let fall to zero over the last fifth; or an optax schedule.
    - `dead_steps`: a latent not used for so many steps is dead. Where there is a k, dead latents are taught what the others leave
      (not in matching pursuit); else they are reborn, every so many steps, where the residuals want an atom (T10).
    - `scaled`: train on rows over their root mean square distance from the median (lam keeps its meaning, in units of X), and fold
      that into the result.
    - `checkpoint`: a folder for the run's state, written every half minute and at the end. The same call takes a killed run up where it
      was, and ends in the same digits on the same machine.
    - `callback`: called with (step, steps, loss of the last batch, in training's units) every hundred steps.

    X, `key`, `lam` and `learning_rate` may be traced (then without a callback or a checkpoint, and the SAE does not know a traced lam);
    none of their values is part of the program, nor is the number of steps.

    **Raises** ValueError before any compute for an unknown architecture, a missing or superfluous `lam` or `k`, sizes that make no
    sense, bad data in memory, a checkpoint of another run; for bad rows on disk as soon as they are met.

    >>> import jax, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (200, 4))
    >>> sae = jd.sae.train(X, 6, key=jax.random.key(1), lam=0.1, steps=50, batch_size=64)
    >>> sae.d_sae, sae.lam
    (6, 0.1)
    >>> jd.sae.train(X, 6, key=jax.random.key(1), architecture="topk", k=2, steps=50, batch_size=64).activation.k
    2
    """
    kind = asked(architecture, d_sae, lam, k)
    check_training((X, key, lam), batch_size, learning_rate, lam_warm_up, dead_steps, checkpoint, callback)
    total = steps_wanted(steps, epochs, None)
    draw, run = jax.random.split(key)
    rows = rows_of(X, batch_size, run)
    total = total or steps_wanted(steps, epochs, rows)
    start = origin(rows.X, scaled)
    state = first_state(kind, draw, start, d_sae)
    pace = _paced(kind, start, lam, k, total, learning_rate, lam_warm_up, dead_steps)
    name = "" if checkpoint is None else _name_of(kind, d_sae, key, lam, k, rows, start, pace)
    state = _driven(partial(rows.steps, kind), pace, state, Checkpoints(checkpoint, name), callback)
    return _finished(kind, state, start, lam, k)


def train_batch(
    X: Float[Array, "samples d_in"],
    d_sae: int,
    *,
    keys,
    architecture: str | Architecture = "standard",
    lam=None,
    k=None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 1024,
    learning_rate: float | Callable = 1e-3,
    lam_warm_up: int = 0,
    dead_steps: int = 1000,
    scaled: bool = True,
    checkpoint=None,
    callback: Callable[[int, int, np.ndarray], Any] | None = None,
) -> list[SAE]:
    """Many runs of `train` on the same rows as one compiled program: an SAE for each of `keys` (runs,).

    `lam` and `k` are one number for all or (runs,), so that a grid of seeds and sparsities is one call; the rest is as in `train`, of
    which each result is that with its key and its number, up to the order of sums. X in memory. `callback` is given the losses (runs,).

    **Raises** ValueError as `train`, and where `lam` or `k` have another length than `keys`.

    >>> import jax, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (200, 4))
    >>> keys = jax.random.split(jax.random.key(1), 3)
    >>> saes = jd.sae.train_batch(X, 6, keys=keys, lam=[0.1, 0.2, 0.3], steps=20, batch_size=64)
    >>> [round(sae.lam, 3) for sae in saes]
    [0.1, 0.2, 0.3]
    """
    lams, counts = _each(lam, keys, "lam"), _each(k, keys, "k")
    kinds = [asked(architecture, d_sae, *one) for one in zip(lams, counts, strict=True)]
    check_training((X, keys, lam), batch_size, learning_rate, lam_warm_up, dead_steps, checkpoint, callback)
    kind = kinds[int(np.argmax(counts))] if k is not None else kinds[0]
    total = steps_wanted(steps, epochs, None)
    rows = rows_of(X, batch_size, keys[0])
    if not isinstance(rows, InMemory):
        raise ValueError(
            f"X is a {type(X).__name__}; many runs need rows in memory: give an array, or train them one by one"
        )
    total = total or steps_wanted(steps, epochs, rows)
    start = origin(rows.X, scaled)
    pair = jax.vmap(jax.random.split)(keys)
    states = first_states(kind, pair[:, 0], start, d_sae)
    pace = _paced(kind, start, lam, k, total, learning_rate, lam_warm_up, dead_steps, runs=len(lams))
    name = "" if checkpoint is None else _name_of(kind, d_sae, keys, lam, k, rows, start, pace)

    def some(states, course, first, until):
        span = jnp.asarray(first), jnp.asarray(until)
        return some_steps_of_all(kind, states, pair[:, 1], rows.X, course, *span, size=rows.size)

    states = _driven(some, pace, states, Checkpoints(checkpoint, name), callback)
    each = (_run_of(states, jnp.asarray(run)) for run in range(len(lams)))
    return [_finished(kind, state, start, *one) for state, *one in zip(each, lams, counts, strict=True)]


class Pace(NamedTuple):
    """What a run follows from its first step to its last."""

    total: int
    at: Callable[[int], Course]


def warm_up_and_decay(rate, step, steps: int):
    """The learning rate of a step: up to `rate` over a twentieth of the steps, the first being 0, down to zero in the last fifth.

    >>> [round(float(warm_up_and_decay(jnp.asarray(1.0), jnp.asarray(step), 100)), 2) for step in (0, 1, 5, 79, 90, 99)]
    [0.0, 0.2, 1.0, 1.0, 0.5, 0.05]
    """
    warm, decay = max(1, steps // 20), max(1, steps // 5)
    return _warm_up_and_decay(rate, step, *map(jnp.asarray, (warm, max(warm, steps - decay), decay)))


@on_any_mesh
@jax.jit
def _warm_up_and_decay(rate, step, warm, late, decay):
    up = step.astype(rate.dtype) / warm.astype(rate.dtype)
    down = 1 - (step - late).astype(rate.dtype) / decay.astype(rate.dtype)
    return rate * jnp.clip(jnp.minimum(up, down), 0, 1)


def _paced(kind: Architecture, start: Origin, lam, k, total, learning_rate, lam_warm_up, dead_steps, runs=None) -> Pace:
    """The course of any hundred steps of a run, or of so many runs with a lam or a k each."""
    dtype, shape = start.scale.dtype, () if runs is None else (runs,)
    weight, count = (jnp.broadcast_to(jnp.asarray(0 if one is None else one, dtype), shape) for one in (lam, k))
    numbers = (jnp.asarray(total, dtype), jnp.asarray(dead_steps, jnp.int32), jnp.asarray(lam_warm_up))

    def at(first: int) -> Course:
        steps = first + jnp.arange(STEPS_PER_LOOK)
        if callable(learning_rate):
            rates = jnp.asarray(jax.vmap(learning_rate)(steps), dtype)
        else:
            rates = warm_up_and_decay(jnp.asarray(learning_rate, dtype), steps, total)
        return _course(kind, rates, weight, count, steps, *numbers, start.scale)

    return Pace(total, at)


@on_any_mesh
@partial(jax.jit, static_argnums=0)
def _course(kind: Architecture, rates, lam, k, steps, total, dead_steps, warm_up, scale) -> Course:
    ramp = jnp.clip((steps + 1).astype(lam.dtype) / jnp.maximum(warm_up, 1).astype(lam.dtype), 0, 1)
    return Course(rates, kind.weight(lam, scale)[..., None] * ramp, k, total, dead_steps, scale)


def _driven(some_steps: Callable, pace: Pace, state: State, checkpoints: Checkpoints, callback) -> State:
    """The state after all steps, from the beginning or from the state kept; the callback called, and states kept, on the way."""
    leaves, form = jax.tree.flatten(state)
    Kept = namedtuple("Kept", ["step", *(f"leaf{i}" for i in range(len(leaves)))])
    done, kept = 0, checkpoints.load()
    if kept is not None:
        done = int(kept[1][".step"])
        leaves = [jnp.asarray(kept[1][f".leaf{i}"], leaf.dtype) for i, leaf in enumerate(leaves)]
        state = jax.tree.unflatten(form, leaves)
    for first in range(done, pace.total, STEPS_PER_LOOK):
        until = min(first + STEPS_PER_LOOK, pace.total)
        state, loss = some_steps(state, pace.at(first), first, until)
        if checkpoints.due() or (until == pace.total and checkpoints.folder is not None):
            checkpoints.save("training", Kept(until, *jax.tree.leaves(state)))
        if callback is not None:
            callback(until, pace.total, np.asarray(loss) if jnp.ndim(loss) else float(loss))
    return state


def _name_of(kind, d_sae, key, lam, k, rows, start: Origin, pace: Pace) -> str:
    """What must agree for a state kept to be of use to a run."""
    # Schedules are functions: told apart by what they say.
    marks = range(0, pace.total, max(STEPS_PER_LOOK, pace.total // 8))
    courses = [tuple(pace.at(first)) for first in marks]
    return digest(kind, d_sae, key, lam, k, rows.n, rows.size, str(rows.dtype), tuple(start), courses)


@on_any_mesh
def _finished(kind: Architecture, state: State, start: Origin, lam, k) -> SAE:
    """The SAE for rows as they were given: `x scale` was trained on, and atoms have norm one in either unit."""
    sae = kind.finish(state.params, k, state.running)
    threshold = None if sae.threshold is None else sae.threshold / start.scale
    described = kind.described(None if lam is None or isinstance(lam, Tracer) else float(lam))
    parts = (sae.W_enc, sae.b_enc / start.scale, sae.W_dec, sae.b_dec / start.scale)
    return SAE(*parts, threshold, sae.ranking, sae.activation, metadata=described)


@on_any_mesh
@jax.jit
def _run_of(states: State, run) -> State:
    """One of the runs that went side by side."""
    return jax.tree.map(lambda leaf: leaf[run], states)


def _each(number, keys, name: str) -> list:
    """A run's own number for each key."""
    runs = keys.shape[0]
    if number is None or np.ndim(number) == 0:
        return [number] * runs
    if np.shape(number) != (runs,):
        raise ValueError(
            f"{name} has shape {np.shape(number)} but there are {runs} keys; give one number, or one a key"
        )
    return list(number) if isinstance(number, Tracer) else [one.item() for one in np.asarray(number)]
