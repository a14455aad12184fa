"""Architectures that keep so many codes, `k`: topk, batchtopk, matryoshka, matching_pursuit."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxdict.numerics import matmul
from jaxdict.sae.activations import Activation
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
from jaxdict.sae.trainers.parts import dead_error, half_square, keep_largest

# What the error of dead latents counts for: as much as that of the others, as in SAELens; with 1/32 (Gao et al. 2024) fewer come back.
AUXILIARY = 1.0
# How fast the threshold of a batch top-k follows the least code kept in a batch.
THRESHOLD_RATE = 0.01


@dataclass(frozen=True)
class TopK(Architecture):
    """`E 1/2 ||x - x_hat||^2 + auxiliary E 1/2 ||r - z' D||^2`, z the k largest of `relu(p)` in each row, `x_hat = z D + b_dec`.

    `p = ||d_k|| ((x - b_dec) W_enc + b_enc)_k` and D of unit rows, so that decoder norms do not decide who wins. The second term is
    that of dead latents, z' their d_in / 2 largest codes and r what the others leave, a constant there (Gao et al. 2024).
    """

    auxiliary: float = AUXILIARY
    name: ClassVar[str] = "topk"
    counts: ClassVar[bool] = True
    reborn: ClassVar[bool] = False

    def sized(self, d_sae: int, k: float | None) -> "TopK":
        refuse(
            not self.auxiliary >= 0,
            f"auxiliary is {self.auxiliary}; give what dead latents' error counts for, 0 or more",
        )
        return self

    def chosen(self, z: Float[Array, "samples d_sae"], k) -> Float[Array, "samples d_sae"]:
        """The codes that are kept."""
        return keep_largest(z, k, (1,))

    def loss(self, params: Params, x: Float[Array, "samples d_in"], here: Here) -> tuple[Float[Array, ""], Seen]:
        unit = canonical_params(params)
        z = jax.nn.relu(pre_activations(unit, x))
        f = self.chosen(z, here.k)
        error, r = self.error(unit, x, f)
        running = self.followed(jax.lax.stop_gradient(f), here.running)
        extra = dead_error(z, here.dead, here.some_dead, unit.W_dec, r)
        return error + self.auxiliary * extra, seen(f, r, running)

    def error(self, unit: Params, x: Float[Array, "samples d_in"], f: Float[Array, "samples d_sae"]):
        """The squared error of a batch, and what all codes leave of it."""
        r = x - matmul(f, unit.W_dec) - unit.b_dec
        return half_square(r), r

    def followed(self, f: Float[Array, "samples d_sae"], running: Float[Array, " running"]) -> Float[Array, " running"]:
        """The running numbers after a batch."""
        return running

    def finish(self, params: Params, k: float | None, running: Float[Array, " running"]) -> SAE:
        return SAE(*canonical_params(params)[:4], activation=Activation("topk", k=int(k or 1)))


@dataclass(frozen=True)
class BatchTopK(TopK):
    """As topk, but the `k * samples` largest of a whole batch are kept: k a row on average (Bussmann et al. 2024).

    A running mean of the least code kept in a batch becomes the threshold of the jumprelu SAE at the end.
    """

    name: ClassVar[str] = "batchtopk"
    whole: ClassVar[bool] = False

    def running(self, zero: Float[Array, ""]) -> Float[Array, " running"]:
        """The threshold; below zero before any code was kept."""
        return jnp.full_like(zero, -1, shape=(1,))

    def chosen(self, z: Float[Array, "samples d_sae"], k) -> Float[Array, "samples d_sae"]:
        return keep_largest(z, jnp.floor(k * z.shape[0]), (0, 1))

    def followed(self, f: Float[Array, "samples d_sae"], running: Float[Array, " running"]) -> Float[Array, " running"]:
        least = jnp.min(jnp.where(f > 0, f, jnp.inf))
        nearer = jnp.where(running < 0, least, running + THRESHOLD_RATE * (least - running))
        return jnp.where(jnp.isfinite(least), nearer, running)

    def finish(self, params: Params, k: float | None, running: Float[Array, " running"]) -> SAE:
        threshold = jnp.maximum(running[0], 0)
        return as_thresholded(canonical_params(params), jnp.full_like(params.W_dec[:, 0], threshold))

    def described(self, lam: float | None) -> Metadata:
        return Metadata(architecture="jumprelu", trained_as=self.name)


@dataclass(frozen=True)
class Matryoshka(BatchTopK):
    """`sum_p E 1/2 ||x - b_dec - z_{<p} D_{<p}||^2`, codes as in batchtopk, over prefixes p of the latents (T22).

    `group_sizes`: how many latents each prefix has more than the one before it; None for prefixes of 1/16, 1/8, 1/4, 1/2 and all of
    them (Bussmann et al. 2025). Dead latents as in topk.
    """

    group_sizes: tuple[int, ...] | None = None
    name: ClassVar[str] = "matryoshka"

    def sized(self, d_sae: int, k: float | None) -> "Matryoshka":
        super().sized(d_sae, k)
        if self.group_sizes is None:
            prefixes = sorted({max(1, d_sae // part) for part in (16, 8, 4, 2, 1)})
            return replace(self, group_sizes=tuple(int(size) for size in np.diff([0, *prefixes])))
        sizes = tuple(self.group_sizes)
        whole = all(isinstance(size, int) and size > 0 for size in sizes)
        refuse(
            not whole or sum(sizes) != d_sae,
            f"group_sizes is {sizes}; give positive whole numbers whose sum is d_sae = {d_sae}",
        )
        return replace(self, group_sizes=sizes)

    def prefixes(self) -> tuple[int, ...]:
        """The numbers of latents in the prefixes, all of them last."""
        return tuple(int(end) for end in np.cumsum(self.group_sizes or ()))

    def error(self, unit: Params, x: Float[Array, "samples d_in"], f: Float[Array, "samples d_sae"]):
        r, first, total = x - unit.b_dec, 0, jnp.zeros_like(x[0, 0])
        for end in self.prefixes():
            r = r - matmul(f[:, first:end], unit.W_dec[first:end])
            total, first = total + half_square(r), end
        return total, r

    def described(self, lam: float | None) -> Metadata:
        return Metadata(architecture="jumprelu", trained_as="matryoshka_batchtopk", prefixes=self.prefixes())


@dataclass(frozen=True)
class MatchingPursuit(Architecture):
    """`E 1/2 ||x - b_dec - z D||^2`, z by k steps of matching pursuit (Costa et al. 2025).

    From `r = x - b_dec`, k times: `i = argmax <d_i, r>`, `v = relu(<d_i, r>)`, `z_i += v`, `r -= v d_i`. Slopes go through every
    step but for the choices. Atoms start with norm one and are left free, as in SAELens: a shorter one takes less than its whole
    product out of r, and may be taken again, so that fewer codes explain as much. There is no encoder; dead latents are given T10's
    atom.
    """

    most: int = 0
    name: ClassVar[str] = "matching_pursuit"
    start_norm: ClassVar[float] = 1.0  # a step takes a whole product out
    counts: ClassVar[bool] = True

    def sized(self, d_sae: int, k: float | None) -> "MatchingPursuit":
        # Steps are a loop of fixed length; runs with a smaller k take nothing in the last ones.
        return replace(self, most=int(k or 1))

    def level(self, lam):
        """Any product above zero pays."""
        return jnp.zeros_like(lam)

    def loss(self, params: Params, x: Float[Array, "samples d_in"], here: Here) -> tuple[Float[Array, ""], Seen]:
        atoms = params.W_dec
        r = x - params.b_dec
        choices = pursued(*jax.lax.stop_gradient((atoms, r)), self.most)

        def take(carry, turn):
            r, fired = carry
            number, chosen = turn
            v = jax.nn.relu(jnp.sum(r * atoms[chosen], axis=1)) * (number < here.k)
            return (r - v[:, None] * atoms[chosen], fired.at[chosen].max(v > 0)), None

        turns = jnp.arange(self.most), choices
        (r, fired), _ = jax.lax.scan(take, (r, jnp.zeros_like(here.dead)), turns)
        return half_square(r), jax.lax.stop_gradient(Seen(fired, r, here.running))

    def finish(self, params: Params, k: float | None, running: Float[Array, " running"]) -> SAE:
        atoms, activation = params.W_dec, Activation("matching_pursuit", k=int(k or 1), stop_on_repeat=False)
        return SAE(atoms.T, jnp.zeros_like(atoms[:, 0]), atoms, params.b_dec, activation=activation).canonical()


def pursued(
    atoms: Float[Array, "d_sae d_in"], r: Float[Array, "samples d_in"], steps: int
) -> Int[Array, "steps samples"]:
    """The atoms that matching pursuit takes, in order, by products with all atoms that are kept up to date.

    >>> pursued(jnp.eye(2), jnp.array([[1.0, 3.0]]), 2).tolist()
    [[1], [0]]
    """
    rows, gram = jnp.arange(r.shape[0]), matmul(atoms, atoms.T)

    def take(products, _):
        best = jnp.argmax(products, axis=1)
        v = jax.nn.relu(products[rows, best])
        return products - v[:, None] * gram[best], best

    return jax.lax.scan(take, matmul(r, atoms.T), length=steps)[1]
