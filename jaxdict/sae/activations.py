"""What an SAE does with its pre-activations, one function a kind; leading dimensions are free.

Kinds that let features compete (top-k and its like) compare `pre * ranking`, so that a change of gauge, which
rescales each feature, does not change who wins.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.numerics import matmul, safe_norm

KINDS = ("relu", "jumprelu", "topk", "abstopk", "groupmax", "matching_pursuit")
RANKED = ("topk", "abstopk", "groupmax", "matching_pursuit")


@dataclass(frozen=True)
class Activation:
    """The kind of activation and its fixed numbers: plain Python, so that a jitted encoder compiles once for each.

    - `kind`: one of "relu", "jumprelu", "topk", "abstopk", "groupmax", "matching_pursuit".
    - `k`: features kept (topk, abstopk), number of groups (groupmax), most steps (matching_pursuit).
    - `residual_threshold`, `stop_on_repeat`: when matching pursuit stops.

    Raises ValueError for an unknown kind, or a kind without the `k` it needs.

    >>> Activation("topk", k=32).k
    32
    """

    kind: str
    k: int | None = None
    residual_threshold: float = 0.0
    stop_on_repeat: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"activation kind {self.kind!r} is unknown; use one of {KINDS}")
        if self.kind in RANKED and (self.k is None or self.k < 1):
            raise ValueError(f"activation {self.kind!r} needs k >= 1, got {self.k}")


def activate(activation: Activation, pre: Float[Array, "*batch d_sae"], threshold=None, ranking=None):
    """Features from pre-activations: `relu(pre)`, kept where the kind keeps them.

    - relu: all. jumprelu: where `pre > threshold` (strict).
    - topk: the k largest `pre * ranking` of each row. abstopk: the k largest in size, signs kept.
    - groupmax: the largest `relu(pre) * ranking` in each of k runs of neighbours.

    >>> activate(Activation("topk", k=1), jnp.array([3.0, -5.0, 4.0]))
    Array([0., 0., 4.], dtype=float32)
    """
    if activation.kind == "relu":
        return jax.nn.relu(pre)
    if activation.kind == "jumprelu" and threshold is not None:
        return jnp.where(pre > threshold, jax.nn.relu(pre), 0)
    if activation.kind == "abstopk":
        return _keep_largest(pre, jnp.abs(_ranked(pre, ranking)), activation.k)
    if activation.kind == "topk":
        return _keep_largest(jax.nn.relu(pre), _ranked(pre, ranking), activation.k)
    if activation.kind == "groupmax":
        return _keep_group_maxima(jax.nn.relu(pre), ranking, activation.k)
    raise ValueError(f"activation {activation.kind!r} needs a threshold, or inputs where these are pre-activations")


def pursue(
    activation: Activation, inputs: Float[Array, "*batch d_in"], analysis, atoms, ranking=None
) -> Float[Array, "*batch d_sae"]:
    """Matching pursuit: again and again the best feature takes its share of what is left.

    From `r = input`: `i = argmax ranking_i relu(r . analysis_i)`, `v = relu(r . analysis_i)`, `f_i += v`, `r -= v
    atom_i`; a row stops, after the update, when its set of features did not grow (`stop_on_repeat`) or `||r|| <
    residual_threshold`, or after k steps. `analysis` is (d_in, d_sae), `atoms` (d_sae, d_in). A while loop: forward
    derivatives only.

    >>> pursue(Activation("matching_pursuit", k=2), jnp.array([3.0, 1.0]), jnp.eye(2), jnp.eye(2))
    Array([3., 1.], dtype=float32)
    """
    residual = inputs.reshape(-1, inputs.shape[-1])
    rows = jnp.arange(residual.shape[0])
    features = jnp.zeros((residual.shape[0], atoms.shape[0]), residual.dtype)

    def unfinished(state):
        _, _, active, step = state
        return jnp.any(active) & (step < activation.k)

    def take_best(state):
        residual, features, active, step = state
        scores = jax.nn.relu(matmul(residual, analysis))
        best = jnp.argmax(_ranked(scores, ranking), axis=1)
        share = jnp.where(active, scores[rows, best], 0)
        grows = (features[rows, best] == 0) & (share > 0)
        features = features.at[rows, best].add(share)
        residual = residual - share[:, None] * atoms[best]
        stop = safe_norm(residual) < activation.residual_threshold
        stop = stop | ~grows if activation.stop_on_repeat else stop
        return residual, features, active & ~stop, step + 1

    start = (residual, features, jnp.ones_like(rows, dtype=bool), jnp.zeros((), int))
    return jax.lax.while_loop(unfinished, take_best, start)[1].reshape(*inputs.shape[:-1], atoms.shape[0])


def _ranked(pre, ranking):
    return pre if ranking is None else pre * ranking


def _keep_largest(values, scores, k):
    _, indices = jax.lax.top_k(scores, k)
    kept = jnp.take_along_axis(values, indices, axis=-1)
    return jnp.put_along_axis(jnp.zeros_like(values), indices, kept, axis=-1, inplace=False)


def _keep_group_maxima(values, ranking, n_groups):
    groups = (*values.shape[:-1], n_groups, values.shape[-1] // n_groups)
    best = jnp.argmax(_ranked(values, ranking).reshape(groups), axis=-1)
    kept = jax.nn.one_hot(best, groups[-1], dtype=values.dtype) * values.reshape(groups)
    return kept.reshape(values.shape)
