"""Weights of input dimensions that grow with their monosemanticity (theory.md section 6): a metric m for every part of jaxdict."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.arrays import as_jax, data_array, floating_dtype, is_concrete, look, real_array
from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import einsum
from jaxdict.points import weights_like

PROXIES = ("variance", "consistency")
# A proxy below this share of the mean counts as this share, so that the metric stays positive.
FLOOR = 1e-6


def dimension_variance(X: Float[Array, "samples d"], weights=None) -> Float[Array, " d"]:
    """Variance of each dimension over samples, in squared units of the data. Samples may be weighted (mean one).

    >>> import jax.numpy as jnp
    >>> dimension_variance(jnp.array([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    X = data_array(X)
    w = weights_like(weights, X.shape[0], X.dtype)
    return _variance(X, jnp.ones_like(X[:, 0]) if w is None else w)


@jax.jit
def _variance_of(X: Float[Array, "samples d"], w):
    mean = jnp.mean(w[:, None] * X, axis=0)
    return jnp.mean(w[:, None] * (X - mean) ** 2, axis=0)


_variance = on_any_mesh(_variance_of)


def label_numbers(labels) -> Int[Array, " samples"]:
    """Labels of any kind (strings, classes) as numbers from zero. Host side.

    >>> label_numbers(["verb", "noun", "verb"]).tolist()
    [1, 0, 1]
    """
    return jnp.asarray(np.unique(np.asarray(labels), return_inverse=True)[1])


def semantic_consistency(X: Float[Array, "samples d"], labels, *, top: int = 20, n_labels=None) -> Float[Array, " d"]:
    """The largest share of one label among the `top` samples that activate a dimension most; between 1/labels and one.

    `labels` (samples,) are numbers from zero (`label_numbers`); under jit give their number `n_labels`. The columns may
    be input dimensions (a proxy for weights) or latents (a measure of monosemanticity). A column whose top samples
    are not all positive has fewer activations than `top`: only its positive ones count, and with none it has NaN.

    Raises ValueError for labels of the wrong length.

    >>> import jax.numpy as jnp
    >>> X = jnp.array([[3.0, 1.0], [2.0, 0.0], [1.0, 5.0], [0.0, 4.0]])
    >>> semantic_consistency(X, jnp.array([0, 0, 1, 0]), top=2).tolist()
    [1.0, 0.5]
    """
    X, labels = data_array(X), real_array(labels, "labels")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels have dtype {labels.dtype}; give numbers from zero, as label_numbers does")
    if labels.shape != X.shape[:1]:
        raise ValueError(
            f"labels have shape {labels.shape} but there are {X.shape[0]} samples; give one label a sample"
        )
    if n_labels is None:
        if not is_concrete(labels):
            raise ValueError("n_labels is not given: under jit the number of labels must be a Python integer")
        n_labels = int(look(lambda xp, a: xp.max(a), labels)) + 1
    return _consistency(X, jnp.asarray(labels), top, n_labels)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _consistency_of(X: Float[Array, "samples d"], labels, top, n_labels):
    values, samples = jax.lax.top_k(X.T, min(top, X.shape[0]))
    counted = (values > 0).astype(X.dtype)
    named = jax.nn.one_hot(labels[samples], n_labels, dtype=X.dtype)
    counts = einsum("dt,dtl->dl", counted, named)
    return jnp.max(counts, axis=1) / jnp.sum(counted, axis=1)


_consistency = on_any_mesh(_consistency_of)


def reweight(proxy: Float[Array, " d"], alpha) -> Float[Array, " d"]:
    """The metric `m_i = (proxy_i / mean proxy)^alpha`, positive; alpha = 0 gives ones, i.e. no reweighting.

    A proxy below 1e-6 of the mean (or NaN) counts as that, so a dead dimension keeps a tiny weight. `mean(m)` is one
    only at alpha = 0 and 1, so at another alpha the same `lam` is another trade: data terms grow by about mean(m).
    `alpha` may be traced. Use as `jd.Problem(lam, metric=reweight(...))` or `train(..., metric=...)`.

    Raises ValueError for a negative proxy, or one that is zero everywhere.

    >>> import jax.numpy as jnp
    >>> reweight(jnp.array([1.0, 3.0]), 2.0).tolist()
    [0.25, 2.25]
    """
    proxy = real_array(proxy, "proxy")  # type: ignore
    if is_concrete(proxy):
        least, most = look(lambda xp, a: (xp.nanmin(a), xp.nanmax(a)), proxy)
        if least < 0:
            raise ValueError(f"proxy has a negative entry: {float(least):g}; give a proxy >= 0, as a variance is")
        if not most > 0:
            raise ValueError("proxy is zero in every dimension; it must tell dimensions apart")
    proxy = as_jax(proxy, floating_dtype(proxy))
    proxy = jnp.where(jnp.isnan(proxy), 0, proxy)
    relative = proxy / jnp.mean(proxy)
    return jnp.maximum(relative, FLOOR) ** alpha


def metric_from(
    X: Float[Array, "samples d"], alpha, *, proxy: str | Callable = "variance", labels=None, weights=None
) -> Float[Array, " d"]:
    """`reweight` with a proxy by name, or any function of X that gives a (d,) array >= 0.

    "variance" is `dimension_variance`; "consistency" is `semantic_consistency`, which needs `labels`.

    >>> import jax.numpy as jnp
    >>> metric_from(jnp.array([[1.0, 0.0], [4.0, 3.0]]), 1.0).tolist()
    [1.0, 1.0]
    >>> metric_from(jnp.array([[1.0, 0.0], [5.0, 2.0]]), 1.0, proxy=lambda X: X.mean(0)).tolist()
    [1.5, 0.5]
    """
    if callable(proxy):
        return reweight(proxy(X), alpha)
    if proxy not in PROXIES:
        raise ValueError(f"proxy={proxy!r} is unknown; use one of {PROXIES} or a function of X")
    if proxy == "variance":
        return reweight(dimension_variance(X, weights), alpha)
    if labels is None:
        raise ValueError("labels are not given; semantic consistency needs one label a sample")
    return reweight(semantic_consistency(X, labels), alpha)


def learned_metric(errors: Float[Array, " d"], temperature) -> Float[Array, " d"]:
    """Weights that are learned rather than chosen, for comparison: `m = d softmax(-errors / temperature)`, mean one.

    It is the m that minimises `sum_i m_i errors_i + temperature sum_i m_i log m_i` at mean one, so descending
    with it minimises `-temperature d log mean exp(-errors / temperature)`: dimensions that are easy to reconstruct
    gain weight. `temperature` is in units of the errors; infinity gives ones.

    >>> import jax.numpy as jnp
    >>> learned_metric(jnp.array([0.0, 1.0]), jnp.inf).tolist()
    [1.0, 1.0]
    """
    return errors.shape[0] * jax.nn.softmax(-errors / temperature)
