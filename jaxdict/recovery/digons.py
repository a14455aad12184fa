"""Exact statements on digons, pairs of features in opposite directions: shrinking, vanishing, and losses (theory.md section 6).

Two features with directions e and -e give the input `(x_1 - x_2) e`; the closed form answers `(x_1 - x_2)_+` and `(x_2 - x_1)_+`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.recovery.autoencoders import (
    Autoencoder,
    check_inputs,
    ground_truth_loss,
    paired_rows,
    reconstruction_loss,
)
from jaxdict.recovery.ground_truth import LOG_SPREAD

# E[x^2] and E[min(x_1, x_2)^2] of active magnitudes, by the names of ground_truth.py. Log-normal, mean one:
# E[min^2] = 2 E[x_1^2 1{x_1 < x_2}] = 2 E[x^2] Phi(-sqrt(2) sigma).
SECOND_MOMENT = {"uniform": 1 / 3, "exponential": 2.0, "lognormal": math.exp(LOG_SPREAD**2), "constant": 1.0}
MINIMUM_SQUARED = {
    "uniform": 1 / 6,
    "exponential": 1 / 2,
    "lognormal": math.exp(LOG_SPREAD**2) * math.erfc(LOG_SPREAD),
    "constant": 1.0,
}


class DigonRates(NamedTuple):
    """What happens in a digon, and how often; exact for independent features."""

    both_active: Float[Array, ""]  # (1 - S_1)(1 - S_2): one feature shrinks and the other vanishes
    shrinks: Float[Array, "2"]  # each feature's probability to come out smaller than it is, but not zero
    vanishes: Float[Array, "2"]  # each feature's probability to be active and come out zero
    loss_gt: Float[Array, ""]  # 2 (1 - S_1)(1 - S_2) E[min(x_1, x_2)^2]
    energy: Float[Array, ""]  # E||x||^2
    ratio: Float[Array, ""]  # loss_gt / energy, of order 1 - S


class LossGaps(NamedTuple):
    """Losses of one autoencoder and their differences, all per sample."""

    sae: Float[Array, ""]  # L_SAE
    weighted: Float[Array, ""]  # L_WSAE
    ground_truth: Float[Array, ""]  # L_GT
    gap: Float[Array, ""]  # L_GT - L_SAE
    weighted_gap: Float[Array, ""]  # L_GT - L_WSAE


def digon_output(x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
    """What the closed form makes of the two features of a digon: `((x_1 - x_2)_+, (x_2 - x_1)_+)`.

    >>> import jax.numpy as jnp
    >>> digon_output(jnp.array([3.0, 1.0])).tolist()  # one shrinks, one vanishes
    [2.0, 0.0]
    """
    x = jnp.asarray(x)
    return jnp.maximum(x - x[..., ::-1], 0)


def digon_rates(sparsity, magnitudes: str | Callable = "uniform", *, key=None, n_samples: int = 100_000) -> DigonRates:
    """Shrinking, vanishing and L_GT of a digon at the closed form, for the sparsities (2,) of its features.

    Both happen where both features are active, `(1 - S_1)(1 - S_2)`; which of the two shrinks is a fair coin for equal
    magnitude distributions without ties ("constant" has only ties: both vanish). `loss_gt = 2 (1 - S_1)(1 - S_2)
    E[min^2]`, for uniform magnitudes `(1 - S)^2 / 3` against `E||x||^2 = 2 (1 - S) / 3`: the ratio (1 - S) / 2 goes to
    zero with 1 - S, while L_SAE = 0 for every S. Rates add over digons. `magnitudes` is a name, for which all is exact,
    or a function of (key, shape), whose two moments are then means over `n_samples` draws.

    Raises ValueError for an unknown name, or a function without a key.

    >>> import jax.numpy as jnp
    >>> rates = digon_rates(jnp.array([0.9, 0.9]))
    >>> round(float(rates.both_active), 6), round(float(rates.loss_gt), 6), round(float(rates.ratio), 6)
    (0.01, 0.003333, 0.05)
    """
    on = 1 - jnp.asarray(sparsity, jnp.result_type(float))
    both = on[..., 0] * on[..., 1]
    second, smaller, tied = _moments(magnitudes, key, n_samples)
    half = (1 - tied) / 2 * jnp.ones(2)
    loss, energy = 2 * both * smaller, jnp.sum(on, axis=-1) * second
    ratio = loss / jnp.where(energy > 0, energy, 1)
    return DigonRates(both, both[..., None] * half, both[..., None] * (half + tied), loss, energy, ratio)


def _moments(magnitudes, key, n_samples):
    """E[x^2], E[min(x_1, x_2)^2] and the probability of a tie."""
    if callable(magnitudes):
        if key is None:
            raise ValueError("key is not given; moments of a magnitude function are means over draws")
        x = jnp.asarray(magnitudes(key, (n_samples, 2)))
        return jnp.mean(x**2), jnp.mean(jnp.min(x, axis=1) ** 2), jnp.mean(x[:, 0] == x[:, 1])
    if magnitudes not in SECOND_MOMENT:
        raise ValueError(f"magnitudes={magnitudes!r} is unknown; use one of {tuple(SECOND_MOMENT)} or a function")
    return SECOND_MOMENT[magnitudes], MINIMUM_SQUARED[magnitudes], float(magnitudes == "constant")


def simulated_rates(features: Float[Array, "samples 2"], latents: Float[Array, "samples 2"], weights=None):
    """Shares of samples on which each feature shrinks, and vanishes, for any latents: two (features,) arrays.

    Latent i answers for feature i. Shrinking: `0 < x_m < x` by more than rounding; vanishing: `x_m = 0 < x`.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[3.0, 1.0], [1.0, 0.0]])
    >>> [rate.tolist() for rate in simulated_rates(x, digon_output(x))]
    [[0.5, 0.0], [0.0, 0.5]]
    """
    features, latents, weights = paired_rows(features, latents, weights)
    small = 8 * jnp.finfo(features.dtype).eps
    w = jnp.ones_like(features[:, 0]) if weights is None else weights
    share = lambda happens: jnp.mean(jnp.where(happens, w[:, None], 0), axis=0)  # noqa: E731
    gone = latents <= small * features
    shrinks = ~gone & (latents < (1 - small) * features)
    return share(shrinks), share(gone & (features > 0))


def loss_gaps(
    sae: Autoencoder, x: Float[Array, "samples features"], x_p: Float[Array, "samples d"], *,
    weights=None, metric=None, scale: bool = False,
) -> LossGaps:  # fmt: skip
    """`L_GT - L_SAE` and `L_GT - L_WSAE` of an autoencoder: how little its reconstruction says about recovery.

    In digons along axes, at the closed form, `L_SAE = L_WSAE = 0` for every metric and sparsity, so both gaps are L_GT itself
    and no weights close them; elsewhere they are computed. L_WSAE scales with the metric, L_GT does not.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    >>> gaps = loss_gaps(Autoencoder(jnp.array([[1.0], [-1.0]])), x, x[:, :1] - x[:, 1:])
    >>> float(gaps.sae), float(gaps.ground_truth), float(gaps.gap)
    (0.0, 1.0, 1.0)
    """
    x_p, weights, metric = check_inputs(sae, x_p, weights, metric)
    plain = reconstruction_loss(sae, x_p, weights=weights)
    weighted = reconstruction_loss(sae, x_p, weights=weights, metric=metric)
    truth = ground_truth_loss(x, sae.encode(x_p), weights=weights, scale=scale).loss
    return LossGaps(plain, weighted, truth, truth - plain, truth - weighted)


def recovery_rate(sparsities: Float[Array, " s"], losses: Float[Array, " s"]) -> Float[Array, ""]:
    """The power p in `loss ~ (1 - S)^p`, by least squares in logarithms: 2 for L_GT of digons, 1 where recovery fails.

    `E||x||^2` itself has p = 1, so the truth is recovered as S -> 1 iff p > 1.

    >>> import jax.numpy as jnp
    >>> S = jnp.array([0.9, 0.99])
    >>> round(float(recovery_rate(S, (1 - S) ** 2 / 3)), 3)
    2.0
    """
    log_on, log_loss = jnp.log1p(-jnp.asarray(sparsities)), jnp.log(losses)
    centred = log_on - jnp.mean(log_on)
    return jnp.sum(centred * log_loss) / jnp.sum(centred**2)
