"""Small sparse autoencoders, tied or untied, and their losses in the input and against the ground truth (theory.md section 6)."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxdict.arrays import as_jax, data_array, floating_dtype, real_matrix
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_norm
from jaxdict.points import metric_like, weights_like


class Autoencoder(eqx.Module):
    """`x_m = relu((x_p - b) W_enc^T + c)`, its k largest where k is given; `xhat = b + x_m W_dec`, `W_dec = W_enc` if tied.

    A pytree: arrays may have a leading axis of runs under vmap. Without biases b and c are None.

    >>> import jax.numpy as jnp
    >>> Autoencoder(jnp.array([[1.0], [-1.0]]))(jnp.array([[-3.0]])).tolist()
    [[-3.0]]
    """

    encoder: Float[Array, "latents d"]
    decoder: Float[Array, "latents d"] | None = None  # None: tied
    bias: Float[Array, " latents"] | None = None  # c
    offset: Float[Array, " d"] | None = None  # b
    k: int | None = eqx.field(static=True, default=None)

    @property
    def atoms(self) -> Float[Array, "latents d"]:
        """The decoder's rows."""
        return self.encoder if self.decoder is None else self.decoder

    def encode(self, x_p: Float[Array, "samples d"]) -> Float[Array, "samples latents"]:
        """Latents of the inputs, non-negative."""
        centred = x_p if self.offset is None else x_p - self.offset
        before = matmul(centred, self.encoder.T)
        latents = jax.nn.relu(before if self.bias is None else before + self.bias)
        if self.k is None:
            return latents
        smallest = jax.lax.top_k(latents, self.k)[0][:, -1:]
        return jnp.where(latents >= smallest, latents, 0)

    def decode(self, latents: Float[Array, "samples latents"]) -> Float[Array, "samples d"]:
        """Reconstructions of the inputs."""
        out = matmul(latents, self.atoms)
        return out if self.offset is None else out + self.offset

    def __call__(self, x_p):
        return self.decode(self.encode(x_p))


class Matching(NamedTuple):
    """Latents matched to features, one to one, at the least total loss."""

    loss: Float[Array, ""]  # L_GT
    by_feature: Float[Array, " features"]  # each feature's share of it
    latent: Int[Array, " features"]  # matched to each feature; -1 for none (fewer latents than features)
    scale: Float[Array, " features"]  # by which its latent is multiplied: one unless scales are free


def check_inputs(sae: Autoencoder, x_p: Float[Array, "samples d"], weights=None, metric=None):
    """Inputs, weights and metric as arrays of one dtype, the inputs', or a ValueError where one does not fit.

    >>> import jax.numpy as jnp
    >>> check_inputs(Autoencoder(jnp.eye(2)), jnp.ones((5, 3)))
    Traceback (most recent call last):
    ValueError: x_p has shape (5, 3) but the autoencoder reads 2 features; give inputs of that width
    """
    x_p = data_array(x_p, "x_p")
    d = sae.encoder.shape[-1]
    if x_p.shape[1] != d:
        raise ValueError(f"x_p has shape {x_p.shape} but the autoencoder reads {d} features; give inputs of that width")
    return x_p, weights_like(weights, x_p.shape[0], x_p.dtype), metric_like(metric, d, x_p.dtype)


def errors_by_dimension(sae: Autoencoder, x_p: Float[Array, "samples d"], *, weights=None) -> Float[Array, " d"]:
    """Mean squared error of each input dimension, `E[(x_p - xhat)_i^2]`.

    >>> import jax.numpy as jnp
    >>> errors_by_dimension(Autoencoder(jnp.eye(2)), jnp.array([[1.0, -2.0]])).tolist()
    [0.0, 4.0]
    """
    x_p, weights, _ = check_inputs(sae, x_p, weights)
    return _mean((x_p - sae(x_p)) ** 2, weights)


