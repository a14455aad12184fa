"""What training losses are made of: the largest few, thresholds with estimated slopes, the error that dead latents take on."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdict.numerics import matmul, safe_divide, safe_norm

# Weiszfeld's steps to the geometric median: it starts at the mean, and is where training starts, not where it ends.
MEDIAN_STEPS = 50


def keep_largest(z: Float[Array, "samples d_sae"], k, axes: tuple[int, ...]) -> Float[Array, "samples d_sae"]:
    """The k largest codes along the axes, others zero: one row's with `axes=(1,)`, the whole batch's with `axes=(0, 1)`.

    Codes are not negative. The choice is a constant to derivatives; codes that tie with the last one are kept too.

    >>> z = jnp.array([[3.0, 1.0], [0.5, 0.0]])
    >>> keep_largest(z, 1, (1,)).tolist(), keep_largest(z, 2, (0, 1)).tolist()
    ([[3.0, 0.0], [0.5, 0.0]], [[3.0, 1.0], [0.0, 0.0]])
    """
    least, next_one = kth_largest(jax.lax.stop_gradient(z), k, axes)
    # Half way to the first code that goes: a compiler may compute z anew for this comparison, and round it otherwise.
    return jnp.where(z >= 0.5 * (least + next_one), z, 0)


def kth_largest(z: Float[Array, "samples d_sae"], k, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The k-th and the next largest of numbers that are not negative, along the axes, which stay with length one.

    The bits of such numbers, read as integers, are in the numbers' order: the largest pattern that k entries reach is found bit
    by bit. A sort's result without the sort, and k may be traced. Zero where there are fewer entries.

    >>> [found.tolist() for found in kth_largest(jnp.array([[3.0, 1.0, 2.0]]), 2, (1,))]
    [[[2.0]], [[1.0]]]
    """
    bits = jax.lax.bitcast_convert_type(z, jnp.int64 if z.dtype.itemsize == 8 else jnp.int32)
    top = 8 * z.dtype.itemsize - 2

    def settle(step, found):
        bit = jnp.left_shift(jnp.ones_like(found[0]), (top - step).astype(bits.dtype))
        return tuple(
            jnp.where(jnp.sum(bits >= (so_far | bit), axis=axes, keepdims=True) >= count, so_far | bit, so_far)
            for so_far, count in zip(found, (k, k + 1), strict=True)
        )

    zero = jnp.zeros_like(jnp.max(bits, axis=axes, keepdims=True))
    found = jax.lax.fori_loop(0, top + 1, settle, (zero, zero))
    return jax.lax.bitcast_convert_type(found[0], z.dtype), jax.lax.bitcast_convert_type(found[1], z.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def jump(p: Float[Array, "samples d_sae"], threshold: Float[Array, " d_sae"], bandwidth: float):
    """`p 1[p > threshold]`, whose slope in the threshold is estimated: `-(threshold / bandwidth) K((p - threshold) / bandwidth)`.

    K is one on (-1/2, 1/2) and zero beyond (Rajamanoharan et al. 2024, "Jumping Ahead"). The slope in p is `1[p > threshold]`.

    >>> jax.grad(lambda t: jump(jnp.array([[0.45]]), t, 0.2).sum())(jnp.array([0.5])).tolist()
    [-2.5]
    """
    return jnp.where(p > threshold, p, 0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def step(p: Float[Array, "samples d_sae"], threshold: Float[Array, " d_sae"], bandwidth: float):
    """`1[p > threshold]`, whose slope in the threshold is estimated: `-(1 / bandwidth) K((p - threshold) / bandwidth)`, in p zero.

    >>> jax.grad(lambda t: step(jnp.array([[0.45]]), t, 0.2).sum())(jnp.array([0.5])).tolist()
    [-5.0]
    """
    return (p > threshold).astype(p.dtype)


def _kept(function):
    return lambda p, threshold, bandwidth: (function(p, threshold, bandwidth), (p, threshold))


def _near(p, threshold, bandwidth: float, slope):
    """The slopes of codes within half a bandwidth of their threshold, over the bandwidth, added up."""
    return jnp.sum(jnp.where(jnp.abs(p - threshold) < bandwidth / 2, slope, 0), axis=0) / bandwidth


def _jump_slopes(bandwidth: float, kept, slope):
    p, threshold = kept
    return jnp.where(p > threshold, slope, 0), -threshold * _near(p, threshold, bandwidth, slope)


def _step_slopes(bandwidth: float, kept, slope):
    p, threshold = kept
    return jnp.zeros_like(p), -_near(p, threshold, bandwidth, slope)


jump.defvjp(_kept(jump), _jump_slopes)
step.defvjp(_kept(step), _step_slopes)


def dead_error(
    z: Float[Array, "samples d_sae"],
    dead: Bool[Array, " d_sae"],
    some_dead: Bool[Array, ""],
    atoms: Float[Array, "d_sae d_in"],
    r: Float[Array, "samples d_in"],
) -> Float[Array, ""]:
    """`w E 1/2 ||r - z' D||^2`, z' the d_in / 2 largest codes of dead latents in each row, r a constant (Gao et al. 2024, A.2).

    `w = min(1, dead / (d_in / 2))`: nothing where none is dead, and nothing is computed without `some_dead`.

    >>> z, atoms, r = jnp.array([[2.0, 1.0]]), jnp.eye(2), jnp.array([[0.0, 3.0]])
    >>> [float(dead_error(z, jnp.array(dead), jnp.any(jnp.array(dead)), atoms, r)) for dead in ([False, True], [False, False])]
    [2.0, 0.0]
    """
    most = max(1, r.shape[1] // 2)

    def error():
        own = keep_largest(jnp.where(dead, z, 0), most, (1,))
        left = jax.lax.stop_gradient(r) - matmul(own, atoms)
        share = jnp.minimum(jnp.sum(dead).astype(z.dtype) / most, 1)
        return share * half_square(left)

    return jax.lax.cond(some_dead, error, lambda: jnp.zeros_like(z[0, 0]))


def half_square(r: Float[Array, "samples d_in"]) -> Float[Array, ""]:
    """`E 1/2 ||r||^2`.

    >>> float(half_square(jnp.array([[2.0, 0.0], [0.0, 0.0]])))
    1.0
    """
    return 0.5 * jnp.mean(jnp.sum(r * r, axis=1))


def geometric_median(x: Float[Array, "samples d"]) -> Float[Array, " d"]:
    """The point whose distances to the rows have the least sum, by Weiszfeld's iteration from the mean.

    >>> [round(float(v), 3) for v in geometric_median(jnp.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 0.0]]))]
    [0.0, 0.0]
    """
    mean = jnp.mean(x, axis=0)
    # A row at the point itself would have all the weight: distances count from a small share of the rows' spread.
    least = 1e-6 * jnp.mean(safe_norm(x - mean))

    def closer(_, point):
        pulls = safe_divide(jnp.ones_like(x[:, 0]), jnp.maximum(safe_norm(x - point), least))
        return jnp.where(least > 0, safe_divide(matmul(pulls, x), jnp.sum(pulls)), point)

    return jax.lax.fori_loop(0, MEDIAN_STEPS, closer, mean)
