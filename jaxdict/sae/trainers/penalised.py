"""Architectures whose sparsity has a weight, `lam`: standard, gated, jumprelu, p_anneal."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdict.arrays import data_array
from jaxdict.numerics import matmul, safe_divide, safe_norm
from jaxdict.sae.models import SAE, Metadata
from jaxdict.sae.trainers.architectures import (
    Architecture,
    Here,
    Params,
    Seen,
    as_thresholded,
    canonical_params,
    pre_activations,
    refuse,
    seen,
)
from jaxdict.sae.trainers.parts import half_square, jump, step

# Batches whose penalties are compared when p-annealing changes its p, as published.
QUEUE = 10


@dataclass(frozen=True)
class Standard(Architecture):
    """`E[1/2 ||x - x_hat||^2 + lam sum_k ||d_k|| f_k]`, `f = relu((x - b_dec) W_enc + b_enc)`.

    Problem P with an encoder in place of exact codes; half the loss of SAE packages at `l1_coefficient = 2 lam`.
    """

    name: ClassVar[str] = "standard"

    def loss(self, params: Params, x: Float[Array, "samples d_in"], here: Here) -> tuple[Float[Array, ""], Seen]:
        f = jax.nn.relu(pre_activations(params, x))
        r = x - matmul(f, params.W_dec) - params.b_dec
        penalty = jnp.mean(matmul(f, safe_norm(params.W_dec)))
        return half_square(r) + here.lam * penalty, seen(f, r, here.running)

    def described(self, lam: float | None) -> Metadata:
        return Metadata(architecture=self.name, lam=lam)


@dataclass(frozen=True)
class PAnneal(Architecture):
    """`E[1/2 ||x - x_hat||^2 + c lam sum_k (||d_k|| f_k)^p]`, f as in standard, p falling from 1 to `p_end`.

    p is 1 over the first `start` of the steps, then falls in `updates` equal parts until `end` of them, and stays. When it falls
    from p to q, `c *= E sum f^p / E sum f^q` over the last ten batches, so that the penalty goes on where it was (Karvonen et al.
    2024); c starts at one.
    """

    p_end: float = 0.2
    start: float = 0.2
    end: float = 0.8
    updates: int = 10
    name: ClassVar[str] = "p_anneal"

    def sized(self, d_sae: int, k: float | None) -> "PAnneal":
        refuse(not 0 < self.p_end < 1, f"p_end is {self.p_end}; give a power between 0 and 1, which p falls to")
        refuse(
            not 0 <= self.start < self.end <= 1,
            f"p falls from {self.start} to {self.end} of the steps; give shares that rise, from 0 to 1",
        )
        refuse(self.updates < 1, f"updates is {self.updates}; give the number of times that p falls, 1 or more")
        return self

    def running(self, zero: Float[Array, ""]) -> Float[Array, " running"]:
        """c, and the penalties of the last batches at p and at the next p."""
        return jnp.full_like(zero, 0, shape=(1 + 2 * QUEUE,)).at[0].set(1)

    def power(self, falls) -> Array:
        """p after so many falls.

        >>> [round(float(PAnneal(updates=2).power(falls)), 2) for falls in (0, 1, 2, 3)]
        [1.0, 0.6, 0.2, 0.2]
        """
        return 1 - (1 - self.p_end) * jnp.minimum(falls, self.updates) / self.updates

    def falls(self, progress) -> Array:
        """How often p has fallen when this share of the steps is done.

        >>> [float(PAnneal().falls(share)) for share in (0.1, 0.2, 0.5, 0.81)]
        [0.0, 1.0, 6.0, 10.0]
        """
        # A small excess, so that a share computed as 0.19999 counts as the 0.2 that it stands for.
        passed = (progress - self.start) / (self.end - self.start) * self.updates + 1e-4
        return jnp.clip(jnp.floor(passed) + 1, 0, self.updates)

    def loss(self, params: Params, x: Float[Array, "samples d_in"], here: Here) -> tuple[Float[Array, ""], Seen]:
        f = jax.nn.relu(pre_activations(params, x))
        r = x - matmul(f, params.W_dec) - params.b_dec
        z = f * safe_norm(params.W_dec)
        falls, later = self.falls(here.step / here.steps), self.falls((here.step + 1) / here.steps)
        now, following = (_power_sum(z, self.power(count)) for count in (falls, falls + 1))
        factor, queue = here.running[0], here.running[1:].reshape(2, QUEUE)
        latest = jnp.stack([now, following])
        queue = jax.lax.stop_gradient(jnp.concatenate([queue[:, 1:], latest[:, None]], axis=1))
        sums = jnp.sum(queue, axis=1)
        changed = jnp.where(later > falls, factor * safe_divide(sums[0], sums[1], 1), factor)
        running = jnp.concatenate([changed[None], queue.ravel()])
        return half_square(r) + here.lam * factor * now, seen(f, r, running)

    def described(self, lam: float | None) -> Metadata:
        return Metadata(architecture="standard", trained_as=self.name, penalty="power", power=self.p_end)


@dataclass(frozen=True)
class JumpReLU(Architecture):
    """`E[1/2 ||x - x_hat||^2 + lam sum_k 1[p_k > theta_k]]`, `z_k = p_k 1[p_k > theta_k]`, `x_hat = z D + b_dec`.

    `p = ||d_k|| ((x - b_dec) W_enc + b_enc)_k` and D of unit rows: thresholds do not depend on decoder norms. `theta = exp(log_threshold)`
    is learned by slopes estimated within `bandwidth` of it (Rajamanoharan et al. 2024, "Jumping Ahead"), from `threshold` on; both are
    in the units of training, where rows have mean square one about the offset. Adam has no first moment, as published.
    """

    bandwidth: float = 0.1
    threshold: float = 0.05
    name: ClassVar[str] = "jumprelu"
    start_norm: ClassVar[float] = 1.0  # products of unit rows: shorter ones would all start below the threshold
    momentum: ClassVar[float] = 0.0

    def sized(self, d_sae: int, k: float | None) -> "JumpReLU":
        for name, value in (("bandwidth", self.bandwidth), ("threshold", self.threshold)):
            refuse(not value > 0, f"{name} is {value}; give a positive number, small beside the codes")
        return self

    def more(self, zeros: Float[Array, " d_sae"]) -> dict[str, Array]:
        return {"log_threshold": jnp.log(zeros + self.threshold)}

    def weight(self, lam, scale):
        """A count of codes does not scale: lam scales as the squared error does."""
        return lam * scale * scale

    def level(self, lam):
        """A code z pays where `1/2 z^2 > lam`."""
        return jnp.sqrt(2 * lam)

    def loss(self, params: Params, x: Float[Array, "samples d_in"], here: Here) -> tuple[Float[Array, ""], Seen]:
        unit, threshold = canonical_params(params), _threshold(params)
        p = pre_activations(unit, x)
        z: Any = jump(p, threshold, self.bandwidth)
        r = x - matmul(z, unit.W_dec) - unit.b_dec
        on: Any = step(p, threshold, self.bandwidth)
        return half_square(r) + here.lam * jnp.mean(jnp.sum(on, axis=1)), seen(z, r, here.running)

    def finish(self, params: Params, k: float | None, running: Float[Array, " running"]) -> SAE:
        return as_thresholded(canonical_params(params), _threshold(params))


@dataclass(frozen=True)
class Gated(Architecture):
    """`E[1/2 ||x - x_hat||^2 + lam sum_k ||d_k|| relu(g_k) + 1/2 ||x - relu(g) D - b||^2]`.

    `c = (x - b_dec) W_enc`, `g = c + b_enc`, `f = 1[g > 0] relu(exp(r_mag) c + b_mag)`, `x_hat = f W_dec + b_dec` (Rajamanoharan et
    al. 2024, "Improving dictionary learning with gated SAEs", decoder norms in the penalty in place of a bound on them). The last term
    teaches D and b too, as in SAELens: published is that it does not, but where rows may have any norm nothing then keeps gates small
    (four times the codes at the same lam). The end is the jumprelu SAE that it equals.
    """

    name: ClassVar[str] = "gated"

    def more(self, zeros: Float[Array, " d_sae"]) -> dict[str, Array]:
        return {"r_mag": zeros, "b_mag": zeros}

    def loss(self, params: Params, x: Float[Array, "samples d_in"], here: Here) -> tuple[Float[Array, ""], Seen]:
        c = matmul(x - params.b_dec, params.W_enc)
        g = c + params.b_enc
        gate = jax.nn.relu(g)
        f = jnp.where(g > 0, jax.nn.relu(jnp.exp(params.r_mag) * c + params.b_mag), 0)
        r = x - matmul(f, params.W_dec) - params.b_dec
        by_gate = half_square(x - matmul(gate, params.W_dec) - params.b_dec)
        penalty = jnp.mean(matmul(gate, safe_norm(params.W_dec)))
        return half_square(r) + here.lam * penalty + by_gate, seen(f, r, here.running)

    def finish(self, params: Params, k: float | None, running: Float[Array, " running"]) -> SAE:
        unit = canonical_params(params)
        gain = jnp.exp(unit.r_mag)
        threshold = unit.b_mag - gain * unit.b_enc
        return as_thresholded(unit._replace(W_enc=unit.W_enc * gain, b_enc=unit.b_mag), threshold)

    def described(self, lam: float | None) -> Metadata:
        return Metadata(architecture="jumprelu", trained_as=self.name)


def training_loss(sae: SAE, x: Float[Array, "samples d_in"], lam) -> Float[Array, ""]:
    """`mean 1/2 ||x - x_hat||^2 + lam sum_k ||d_k|| f_k` of a batch.

    >>> sae = SAE(jnp.eye(1), jnp.array([-0.5]), jnp.eye(1), jnp.zeros(1))
    >>> float(training_loss(sae, jnp.array([[2.0]]), 0.5))  # 1/2 (1/2)^2 + 1/2 (3/2)
    0.875
    """
    x = data_array(x, "x")
    f = sae.encode(x)
    r = x - sae.decode(f, x)
    return jnp.mean(0.5 * jnp.sum(r * r, axis=1) + lam * matmul(f, sae.norms))


def _threshold(params: Params) -> Float[Array, " d_sae"]:
    return jnp.exp(params.log_threshold)


def _power_sum(z: Float[Array, "samples d_sae"], power) -> Float[Array, ""]:
    """`E sum_k z_k^p`; codes at zero have no slope."""
    on = z > 0
    powers = jnp.exp(power * jnp.log(jnp.where(on, z, 1)))
    return jnp.mean(jnp.sum(jnp.where(on, powers, 0), axis=1))
