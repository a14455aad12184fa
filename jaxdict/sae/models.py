"""A trained sparse autoencoder, whatever package wrote it: one module, one forward equation."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.numerics import matmul, safe_norm, unit_rows
from jaxdict.problem import Dictionary
from jaxdict.sae.activations import RANKED, Activation, activate, pursue

# Readers put a module together in numpy, before anything goes to a device.
AnyArray = Array | np.ndarray
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
# What is added to the spread before dividing, in SAELens and in OpenAI's release alike; both leave it out when they
# scale back.
NORMALISATION_EPS = {"layer_norm": 1e-5, "constant_norm_rescale": 0.0}


@dataclass(frozen=True)
class Metadata:
    """Where an SAE comes from; plain and hashable, so that it can ride in a jitted module.

    - `format`, `architecture`: the file format and the architecture as the writer names it.
    - `lam`: sparsity weight of problem P in the units of the SAE's input, half the packages' `l1_coefficient` (their
      loss has no 1/2); None where the training loss had no L1 penalty or does not say.
    - `notes`: what the reader did or could not know, one sentence each.
    - `model`, `hook`: the language model and the place in it, where the file says.
    - `trained_as`: the architecture or trainer in training, where it is stored under another name (a batch top-k as a jumprelu).
    - `prefixes`: of a Matryoshka, the numbers of features whose reconstructions its loss sums, ascending; empty where there are
      none or the file does not say. `prefix_weights`: what each counts for there, empty: all the same.
    - `penalty`, `power`: a penalty other than L1, "power" for `sum f^p` or "norm" for `||f||_p`, and p, None where it is not said.
    - `neuronpedia`: what Neuronpedia calls the SAE ("gpt2-small/8-res-jb"), where the file says.
    - `caveat`: one sentence where the file does not say how activations were scaled in training, so that what stands on it
      may not be what was trained.
    - `config`: the writer's configuration, as JSON text.
    """

    format: str = "jaxdict"
    architecture: str = "standard"
    lam: float | None = None
    notes: tuple[str, ...] = ()
    model: str | None = None
    hook: str | None = None
    config: str = "{}"
    trained_as: str | None = None
    prefixes: tuple[int, ...] = ()
    prefix_weights: tuple[float, ...] = ()
    penalty: str | None = None
    power: float | None = None
    neuronpedia: str | None = None
    caveat: str | None = None


class SAE(eqx.Module):
    """A sparse autoencoder `x -> f -> x_hat` in the conventions of SAELens: features are rows of `W_dec`.

        z = normalise(x);  u = z - b_dec if centred else z;  pre = u W_enc + b_enc;  f = activation(pre)
        x_hat = denormalise(f W_dec + b_dec)

    - `W_enc` (d_in, d_sae), `b_enc` (d_sae,), `W_dec` (d_sae, d_in), `b_dec` (d_in,).
    - `threshold` (d_sae,), for jumprelu. A gated SAE is exactly a jumprelu SAE and is held as one.
    - `ranking` (d_sae,), for kinds where features compete, or None for ones: `pre * ranking` is compared.
    - `activation`, `centred`, `normalisation` ("none", "layer_norm", "constant_norm_rescale"), `metadata`: plain
      Python.

    For matching pursuit `W_enc` holds the analysis vectors. Inputs may have any leading dimensions; products run at
    the highest precision. Raises ValueError where shapes disagree.

    This is also how tensors of your own become an SAE, `W_enc` as (d_in, d_sae): torch's Linear stores its transpose. An audit reads
    from the metadata what the tensors do not say (`lam`, half the coefficient of the L1 penalty, and the hook).

    >>> own = {name: np.ones(shape, "f4") for name, shape in {"W_enc": (2, 3), "b_enc": 3, "W_dec": (3, 2), "b_dec": 2}.items()}
    >>> about = Metadata(architecture="topk", model="gpt2", hook="blocks.3.hook_resid_pre")
    >>> SAE(**own, activation=Activation("topk", k=2), metadata=about).d_sae
    3
    >>> import jax.numpy as jnp
    >>> sae = SAE(jnp.eye(2), jnp.array([-1.0, -1.0]), jnp.eye(2), jnp.zeros(2))
    >>> sae.encode(jnp.array([3.0, 0.5])), sae(jnp.array([3.0, 0.5]))
    (Array([2., 0.], dtype=float32), Array([2., 0.], dtype=float32))
    """

    W_enc: Float[AnyArray, "d_in d_sae"]
    b_enc: Float[AnyArray, " d_sae"]
    W_dec: Float[AnyArray, "d_sae d_in"]
    b_dec: Float[AnyArray, " d_in"]
    threshold: Float[AnyArray, " d_sae"] | None = None
    ranking: Float[AnyArray, " d_sae"] | None = None
    activation: Activation = eqx.field(static=True, default=Activation("relu"))
    centred: bool = eqx.field(static=True, default=True)
    normalisation: str = eqx.field(static=True, default="none")
    metadata: Metadata = eqx.field(static=True, default=Metadata())

    def __check_init__(self):
        if self.W_dec.ndim != 2:
            raise ValueError(
                f"W_dec has shape {self.W_dec.shape}, expected (d_sae, d_in); of a crosscoder give one layer"
            )
        d_sae, d_out = self.W_dec.shape
        wanted = {
            "W_enc": (self.input_width, d_sae),
            "b_enc": (d_sae,),
            "b_dec": (d_out,),
            "threshold": (d_sae,),
            "ranking": (d_sae,),
        }
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                turned = name == "W_enc" and array.shape == shape[::-1]
                hint = "; transpose it, torch's Linear stores (out, in)" if turned else ""
                raise ValueError(
                    f"{name} has shape {array.shape}, expected {shape} beside W_dec of shape {(d_sae, d_out)}{hint}"
                )
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(f"normalisation={self.normalisation!r} is unknown; use one of {NORMALISATIONS}")
        kind, k = self.activation.kind, self.activation.k or 1
        if kind == "jumprelu" and self.threshold is None:
            raise ValueError("a jumprelu SAE needs a threshold (d_sae,)")
        if (kind in ("topk", "abstopk", "groupmax") and k > d_sae) or (kind == "groupmax" and d_sae % k):
            raise ValueError(f"activation {kind!r} with k={k} does not fit {d_sae} features")

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_sae"]:
        """Features of inputs, in the gauge of this SAE's own `W_dec` rows."""
        u = self.normalise(x)
        u = u - self.b_dec if self.centred else u
        if self.activation.kind == "matching_pursuit":
            return pursue(self.activation, u, self.W_enc, self.W_dec, self.ranking)
        return activate(self.activation, matmul(u, self.W_enc) + self.b_enc, self.threshold, self.ranking)

    def decode(self, f: Float[Array, "*batch d_sae"], x: Float[Array, "*batch d_in"] | None = None):
        """Reconstructions `f W_dec + b_dec`, shape (*batch, d_in).

        An SAE that normalises its input undoes it with the input's own mean and scale, so it needs `x`; raises
        ValueError without.
        """
        out = matmul(f, self.W_dec) + self.b_dec
        if self.normalisation == "none":
            return out
        if x is None:
            raise ValueError(f"this SAE normalises its input ({self.normalisation}): use decode(f, x) or sae(x)")
        centre, spread = centre_and_spread(self.normalisation, jnp.asarray(x))
        return out * spread + centre

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        """Reconstructions of inputs, `decode(encode(x))`."""
        return self.decode(self.encode(x), x)

    def normalise(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_in"]:
        """Inputs in the space where the dictionary lives; the inputs themselves unless the SAE normalises.

        layer_norm: `(x - mean) / (std + 1e-5)` over d_in, std with d_in - 1. constant_norm_rescale: `x sqrt(d_in) /
        ||x||`.
        """
        x = jnp.asarray(x)
        if x.ndim == 0 or x.shape[-1] != self.d_in or not jnp.issubdtype(x.dtype, jnp.floating):
            check_activations(self, x)
        if self.normalisation == "none":
            return x
        centre, spread = centre_and_spread(self.normalisation, x)
        return (x - centre) / (spread + NORMALISATION_EPS[self.normalisation])

    def target(self, x: Float[AnyArray, "*batch d_in"]) -> Float[AnyArray, "*batch d_out"]:
        """What reconstructions come close to: the inputs."""
        return x

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.input_width

    @property
    def input_width(self) -> int:
        """Width of what the encoder reads."""
        return self.W_dec.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the reconstructions, which is that of the activations."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.W_dec.shape[0]

    @property
    def lam(self) -> float | None:
        """Sparsity weight of problem P that the SAE was trained with, where the file says (see `Metadata`)."""
        return self.metadata.lam

    @property
    def norms(self) -> Float[Array, " d_sae"]:
        """Norms of the decoder's rows; `canonical().encode(x)` is `encode(x) * norms`."""
        return safe_norm(jnp.asarray(self.W_dec))

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary in the canonical gauge: unit rows of `W_dec`, offset `b_dec`, in the space of `normalise`."""
        return Dictionary(unit_rows(jnp.asarray(self.W_dec)), jnp.asarray(self.b_dec))

    def canonical(self) -> "SAE":
        """The same reconstructions with unit decoder rows, norms folded into encoder, biases and thresholds.

        A zero row stays as it is.

        >>> import jax.numpy as jnp
        >>> sae = SAE(jnp.eye(1), jnp.zeros(1), jnp.array([[2.0]]), jnp.zeros(1)).canonical()
        >>> sae.W_dec, sae.encode(jnp.array([3.0]))
        (Array([[1.]], dtype=float32), Array([6.], dtype=float32))
        """
        return self.regauged(jnp.where(self.norms > 0, self.norms, 1))

    def regauged(self, factors: Float[AnyArray, " d_sae"]) -> "SAE":
        """The same reconstructions with feature i multiplied by `factors[i] > 0` and decoder row i divided by it."""
        ranking = self.ranking
        if self.activation.kind in RANKED:
            ranking = 1 / factors if ranking is None else ranking / factors
        return replace(
            self,
            W_enc=self.W_enc * factors,
            b_enc=self.b_enc * factors,
            W_dec=self.W_dec / factors[:, None],
            threshold=None if self.threshold is None else self.threshold * factors,
            ranking=ranking,
        )

    def rescaled(self, scale: float) -> "SAE":
        """The SAE for raw activations, when this one was trained on activations multiplied by `scale`.

        Encoder times scale, decoder and its bias over scale; features stay in training units. `lam` goes over scale,
        as the squared error scales twice and the penalty once; that the scale is not known is no caveat any more.
        Raises ValueError for an SAE that normalises, or a scale that is not > 0.
        """
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale is {scale}, expected a finite number > 0")
        if self.normalisation != "none":
            raise ValueError(f"scale does not go together with {self.normalisation}, which removes the input's scale")
        activation = replace(self.activation, residual_threshold=self.activation.residual_threshold / scale)
        lam = None if self.lam is None else self.lam / scale
        return replace(
            self,
            W_enc=self.W_enc * scale,
            W_dec=self.W_dec / scale,
            b_dec=self.b_dec / scale,
            activation=activation,
            metadata=replace(self.metadata, lam=lam, caveat=None),
        )


def check_activations(sae: SAE, X: Float[Any, "*batch d_in"]) -> None:
    """Refuse activations an SAE cannot read: raises ValueError unless X is (..., d_in), real and not empty.

    Only the shape and dtype are looked at, so a memory-mapped array costs nothing.

    >>> import jax.numpy as jnp
    >>> sae = SAE(jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2))
    >>> check_activations(sae, jnp.zeros((5, 3)))
    Traceback (most recent call last):
    ValueError: activations of shape (5, 3) have width 3, the SAE reads d_in = 2; are they from another layer or model?
    """
    shape, dtype = np.shape(X), getattr(X, "dtype", np.asarray(0.0).dtype)
    if not shape or 0 in shape:
        raise ValueError(f"activations of shape {shape} are empty; expected (samples, {sae.d_in})")
    if shape[-1] != sae.d_in:
        heads = len(shape) > 1 and shape[-1] * shape[-2] == sae.d_in
        advice = (
            f"flatten the heads: X.reshape(*X.shape[:-2], {sae.d_in})"
            if heads
            else "are they from another layer or model?"
        )
        raise ValueError(
            f"activations of shape {shape} have width {shape[-1]}, the SAE reads d_in = {sae.d_in}; {advice}"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"activations have dtype {dtype}; expected floating point numbers")


def centre_and_spread(normalisation, x):
    """What normalisation subtracts and, but for its epsilon, divides by."""
    if normalisation == "layer_norm":
        centre = jnp.mean(x, axis=-1, keepdims=True)
        return centre, jnp.std(x - centre, axis=-1, keepdims=True, ddof=1)
    norms = safe_norm(x)[..., None]
    return jnp.zeros_like(norms), jnp.where(norms > 0, norms, 1) * x.shape[-1] ** -0.5
