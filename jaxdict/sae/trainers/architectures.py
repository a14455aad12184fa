"""What an architecture is to training: parameters, a loss of a batch, and the SAE that it ends as."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdict.numerics import matmul, safe_norm
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE, Metadata


class Params(NamedTuple):
    """What is trained; None where an architecture has no such thing (each asks only for what it has)."""

    W_enc: Float[Array, "d_in d_sae"]
    b_enc: Float[Array, " d_sae"]
    W_dec: Float[Array, "d_sae d_in"]
    b_dec: Float[Array, " d_in"]
    log_threshold: Float[Array, " d_sae"] = None  # type: ignore[assignment]
    r_mag: Float[Array, " d_sae"] = None  # type: ignore[assignment]
    b_mag: Float[Array, " d_sae"] = None  # type: ignore[assignment]


class Here(NamedTuple):
    """Where training stands, as far as a loss may ask: the weight or the count of codes, which latents are dead, and the step.

    `some_dead` is one for all runs that go side by side, so that what is only for dead latents is left out while none has any.
    """

    lam: Float[Array, ""]
    k: Float[Array, ""]
    step: Float[Array, ""]
    steps: Float[Array, ""]
    dead: Bool[Array, " d_sae"]
    some_dead: Bool[Array, ""]
    running: Float[Array, " running"]


class Seen(NamedTuple):
    """What a loss saw on the way: latents that were used, what is left of each row, the architecture's running numbers."""

    fired: Bool[Array, " d_sae"]
    residual: Float[Array, "samples d_in"]
    running: Float[Array, " running"]


@dataclass(frozen=True)
class Architecture(ABC):
    """The fixed numbers of an architecture: plain and hashable, so that one compiled step serves all data and weights."""

    name: ClassVar[str]
    # What says how sparse codes are: a weight `lam`, or a number `k` of codes a row; k as a whole number, or any.
    counts: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    # Adam's first moment decays by this a step.
    momentum: ClassVar[float] = 0.9
    # Decoder rows start with this norm, the encoder as their transpose: short rows turn quickly, since Adam's steps have one length.
    start_norm: ClassVar[float] = 0.1
    # Dead latents are given T10's atom, or an error of their own (`dead_error`).
    reborn: ClassVar[bool] = True

    def sized(self, d_sae: int, k: float | None) -> "Architecture":
        """The architecture for so many latents and at most k codes; raises ValueError where its numbers do not fit."""
        return self

    def more(self, zeros: Float[Array, " d_sae"]) -> dict[str, Array]:
        """Parameters beyond encoder and decoder, at their start."""
        return {}

    def running(self, zero: Float[Array, ""]) -> Float[Array, " running"]:
        """Numbers that are carried from step to step beside the parameters."""
        return jnp.full_like(zero, 0, shape=(0,))

    def weight(self, lam, scale):
        """lam for rows times `scale`: the squared error scales twice, L1 penalties once."""
        return lam * scale

    def level(self, lam):
        """What the product of an atom with a residual must exceed for the atom to pay (T10's lam)."""
        return lam

    @abstractmethod
    def loss(self, params: Params, x: Float[Array, "samples d_in"], here: Here) -> tuple[Float[Array, ""], Seen]:
        """The loss of a batch."""

    def finish(self, params: Params, k: float | None, running: Float[Array, " running"]) -> SAE:
        """The SAE that codes as training did, with unit decoder rows."""
        return SAE(*canonical_params(params)[:4])

    def described(self, lam: float | None) -> Metadata:
        """What the SAE says of its training."""
        return Metadata(architecture=self.name)


def canonical_params(params: Params) -> Params:
    """The same codes and reconstructions with unit decoder rows; a zero row stays. Thresholds are of that gauge already.

    >>> params = canonical_params(Params(jnp.eye(1), jnp.ones(1), jnp.array([[2.0]]), jnp.zeros(1)))
    >>> params.W_enc.tolist(), params.b_enc.tolist(), params.W_dec.tolist()
    ([[2.0]], [2.0], [[1.0]])
    """
    norms = safe_norm(params.W_dec)
    norms = jnp.where(norms > 0, norms, 1)
    scaled = {
        name: array * norms for name in ("W_enc", "b_enc", "b_mag") if (array := getattr(params, name)) is not None
    }
    return params._replace(W_dec=params.W_dec / norms[:, None], **scaled)


def as_thresholded(params: Params, threshold: Float[Array, " d_sae"]) -> SAE:
    """A jumprelu SAE of canonical parameters."""
    return SAE(*params[:4], threshold=threshold, activation=Activation("jumprelu"))


def pre_activations(params: Params, x: Float[Array, "samples d_in"]) -> Float[Array, "samples d_sae"]:
    """`(x - b_dec) W_enc + b_enc`."""
    return matmul(x - params.b_dec, params.W_enc) + params.b_enc


def seen(f: Float[Array, "samples d_sae"], r: Float[Array, "samples d_in"], running) -> Seen:
    """A batch's codes and residuals as training looks at them; constants to derivatives."""
    return jax.lax.stop_gradient(Seen(jnp.any(f > 0, axis=0), r, running))


def refuse(condition: Any, message: str) -> None:
    """Raise ValueError where the condition holds."""
    if condition:
        raise ValueError(message)
