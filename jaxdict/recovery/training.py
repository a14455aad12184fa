"""Training small autoencoders full-batch with optax: one run, and many as one compiled program (theory.md section 6)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxdict.arrays import as_jax, data_array, floating_dtype, real_array
from jaxdict.meshes import on_any_mesh
from jaxdict.points import metric_like, weights_like
from jaxdict.recovery.autoencoders import Autoencoder, errors_by_dimension, penalty_term
from jaxdict.recovery.reweighting import learned_metric

# Runs of a batch are taken so many at a time: their arrays then fit a processor's cache.
RUNS_AT_A_TIME = 16
_STATIC = ("n_latents", "tied", "k", "bias", "steps")


class Trained(NamedTuple):
    """The end of a run; a batch has a leading run axis."""

    sae: Autoencoder
    loss: Float[Array, ""]  # of what was minimised: data term, metric and penalty
    gradient_norm: Float[Array, ""]  # ||grad|| ||parameters|| / (weighted energy of the data), dimensionless
    metric: Float[Array, " d"]  # the one used; the learned one where it was learned
    history: Float[Array, " steps"]

    def message(self) -> str:
        """The end of the run in a sentence."""
        if jnp.ndim(self.loss):
            raise ValueError(
                f"{self.loss.shape[0]} runs; take one: jax.tree.map(lambda leaf: leaf[0], trained).message()"
            )
        return (
            f"{self.history.shape[0]} steps: loss {float(self.history[0]):.3g} to {float(self.loss):.3g}, "
            f"relative gradient {float(self.gradient_norm):.1e}."
        )


def train(
    key, x_p, n_latents: int, *, weights=None, metric=None, penalty=0.0, temperature=None, start=None,
    tied: bool = True, k: int | None = None, bias: bool = False, steps: int = 1000, learning_rate=3e-2,
) -> Trained:  # fmt: skip
    """Minimise `E||x_p - xhat||_m^2 + penalty sum_k ||d_k|| E[x_m,k]` over a tied or untied autoencoder, full-batch.

    x_p (samples, d). `weights` (samples,), mean one; `metric` (d,) gives WSAE; `penalty` is twice problem P's lam;
    `temperature` learns the metric (`learned_metric`; None: fixed). Latents are relu, the k largest where `k` is given;
    `bias` adds one to the latents and an offset. Starts at random rows from `key`, or at `start` (an Autoencoder).
    Adam, whose rate decays to a thousandth along a cosine. Pure, jit- and vmap-able; compiled once for its sizes.

    Raises ValueError for a k that does not fit, or shapes that do not.

    >>> import jax, jax.numpy as jnp
    >>> x_p = jax.random.normal(jax.random.key(0), (64, 2))
    >>> bool(train(jax.random.key(1), x_p, 4, steps=300).loss < 1e-3)
    True
    """
    x_p = data_array(x_p, "x_p")
    weights, metric = weights_like(weights, x_p.shape[0], x_p.dtype), metric_like(metric, x_p.shape[1], x_p.dtype)
    _check_k(k, n_latents)
    runs = (key, x_p, weights, metric, penalty, temperature, start)
    sizes = (n_latents, tied, k, bias, steps)
    return _train_once(runs, learning_rate, **dict(zip(_STATIC, sizes, strict=True)))


def train_batch(
    keys, x_p, n_latents: int, *, weights=None, metric=None, penalty=0.0, temperature=None, start=None,
    tied: bool = True, k: int | None = None, bias: bool = False, steps: int = 1000, learning_rate=3e-2,
    at_a_time: int = RUNS_AT_A_TIME,
) -> Trained:  # fmt: skip
    """Many runs of `train` as one compiled program: over keys (runs,), and over whatever else has a run axis.

    x_p (samples, d) or (runs, samples, d), weights (samples,) or (runs, samples), metric (d,) or (runs, d), penalty and
    temperature scalars or (runs,), `start` an Autoencoder whose arrays have a run axis. `at_a_time` runs go side by
    side (vmap), the rest after one another, which is what keeps memory small. Results equal one-by-one runs.

    >>> import jax, jax.numpy as jnp
    >>> x_p = jax.random.normal(jax.random.key(0), (64, 2))
    >>> train_batch(jax.random.split(jax.random.key(1), 3), x_p, 4, steps=50).loss.shape
    (3,)
    """
    x_p, weights, metric = _check_runs(keys.shape[0], x_p, weights, metric)
    _check_k(k, n_latents)
    runs = (keys, x_p, weights, metric, penalty, temperature, start)
    axes = (
        0,
        *(
            0 if array is not None and jnp.ndim(array) == ndim + 1 else None  # pyright: ignore[reportArgumentType]
            for array, ndim in zip(runs[1:6], (2, 1, 1, 0, 0), strict=True)
        ),
    )
    axes = (*axes, None if start is None else 0)
    sizes = (n_latents, tied, k, bias, steps)
    return _train_batch(runs, learning_rate, axes=axes, at_a_time=at_a_time, **dict(zip(_STATIC, sizes, strict=True)))


@on_any_mesh
@partial(jax.jit, static_argnames=("axes", "at_a_time", *_STATIC))
def _train_batch(runs, learning_rate, *, axes, at_a_time, **sizes):
    def one(mapped):
        mapped = iter(mapped)
        filled = tuple(array if axis is None else next(mapped) for array, axis in zip(runs, axes, strict=True))
        return _train(filled, learning_rate, **sizes)

    return jax.lax.map(one, tuple(a for a, axis in zip(runs, axes, strict=True) if axis == 0), batch_size=at_a_time)


@partial(jax.jit, static_argnames=_STATIC)
def _train(runs, learning_rate, *, n_latents, tied, k, bias, steps) -> Trained:
    key, x_p, weights, metric, penalty, temperature, start = runs
    metric = jnp.ones_like(x_p[0]) if metric is None else jnp.asarray(metric, x_p.dtype)
    weights = None if weights is None else jnp.asarray(weights, x_p.dtype)
    penalty = jnp.asarray(penalty, x_p.dtype)

    def used_metric(errors):
        if temperature is None:
            return metric
        return metric * learned_metric(jax.lax.stop_gradient(errors), temperature)

    def loss(sae):
        errors = errors_by_dimension(sae, x_p, weights=weights)
        return jnp.sum(used_metric(errors) * errors) + penalty * penalty_term(sae, x_p, weights=weights)

    sae = _start(key, x_p, weights, n_latents, tied, k, bias) if start is None else start
    descent = optax.adam(optax.cosine_decay_schedule(learning_rate, steps, alpha=1e-3))

    def step(carry, _):
        sae, state = carry
        value, slope = jax.value_and_grad(loss)(sae)
        updates, state = descent.update(slope, state)
        return (optax.apply_updates(sae, updates), state), value

    (sae, _), history = jax.lax.scan(step, (sae, descent.init(sae)), length=steps)  # pyright: ignore[reportArgumentType]
    value, slope = jax.value_and_grad(loss)(sae)
    w = jnp.ones_like(x_p[:, 0]) if weights is None else weights
    energy = jnp.mean(w * jnp.sum(metric * x_p**2, axis=1))
    size = optax.tree.norm(slope) * optax.tree.norm(sae) / energy
    return Trained(sae, value, size, used_metric(errors_by_dimension(sae, x_p, weights=weights)), history)


_train_once = on_any_mesh(_train)


def _start(key, x_p, weights, n_latents, tied, k, bias) -> Autoencoder:
    """Random rows of norm about one (untied: decoder equal to the encoder), no bias, the data's mean as offset."""
    rows = jax.random.normal(key, (n_latents, x_p.shape[1]), x_p.dtype) / x_p.shape[1] ** 0.5
    if not bias:
        return Autoencoder(rows, None if tied else rows, k=k)
    w = jnp.ones_like(x_p[:, 0]) if weights is None else weights
    return Autoencoder(rows, None if tied else rows, jnp.zeros_like(rows[:, 0]), jnp.mean(w[:, None] * x_p, axis=0), k)


def _check_runs(n_runs: int, x_p, weights, metric):
    """Inputs, weights and metric in one dtype, each with or without a leading axis of runs, or a ValueError where one does not fit."""
    x_p = real_array(x_p, "x_p", integers=False)
    if x_p.ndim not in (2, 3) or 0 in x_p.shape:
        raise ValueError(f"x_p has shape {x_p.shape}; give (samples, d) or (runs, samples, d), none of them zero")
    dtype = floating_dtype(x_p)
    arrays = []
    for name, array, shape in (
        ("x_p", x_p, x_p.shape[-2:]),
        ("weights", weights, x_p.shape[-2:-1]),
        ("metric", metric, x_p.shape[-1:]),
    ):
        given = None if array is None else real_array(array, name)
        if given is not None and given.shape not in (shape, (n_runs, *shape)):
            raise ValueError(
                f"{name} has shape {given.shape}; {n_runs} runs want {shape}, or {(n_runs, *shape)} for one a run"
            )
        arrays.append(None if given is None else as_jax(given, dtype))
    return arrays


def _check_k(k, n_latents):
    if k is not None and not 1 <= k <= n_latents:
        raise ValueError(f"k={k} of {n_latents} latents cannot be kept; use 1 <= k <= {n_latents}")