def reconstruction_loss(
    sae: Autoencoder, x_p: Float[Array, "samples d"], *, weights=None, metric=None
) -> Float[Array, ""]:
    """`L_SAE = E||x_p - xhat||_m^2`; with a metric m (d,) it is L_WSAE. No 1/2: twice problem P's data term.

    `weights` (samples,) of mean one. A scalar in squared units of the data.

    >>> import jax.numpy as jnp
    >>> float(reconstruction_loss(Autoencoder(jnp.eye(2)), jnp.array([[1.0, -2.0]]), metric=jnp.array([1.0, 0.5])))
    2.0
    """
    x_p, weights, metric = check_inputs(sae, x_p, weights, metric)
    errors = errors_by_dimension(sae, x_p, weights=weights)
    return jnp.sum(errors if metric is None else metric * errors)


def penalty_term(sae: Autoencoder, x_p: Float[Array, "samples d"], *, weights=None) -> Float[Array, ""]:
    """`sum_k ||d_k|| E[x_m,k]`, the sparsity term of problem P."""
    x_p, weights, _ = check_inputs(sae, x_p, weights)
    return jnp.sum(safe_norm(sae.atoms) * _mean(sae.encode(x_p), weights))


def ground_truth_loss(
    x: Float[Array, "samples features"], latents: Float[Array, "samples latents"], *, weights=None, scale: bool = False
) -> Matching:
    """`L_GT = E||x - x_m||^2` at the best permutation of the latents (Hungarian algorithm).

    x (samples, features), latents (samples, latents). The shorter is filled up with zeros, so a latent that matches no
    feature costs its energy and a feature without a latent its own. With `scale=True` each latent is also multiplied by
    its best factor >= 0. jit- and vmap-able.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> found = ground_truth_loss(x, x[:, ::-1] / 2, scale=True)
    >>> float(found.loss), found.latent.tolist(), found.scale.tolist()
    (0.0, [1, 0], [2.0, 2.0])
    """
    return _match(*paired_rows(x, latents, weights), scale=scale)


def paired_rows(x, latents, weights):
    """Features and latents of the same samples and the samples' weights, in one dtype, or a ValueError where they do not fit."""
    x, latents = real_matrix(x, "x"), real_matrix(latents, "latents")
    if x.shape[0] != latents.shape[0]:
        raise ValueError(
            f"latents are of {latents.shape[0]} samples but x of {x.shape[0]}; give those of the same samples"
        )
    dtype = floating_dtype(x, latents)
    return as_jax(x, dtype), as_jax(latents, dtype), weights_like(weights, x.shape[0], dtype)


@on_any_mesh
@partial(jax.jit, static_argnames="scale")
def _match(x, latents, weights, *, scale) -> Matching:
    n, n_m = x.shape[1], latents.shape[1]
    size = max(n, n_m)
    x = jnp.pad(x, ((0, 0), (0, size - n)))
    z = jnp.pad(latents, ((0, 0), (0, size - n_m)))
    w = jnp.ones(x.shape[0], x.dtype) if weights is None else weights
    cross = matmul((w[:, None] * x).T, z) / x.shape[0]
    power = _mean(z**2, weights)
    factor = jnp.where(power > 0, jnp.maximum(cross, 0) / jnp.where(power > 0, power, 1), 0)
    factor = factor if scale else jnp.ones_like(cross)
    cost = _mean(x**2, weights)[:, None] - 2 * factor * cross + factor**2 * power
    latent = assignment(cost)
    chosen = jnp.take_along_axis(factor, latent[:, None], axis=1)[:, 0]
    errors = _mean((x - chosen * z[:, latent]) ** 2, weights)  # not read off the cost, which cancels
    return Matching(jnp.sum(errors), errors[:n], jnp.where(latent < n_m, latent, -1)[:n], chosen[:n])


def assignment(cost: Float[Array, "n n"]) -> Int[Array, " n"]:
    """The column of each row at the least total cost, one to one (Hungarian algorithm of optax); NaN counts as zero.

    >>> import jax.numpy as jnp
    >>> assignment(jnp.array([[1.0, 0.0], [0.0, 5.0]])).tolist()
    [1, 0]
    """
    return _assign(cost)


@jax.jit
def _assign(cost):
    rows, columns = optax.assignment.hungarian_algorithm(jnp.where(jnp.isnan(cost), 0, cost))
    return jnp.zeros(cost.shape[0], columns.dtype).at[rows].set(columns)


def _mean(values, weights):
    return jnp.mean(values if weights is None else weights[:, None] * values, axis=0)
