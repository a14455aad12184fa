"""Arithmetic whose precision is stated: products at the highest precision, sums by quarters or block by block; safe quotients."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Accelerators multiply float32 in TF32 or bfloat16 unless told otherwise; a gap or a certificate would be ruined without a word.
PRECISION = jax.lax.Precision.HIGHEST
matmul = functools.partial(jnp.matmul, precision=PRECISION)
einsum = functools.partial(jnp.einsum, precision=PRECISION)


def pairwise_sum(values: Float[Array, "samples *rest"]) -> Float[Array, " *rest"]:  # noqa: F821
    """Sum over the first axis by quarters: the rounding error grows with log2(samples), not with samples.

    >>> import jax.numpy as jnp
    >>> float(pairwise_sum(jnp.ones(1000)))
    1000.0
    """
    # Eight runs of neighbours at most: parts of a run stay on its device where the samples are sharded.
    n, runs = values.shape[0], math.gcd(values.shape[0], 8)
    values = values.reshape(runs, n // runs, *values.shape[1:])
    while values.shape[1] > 1:
        quarter = -(-values.shape[1] // 4)
        values = jnp.pad(values, [(0, 0), (0, 4 * quarter - values.shape[1])] + [(0, 0)] * (values.ndim - 2))
        values = jnp.sum(values.reshape(runs, 4, quarter, *values.shape[2:]), axis=1)
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


def safe_divide(a, b, otherwise=0):
    """`a / b`, and `otherwise` where b is zero, with derivatives that are finite there.

    >>> import jax.numpy as jnp
    >>> safe_divide(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])).tolist()
    [0.5, 0.0]
    """
    there = b != 0
    return jnp.where(there, a / jnp.where(there, b, 1), otherwise)


def select(where: Bool[Array, "..."], new, old):
    """Leaf by leaf, `new` where the flags say so, else `old`; flags speak of the leaves' first axes.

    >>> import jax.numpy as jnp
    >>> select(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2))).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def one(a, b):
        return jnp.where(where.reshape(where.shape + (1,) * (jnp.ndim(a) - where.ndim)), a, b)

    return jax.tree.map(one, new, old)


