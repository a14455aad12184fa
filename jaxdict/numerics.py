"""Arithmetic whose precision is stated: products at the highest precision, sums by halves."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Accelerators multiply float32 in TF32 or bfloat16 unless told otherwise; a gap or a certificate would be ruined without a word.
PRECISION = jax.lax.Precision.HIGHEST
matmul = functools.partial(jnp.matmul, precision=PRECISION)
einsum = functools.partial(jnp.einsum, precision=PRECISION)


def pairwise_sum(values: Float[Array, "samples *rest"]) -> Float[Array, " *rest"]:
    """Sum over the first axis by halves: the rounding error grows with log2(samples), not with samples.

    >>> import jax.numpy as jnp
    >>> float(pairwise_sum(jnp.ones(1000)))
    1000.0
    """
    # Eight runs of neighbours at most: halves of a run stay on its device where the samples are sharded.
    n, runs = values.shape[0], math.gcd(values.shape[0], 8)
    values = values.reshape(runs, n // runs, *values.shape[1:])
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        if values.shape[1] % 2:
            folded = folded.at[:, 0].add(values[:, -1])
        values = folded
    return jnp.sum(values, axis=(0, 1))


def safe_norm(rows: Float[Array, "*batch d"], axis: int = -1) -> Float[Array, " *batch"]:
    """Euclidean norms with derivative zero, not NaN, at zero; NaN where a row has one.

    >>> import jax, jax.numpy as jnp
    >>> jax.grad(lambda v: safe_norm(v))(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    squared = jnp.sum(rows * rows, axis=axis)
    zero = squared == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def unit_rows(rows: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Each row over its Euclidean norm; a zero row stays zero.

    >>> import jax.numpy as jnp
    >>> unit_rows(jnp.array([[0.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    norms = safe_norm(rows)[..., None]
    return rows / jnp.where(norms > 0, norms, 1)


def compensated_subtract(high, low, a, b):
    """`(high + low) - a b` as an unevaluated pair, to about twice the working precision (Dekker's product, Knuth's sum).

    >>> import jax.numpy as jnp
    >>> third = jnp.float32(1) / 3
    >>> high, low = compensated_subtract(jnp.float32(1), jnp.float32(0), third, jnp.float32(3))
    >>> abs(float(high) + float(low) - (1 - 3 * float(third))) < 1e-12
    True
    """
    bits = (jnp.finfo(a.dtype).nmant + 2) // 2
    splitter = 2.0**bits + 1

    def split(v):
        c = splitter * v
        head = c - (c - v)
        return head, v - head

    product = a * b
    (a_head, a_tail), (b_head, b_tail) = split(a), split(b)
    product_error = ((a_head * b_head - product) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail
    total = high - product
    back = total - high
    sum_error = (high - (total - back)) - (product + back)
    return total, low + (sum_error - product_error)
