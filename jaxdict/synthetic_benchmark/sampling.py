"""Rows of a benchmark by key."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxdict.meshes import on_any_mesh
from jaxdict.numerics import matmul, safe_divide
from jaxdict.problem import offset_of
from jaxdict.synthetic_benchmark.models import BenchModel
from jaxdict.synthetic_parts import Planted

SAYS = (
    "children that fire only with their parents: not stationary under L1, the parent is absorbed or split (C1, T5, T6)"
)
SAYS_OF_NONE = "features without parents pass the pair condition where they are independent (T6)"


def bench_sample(key, model: BenchModel, n_samples: int = 400) -> Planted:
    """`X = b + Z D` with codes drawn from the model, in its precision: `Planted`, as the other generators give.

    1. Feature i fires with probability `p_i`, alone or by a Gaussian copula: `F e + sqrt(diagonal) h > quantile(1 - p_i)`, e and h
       normal.
    2. Where it fires its size is `max(0, mean_i + spread_i z)`, z normal.
    3. Of siblings that exclude one another and are on, one stays, each with the same chance.
    4. From the roots down a child is zero where its parent is; elsewhere it stays, or where it is scaled goes by its parent's
       size over the parent's mean.

    Their order has 3 within 4; since siblings share their parent, the law is the same. Memory is a few dense arrays (features,
    samples). Pure; jit, vmap over keys and models.

    >>> import jax, jaxdict as jd
    >>> forest = jd.synthetic.Forest(roots=1, branching=2, depth=1, exclusive=1.0)
    >>> model = jd.synthetic.bench_model(jax.random.key(0), 3, 2, firing=jd.synthetic.firing.Constant(0.5), forest=forest)
    >>> on = jd.synthetic.bench_sample(jax.random.key(1), model, 100).codes > 0
    >>> bool((on[:, 1:].sum(axis=1) <= on[:, 0]).all())  # a child only with its parent, and one at a time
    True
    """
    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} is not positive; draw at least one row")
    return _sample(key, model, n_samples)


@on_any_mesh
@partial(jax.jit, static_argnames="n_samples")
def _sample(key, model: BenchModel, n_samples: int) -> Planted:
    fire_key, size_key, pick_key = jax.random.split(key, 3)
    # One feature a row: parents are then looked up by whole rows.
    shape, dtype = (model.means.shape[0], n_samples), model.means.dtype
    sizes = jax.nn.relu(model.means[:, None] + model.spreads[:, None] * jax.random.normal(size_key, shape, dtype))
    codes = jnp.where(_fired(fire_key, model, shape, dtype), sizes, 0)
    if model.groups is not None:
        codes = _one_of_each(pick_key, codes, model.groups)
    codes = _below_parents(codes, model).T
    none = jnp.full(shape[0], -1)
    return Planted(
        X=matmul(codes, model.dictionary.atoms) + offset_of(model.dictionary),
        codes=codes,
        dictionary=model.dictionary,
        parents=model.parents,
        groups=none if model.groups is None else model.groups,
        says=SAYS if model.depth else SAYS_OF_NONE,
    )


def _fired(key, model, shape, dtype):
    if model.factor is None or model.diagonal is None:
        return jax.random.uniform(key, shape, dtype) < model.probabilities[:, None]
    shared_key, own_key = jax.random.split(key)
    shared = matmul(model.factor, jax.random.normal(shared_key, (model.factor.shape[1], shape[1]), dtype))
    height = shared + jnp.sqrt(model.diagonal)[:, None] * jax.random.normal(own_key, shape, dtype)
    return height > -jax.scipy.special.ndtri(model.probabilities)[:, None]


def _one_of_each(key, codes, groups):
    """Of the features of a group that are on, the one with the highest ticket; every other group's feature is zero."""
    n = codes.shape[0]
    # A ticket ends in the feature's number, so that no two are equal; of 16,384 features, 18 of its bits are random.
    low = max(n - 1, 1).bit_length()
    numbers = jnp.arange(n, dtype=jnp.uint32)[:, None]
    tickets = (jax.random.bits(key, codes.shape, jnp.uint32) >> low << low) | numbers
    tickets = jnp.where(codes > 0, tickets, 0)
    grouped = (groups >= 0)[:, None]
    at = jnp.where(groups >= 0, groups, n)
    best = jax.ops.segment_max(tickets, at, n + 1)[at]
    return jnp.where(grouped & (tickets != best), 0, codes)


def _below_parents(codes, model):
    """Level by level, children times what their parents leave of them."""
    means = model.means[model.parents][:, None]
    for level in range(1, model.depth + 1):
        above = codes[model.parents]
        share = jnp.where(model.scaled[:, None], safe_divide(above, means), (above > 0).astype(codes.dtype))
        codes = jnp.where((model.levels == level)[:, None], codes * share, codes)
    return codes