def packed(rows) -> tuple[Float[Array, "samples numbers"], Int[Array, "samples counts"]]:
    """Arrays of samples side by side, floats in one and all else in another: gathered and scattered as two, however many they are.

    >>> import jax.numpy as jnp
    >>> [array.tolist() for array in packed((jnp.array([1.5]), jnp.array([True]), jnp.array([[2.0, 3.0]])))]
    [[[1.5, 2.0, 3.0]], [[1]]]
    """
    flat = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(rows)]
    floats = [leaf for leaf in flat if jnp.issubdtype(leaf.dtype, jnp.floating)]
    rest = [leaf.astype(jnp.int32) for leaf in flat if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate(floats, axis=1), jnp.concatenate(rest, axis=1)


def unpacked(arrays, like):
    """The way back from `packed`: arrays of so many samples as there are, else of the form of `like`.

    >>> import jax.numpy as jnp
    >>> rows = jnp.array([1.5, 2.5]), jnp.array([True, False])
    >>> [leaf.tolist() for leaf in unpacked(packed(rows), rows)]
    [[1.5, 2.5], [True, False]]
    """
    leaves, tree = jax.tree.flatten(like)
    found, ends = [], [0, 0]
    for leaf in leaves:
        kind = 0 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1
        begin, ends[kind] = ends[kind], ends[kind] + math.prod(leaf.shape[1:])
        part = arrays[kind][:, begin : ends[kind]]
        found.append(part.reshape(-1, *leaf.shape[1:]).astype(leaf.dtype))
    return jax.tree.unflatten(tree, found)


def power_of_two(array: Float[Array, "..."], axis: int | None = None) -> Float[Array, "..."]:
    """The power of two above the largest finite entry (one where all are zero), within what the dtype and its reciprocal hold.

    Over it, entries are of size one and squares neither overflow nor underflow; nothing is rounded.

    >>> import jax.numpy as jnp
    >>> power_of_two(jnp.array([[3.0, -5.0], [0.0, 0.25]]), axis=1).tolist()
    [8.0, 0.5]
    """
    size = jnp.max(jnp.where(jnp.isfinite(array), jnp.abs(array), 0), axis=axis, initial=0)
    limits, most = jnp.finfo(size.dtype), jnp.finfo(size.dtype).maxexp - 2
    # Without its last bits, the mantissa's, a positive number is the power of two below it.
    bits = jax.lax.bitcast_convert_type(size, f"int{limits.bits}") >> limits.nmant << limits.nmant
    above = jnp.clip(2 * jax.lax.bitcast_convert_type(bits, size.dtype), 2.0**-most, 2.0**most)
    return jnp.where(size > 0, above, 1)


def round_up(n: int, step: int) -> int:
    """The least multiple of `step` that is at least n.

    >>> round_up(17, 8)
    24
    """
    return step * -(-n // step)


def cut_in_blocks(arrays, size: int):
    """The rows of the arrays in blocks of at most about `size`, on a new first axis; zero rows fill the last.

    A block takes its rows from up to eight even parts of the data, so that samples spread over devices stay where they
    are. `join_blocks` is the way back.

    >>> import jax.numpy as jnp
    >>> cut_in_blocks(jnp.arange(3.0), 2).tolist()
    [[0.0, 1.0], [2.0, 0.0]]
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    parts, n_blocks, rows = _block_shape(n, size)

    def cut(array):
        split = array.reshape(parts, n // parts, *array.shape[1:])
        padded = jnp.pad(split, [(0, 0), (0, n_blocks * rows - n // parts)] + [(0, 0)] * (array.ndim - 1))
        blocks = jnp.swapaxes(padded.reshape(parts, n_blocks, rows, *array.shape[1:]), 0, 1)
        return blocks.reshape(n_blocks, parts * rows, *array.shape[1:])

    return jax.tree.map(cut, arrays)


def join_blocks(blocks, n: int, size: int):
    """The rows of `cut_in_blocks(arrays of n rows, size)`, or of what became of each, in their order again.

    >>> import jax.numpy as jnp
    >>> join_blocks(cut_in_blocks(jnp.arange(9.0), 4), 9, 4).tolist() == list(range(9))
    True
    """
    parts, n_blocks, rows = _block_shape(n, size)

    def join(array):
        rest = array.shape[2:]
        split = jnp.swapaxes(array.reshape(n_blocks, parts, rows, *rest), 0, 1).reshape(parts, n_blocks * rows, *rest)
        return split[:, : n // parts].reshape(n, *rest)

    return jax.tree.map(join, blocks)


def sum_in_blocks(sums, arrays, size: int, largest=()):
    """`sums(arrays)` with the rows taken block by block: its results add up, but for the fields named in `largest`.

    Zero rows must add nothing. Only one block's work and twice the results are held, never a result a block. Each sum
    keeps what rounding loses (Neumaier), so that float32 holds as well for many blocks as for one.

    >>> import jax.numpy as jnp
    >>> sum_in_blocks(lambda x: jnp.sum(x, axis=0), jnp.ones((5, 2)), 2).tolist()
    [5.0, 5.0]
    """
    first = jax.tree.leaves(arrays)[0]
    if first.shape[0] <= size:
        return sums(arrays)
    return sum_over_blocks(lambda block: ((), sums(block)), cut_in_blocks(arrays, size), largest)[1]


def sum_over_blocks(one, blocks, largest=()):
    """`one(block)` gives (what is kept of each block, sums): what was kept, a block each, and the sums over all blocks.

    >>> import jax.numpy as jnp
    >>> sum_over_blocks(lambda x: (jnp.max(x), jnp.sum(x)), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    (Array([2., 4.], dtype=float32), Array(10., dtype=float32))
    """
    first = jax.tree.leaves(blocks)[0]
    _, shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], blocks))
    seed = jnp.zeros_like(first.ravel()[0])  # born from the data, so that it shards as they do
    zeros = jax.tree.map(lambda leaf: jnp.broadcast_to(seed.astype(leaf.dtype), leaf.shape), shapes)

    def add(carry, block):
        total, lost = carry
        kept, part = one(block)
        new = jax.tree.map(jnp.add, total, part)
        lost = jax.tree.map(
            lambda lost, a, b, c: lost + jnp.where(jnp.abs(a) >= jnp.abs(b), (a - c) + b, (b - c) + a),
            lost, total, part, new,
        )  # fmt: skip
        tops = {name: jnp.maximum(getattr(total, name), getattr(part, name)) for name in largest}
        return (new._replace(**tops) if tops else new, lost), kept

    (total, lost), kept = jax.lax.scan(add, (zeros, zeros), blocks)
    # What overflowed has nothing left to correct.
    summed = jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(a), a + b, a), total, lost)
    return kept, summed._replace(**{name: getattr(total, name) for name in largest}) if largest else summed


def _block_shape(n: int, size: int) -> tuple[int, int, int]:
    """Parts of the data, blocks, and rows that a block takes from each part."""
    parts = math.gcd(n, 8) if size >= 8 else 1
    rows = max(1, min(n, size) // parts)
    return parts, -(-(n // parts) // rows), rows


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
