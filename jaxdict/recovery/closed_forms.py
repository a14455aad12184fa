"""The closed form `W_m = P W_p^T` of a tied autoencoder, and whether it is a minimiser (theory.md section 6)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdict.arrays import data_array
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import safe_norm
from jaxdict.recovery.autoencoders import Autoencoder, check_inputs, reconstruction_loss
from jaxdict.recovery.measures import Agreement, agreement, row_distance
from jaxdict.recovery.superpositions import superpose
from jaxdict.recovery.training import train_batch

GLOBAL_MINIMISER, UNREFUTED, STATIONARY_NOT_MINIMAL, NOT_STATIONARY = range(4)
_SAYS = (
    "A global minimiser: the loss is zero.",
    "Stationary, and nothing better was found: a minimiser as far as these searches tell.",
    "Stationary but not minimal: a better point was found.",
    "Not stationary, so not a minimiser.",
)


class Verdict(NamedTuple):
    """The evidence about the closed form on one map; losses are per sample, the rest is dimensionless."""

    status: Int[Array, ""]  # GLOBAL_MINIMISER, UNREFUTED, STATIONARY_NOT_MINIMAL or NOT_STATIONARY
    loss: Float[Array, ""]  # L_SAE at the closed form
    gradient_norm: Float[Array, ""]  # ||grad|| ||W|| / E||x_p||^2
    curvature: Float[Array, ""]  # smallest eigenvalue of the Hessian, over E||x_p||^2 / ||W||^2
    best_loss: Float[Array, ""]  # least found, from random restarts and from the closed form itself
    descended_loss: Float[Array, ""]  # of the descent that starts at the closed form
    distance: Float[Array, ""]  # of the closed form to the best point found, relative, up to order
    energy: Float[Array, ""]  # E||x_p||^2
    best: Autoencoder
    restarts: Agreement  # whether the restarts agree with each other

    def message(self) -> str:
        """The verdict and its evidence, in plain sentences."""
        return (
            f"{_SAYS[int(self.status)]} Loss {float(self.loss):.3e} against the best found {float(self.best_loss):.3e}; "
            f"relative gradient {float(self.gradient_norm):.1e}, smallest curvature {float(self.curvature):.1e}, "
            f"distance {float(self.distance):.2g}. {self.restarts.message()}"
        )


def closed_form(directions: Float[Array, "features d"], n_latents: int | None = None, *, order=None) -> Autoencoder:
    """The tied autoencoder `W_m = P W_p^T`: a latent a feature, its row the feature's direction, zero rows appended.

    `order` (features,) permutes the rows. Raises ValueError for fewer latents than features.

    >>> import jax.numpy as jnp
    >>> closed_form(jnp.eye(2), 3, order=jnp.array([1, 0])).encoder.tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """
    directions = jnp.asarray(directions)
    n = directions.shape[0]
    n_latents = n if n_latents is None else n_latents
    if n_latents < n:
        raise ValueError(f"n_latents={n_latents} is less than the {n} features; the closed form has a row for each")
    rows = directions if order is None else directions[order]
    return Autoencoder(jnp.pad(rows, ((0, n_latents - n), (0, 0))))


def judge(
    key, directions, x, *, weights=None, metric=None, n_latents: int | None = None, restarts: int = 8,
    steps: int = 1500, learning_rate=3e-2, tol: float = 1e-6,
) -> Verdict:  # fmt: skip
    """Whether the closed form minimises `E||x_p - W^T relu(W x_p)||_m^2` on this map and these samples, with evidence.

    Gradient and Hessian of the tied loss at the closed form (the Hessian dense: latents d up to a few hundred), and the
    least loss found by descent (`train_batch`), from `restarts` random starts and from the closed form. `tol` is the
    relative gradient, and the share of `E||x_p||_m^2`, below which a number counts as zero. Where a pre-activation is
    exactly zero relu has a kink and the derivatives are those of the branch relu' = 0; the descent does not care.
    A positive verdict is only as good as the search; "not minimal" and "not stationary" come with their witness.

    >>> import jax, jax.numpy as jnp
    >>> from jaxdict import recovery
    >>> x = recovery.stratified_features(jax.random.key(0), 8, jnp.full(2, 0.5))
    >>> verdict = judge(jax.random.key(1), recovery.digon_map(1), *x[:1], weights=x.weights, steps=100)
    >>> verdict.message().split(".")[0]
    'A global minimiser: the loss is zero'
    """
    x = data_array(x, "x")
    sae = closed_form(directions, n_latents)
    x_p, weights, metric = check_inputs(sae, superpose(x, directions), weights, metric)
    shape = sae.encoder.shape
    loss, slope, curvature, energy = _derivatives(sae.encoder, x_p, weights, metric)
    keys = jax.random.split(key, restarts + 1)
    rows = jax.random.normal(keys[0], (restarts, *shape), x_p.dtype) / shape[1] ** 0.5
    rows = jnp.concatenate([sae.encoder.astype(x_p.dtype)[None], rows])
    found = train_batch(
        keys,
        x_p,
        shape[0],
        weights=weights,
        metric=metric,
        start=Autoencoder(rows),
        steps=steps,
        learning_rate=learning_rate,
    )
    losses = jnp.where(jnp.isnan(found.loss), jnp.inf, found.loss)
    least = jnp.argmin(losses)
    best = jax.tree.map(lambda leaf: leaf[least], found.sae)
    best_loss = jnp.minimum(losses[least], loss)
    best = jax.tree.map(lambda found, closed: jnp.where(losses[least] < loss, found, closed), best, sae)
    stationary, minimal = slope <= tol, loss - best_loss <= tol * energy
    status = jnp.where(minimal, UNREFUTED, STATIONARY_NOT_MINIMAL)
    status = jnp.where(stationary, status, NOT_STATIONARY)
    status = jnp.where(loss <= tol**2 * energy, GLOBAL_MINIMISER, status)
    distance = row_distance(sae.encoder, best.encoder)
    among = agreement(found.sae.encoder[1:], found.loss[1:])
    return Verdict(status, loss, slope, curvature, best_loss, losses[0], distance, energy, best, among)


@on_any_mesh
@jax.jit
def _derivatives(rows, x_p, weights, metric):
    """Loss, relative gradient, relative smallest curvature and energy of the tied loss at given rows."""

    def loss(flat):
        return reconstruction_loss(Autoencoder(flat.reshape(rows.shape)), x_p, weights=weights, metric=metric)

    flat = rows.ravel()
    w = jnp.ones_like(x_p[:, 0]) if weights is None else weights
    m = jnp.ones_like(x_p[0]) if metric is None else metric
    energy = jnp.mean(w * jnp.sum(m * x_p**2, axis=1))
    size = safe_norm(flat)
    value, slope = jax.value_and_grad(loss)(flat)
    curvature = jnp.linalg.eigvalsh(jax.hessian(loss)(flat))[0]
    return value, safe_norm(slope) * size / energy, curvature * size**2 / energy, energy
