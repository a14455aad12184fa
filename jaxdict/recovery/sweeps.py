"""Recovery over a grid of sparsities, restarts, penalties and reweightings, as one compiled program (theory.md section 6)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.recovery.autoencoders import ground_truth_loss, reconstruction_loss
from jaxdict.recovery.ground_truth import Features, sparse_features, stratified_features
from jaxdict.recovery.measures import alignment, average_active
from jaxdict.recovery.reweighting import dimension_variance, reweight
from jaxdict.recovery.superpositions import superpose
from jaxdict.recovery.training import RUNS_AT_A_TIME, train

_STATIC = ("n_latents", "n_samples", "per_pattern", "magnitudes", "proxy", "scale", "options", "at_a_time")


class Recovery(NamedTuple):
    """What one training recovered, on samples that it did not see; a sweep has a leading axis for each part of its grid."""

    loss: Float[Array, ""]  # L_SAE, unweighted, per sample
    weighted_loss: Float[Array, ""]  # L_WSAE, in the metric that was trained with
    loss_gt: Float[Array, ""]  # L_GT
    loss_gt_by_feature: Float[Array, " features"]
    energy: Float[Array, ""]  # E||x_p||^2
    energy_gt: Float[Array, ""]  # E||x||^2
    active: Float[Array, ""]  # latents on in a sample
    active_gt: Float[Array, ""]  # features on in a sample
    alignment: Float[Array, " features"]  # cosine of each true direction with its latent's row
    latent_variance: Float[Array, ""]  # mean variance of a latent over samples
    gradient_norm: Float[Array, ""]  # at the end of training, relative
    rows: Float[Array, "latents d"]


def recover(
    key, directions, sparsity, *, alpha=0.0, penalty=0.0, n_latents: int | None = None, n_samples: int = 512,
    per_pattern: int | None = None, magnitudes="uniform", proxy: Callable = dimension_variance, scale: bool = False,
    **options,
) -> Recovery:  # fmt: skip
    """Draw features, superpose them, train with `m = reweight(proxy(x_p, weights), alpha)`, and measure what is recovered.

    `sparsity` (features,); `options` are those of `train` (tied, k, bias, steps, learning_rate). Data and start
    depend on `key` only, so runs with one key and several alphas are paired. Measured on a fresh draw of the same size:
    `n_samples`, or with `per_pattern` every activity pattern so many times (`stratified_features`), which few features allow.

    >>> import jax, jax.numpy as jnp
    >>> from jaxdict import recovery
    >>> found = recover(jax.random.key(0), recovery.identity_map(2), jnp.full(2, 0.5), steps=50, n_samples=64)
    >>> found.alignment.shape, found.loss_gt.shape
    ((2,), ())
    """
    directions = jnp.asarray(directions)
    n_latents = directions.shape[0] if n_latents is None else n_latents

    def draw(key) -> Features:
        if per_pattern is None:
            return sparse_features(key, n_samples, sparsity, magnitudes=magnitudes)
        return stratified_features(key, per_pattern, sparsity, magnitudes=magnitudes)

    data_key, test_key, start_key = jax.random.split(key, 3)
    x, w = draw(data_key)
    x_p = superpose(x, directions)
    metric = reweight(proxy(x_p, w), alpha)
    trained = train(start_key, x_p, n_latents, weights=w, metric=metric, penalty=penalty, **options)
    truth = draw(test_key)
    w, test = truth.weights, superpose(truth.x, directions)
    latents = trained.sae.encode(test)
    found = ground_truth_loss(truth.x, latents, weights=w, scale=scale)
    return Recovery(
        loss=reconstruction_loss(trained.sae, test, weights=w),
        weighted_loss=reconstruction_loss(trained.sae, test, weights=w, metric=metric),
        loss_gt=found.loss,
        loss_gt_by_feature=found.by_feature,
        energy=jnp.mean(w * jnp.sum(test**2, axis=1)),
        energy_gt=truth.energy,
        active=average_active(latents, w),
        active_gt=average_active(truth.x, w),
        alignment=alignment(trained.sae.atoms, directions),
        latent_variance=jnp.mean(dimension_variance(latents, w)),
        gradient_norm=trained.gradient_norm,
        rows=trained.sae.atoms,
    )


def sweep_recovery(
    key, directions, sparsities, *, restarts: int = 8, alphas=(0.0, 0.5, 1.0, 2.0, 4.0), penalties=(0.0,),
    n_latents: int | None = None, n_samples: int = 512, per_pattern: int | None = None, magnitudes="uniform",
    proxy: Callable = dimension_variance, scale: bool = False, at_a_time: int = RUNS_AT_A_TIME, **options,
) -> Recovery:  # fmt: skip
    """`recover` over sparsities x restarts x penalties x alphas, one compiled and vmapped program.

    `sparsities` is (s,) or (s, features). A `Recovery` whose fields have leading axes (s, restarts, penalties, alphas);
    restart r uses `jax.random.split(key, restarts)[r]` everywhere, so all comparisons within it are paired (same data
    and start; more sparsity only switches entries off). Each entry equals `recover` with the same arguments.

    >>> import jax, jax.numpy as jnp
    >>> from jaxdict import recovery
    >>> grid = dict(restarts=2, alphas=(0.0, 1.0), steps=20, n_samples=64)
    >>> sweep_recovery(jax.random.key(0), recovery.digon_map(1), jnp.array([0.5, 0.9, 0.99]), **grid).loss_gt.shape
    (3, 2, 1, 2)
    """
    directions = jnp.asarray(directions)
    sparsities = jnp.asarray(sparsities, directions.dtype)
    if sparsities.ndim == 1:
        sparsities = jnp.broadcast_to(sparsities[:, None], (sparsities.shape[0], directions.shape[0]))
    if sparsities.ndim != 2 or sparsities.shape[1] != directions.shape[0]:
        raise ValueError(
            f"sparsities have shape {sparsities.shape}; give (s,), or (s, {directions.shape[0]}) for one a feature"
        )
    static = (n_latents, n_samples, per_pattern, magnitudes, proxy, scale, tuple(sorted(options.items())), at_a_time)
    grid = sparsities, jax.random.split(key, restarts), jnp.asarray(penalties, float), jnp.asarray(alphas, float)
    return _sweep(directions, *grid, **dict(zip(_STATIC, static, strict=True)))


@partial(jax.jit, static_argnames=_STATIC)
def _sweep(directions, sparsities, keys, penalties, alphas, *, options, at_a_time, **settings) -> Recovery:
    shape = sparsities.shape[0], keys.shape[0], penalties.shape[0], alphas.shape[0]
    s, r, p, a = (index.ravel() for index in jnp.indices(shape))

    def one(index):
        s, r, p, a = index
        return recover(
            keys[r], directions, sparsities[s], alpha=alphas[a], penalty=penalties[p], **settings, **dict(options)
        )

    found = jax.lax.map(one, (s, r, p, a), batch_size=at_a_time)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)
