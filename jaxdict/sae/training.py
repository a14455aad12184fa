"""`train`: a plain sparse autoencoder on activations in memory, by optax; for baselines and for audits of known faults."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxdict.arrays import data_array, is_concrete, look
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, unit_rows
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE, Metadata
from jaxdict.validation import check_data

ARCHITECTURES = ("standard", "topk")
# Steps between two calls of the callback: one compiled loop each.
STEPS_PER_LOOK = 100


def train(
    X: Float[Array, "samples d_in"],
    d_sae: int,
    *,
    key,
    architecture: str = "standard",
    lam: float | None = None,
    k: int | None = None,
    steps: int = 5000,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    callback: Callable[[int, int, float], Any] | None = None,
) -> SAE:
    """A sparse autoencoder trained by Adam on random batches, with a linear warm-up and a decay of the last fifth.

    "standard" minimises what problem P does, with an encoder in place of exact codes: `mean 1/2 ||x - x_hat||^2 + lam sum_k
    ||d_k|| f_k` (half the loss of SAE packages at `l1_coefficient = 2 lam`), `f = relu((x - b_dec) W_enc + b_enc)`. "topk" keeps
    the `k` largest and has no penalty. Decoder rows start as random unit vectors, the encoder as their transpose, `b_dec` as the
    mean. The result has unit decoder rows.

    - `X`: (samples, d_in) activations in memory. `key`: a `jax.random` key; same key, same result.
    - `lam` (standard) or `k` (topk) must be given.
    - `callback`: called with (step, steps, loss of the last batch) every hundred steps.

    X, `key`, `lam` and `learning_rate` may be traced (then without a callback, and the SAE does not know a traced lam); none of
    their values is part of the program, nor is the number of steps.

    **Raises** ValueError for an unknown architecture, a missing `lam` or `k`, sizes that make no sense, bad data.

    >>> import jax, jaxdict as jd
    >>> X = jax.random.normal(jax.random.key(0), (200, 4))
    >>> sae = jd.sae.train(X, 6, key=jax.random.key(1), lam=0.1, steps=50, batch_size=64)
    >>> sae.d_sae, sae.lam
    (6, 0.1)
    """
    X = check_data(X, wide="allow")
    _check(architecture, lam, k, d_sae, steps, batch_size, learning_rate)
    activation = Activation("topk", k=k) if architecture == "topk" else Activation("relu")
    draw, run = jax.random.split(key)
    W_dec = unit_rows(jax.random.normal(draw, (d_sae, X.shape[1]), X.dtype))
    sae = SAE(W_dec.T, jnp.zeros(d_sae, X.dtype), W_dec, jnp.mean(X, axis=0), activation=activation)
    state = optax.scale_by_adam().init(eqx.filter(sae, eqx.is_array))
    weight = jnp.asarray(0.0 if lam is None else lam, X.dtype)
    plan = Plan(jnp.asarray(learning_rate, X.dtype), *map(jnp.asarray, _milestones(steps)))
    size = min(batch_size, X.shape[0])
    for done in range(0, steps, STEPS_PER_LOOK):
        until = min(done + STEPS_PER_LOOK, steps)
        sae, state, loss = _some_steps(sae, state, run, X, weight, plan, jnp.asarray(done), jnp.asarray(until), size)
        if callback is not None:
            callback(until, steps, float(loss))
    known = lam if architecture == "standard" and not isinstance(lam, Tracer) else None
    described = Metadata(architecture=architecture, lam=known)
    sae = sae.canonical()
    return SAE(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, None, sae.ranking, activation, metadata=described)


class Plan(NamedTuple):
    """The learning rate: up to its full value at step `warm`, from step `late` on down to zero in `decay` steps.

    Arrays, as lam is: other values are the same program.
    """

    rate: Float[Array, ""]
    warm: Int[Array, ""]
    late: Int[Array, ""]
    decay: Int[Array, ""]

    def at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The learning rate of one step, the first being 0.

        >>> plan = Plan(jnp.asarray(1.0), *map(jnp.asarray, _milestones(100)))
        >>> [round(float(plan.at(jnp.asarray(step))), 2) for step in (0, 1, 5, 79, 90, 99)]
        [0.0, 0.2, 1.0, 1.0, 0.5, 0.05]
        """
        dtype = self.rate.dtype
        up = step.astype(dtype) / self.warm.astype(dtype)
        down = 1 - (step - self.late).astype(dtype) / self.decay.astype(dtype)
        return self.rate * jnp.clip(jnp.minimum(up, down), 0, 1)


def training_loss(sae: SAE, x: Float[Array, "samples d_in"], lam) -> Float[Array, ""]:
    """`mean 1/2 ||x - x_hat||^2 + lam sum_k ||d_k|| f_k` of a batch.

    >>> sae = SAE(jnp.eye(1), jnp.array([-0.5]), jnp.eye(1), jnp.zeros(1))
    >>> float(training_loss(sae, jnp.array([[2.0]]), 0.5))  # 1/2 (1/2)^2 + 1/2 (3/2)
    0.875
    """
    x = data_array(x, "x")
    f = sae.encode(x)
    r = x - sae.decode(f, x)
    return jnp.mean(0.5 * jnp.sum(r * r, axis=1) + lam * matmul(f, sae.norms))


@on_any_mesh
@eqx.filter_jit
def _some_steps(sae, state, key, X: Float[Array, "samples d"], lam, plan: Plan, first, until, size: int):
    """Steps `first` to `until` of Adam, each on a batch of its own: the key of a step is `fold_in(key, step)`."""
    arrays, static = eqx.partition(sae, eqx.is_array)

    def loss_of(arrays, x):
        return training_loss(eqx.combine(arrays, static), x, lam)

    def step(k, carry):
        arrays, state, _ = carry
        x = X[jax.random.randint(jax.random.fold_in(key, k), (size,), 0, X.shape[0])]
        loss, slopes = jax.value_and_grad(loss_of)(arrays, x)
        directions, state = optax.scale_by_adam().update(slopes, state, arrays)
        moved = jax.tree.map(lambda array, direction: array - plan.at(k) * direction, arrays, directions)
        return moved, state, loss

    arrays, state, loss = jax.lax.fori_loop(first, until, step, (arrays, state, jnp.zeros_like(lam)))
    return eqx.combine(arrays, static), state, loss


def _milestones(steps: int) -> tuple[int, int, int]:
    """Where the warm-up ends (a twentieth), where the decay begins, and how long it is (a fifth)."""
    warm, decay = max(1, steps // 20), max(1, steps // 5)
    return warm, max(warm, steps - decay), decay


def _check(architecture, lam, k, d_sae, steps, batch_size, learning_rate):
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r} is unknown; use one of {ARCHITECTURES}")
    if architecture == "standard" and (lam is None or _known_not_positive(lam)):
        raise ValueError(f"lam is {lam}; a standard SAE needs lam > 0, half the packages' l1 coefficient")
    if architecture == "topk" and (k is None or not 0 < k <= d_sae):
        raise ValueError(f"k is {k}; a topk SAE needs 1 <= k <= d_sae = {d_sae}")
    for name, value in (("d_sae", d_sae), ("steps", steps), ("batch_size", batch_size)):
        if value != int(value) or value < 1:
            raise ValueError(f"{name} is {value}; give a positive integer")
    if _known_not_positive(learning_rate):
        raise ValueError(f"learning_rate is {learning_rate}; give a positive number")


def _known_not_positive(number) -> bool:
    return is_concrete(number) and not look(lambda xp, value: bool(xp.all(value > 0)), number)
