"""Transcoders: sparse autoencoders that predict other activations (the output of an MLP, say) from those that they read."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.numerics import matmul
from jaxdict.sae.activations import activate
from jaxdict.sae.models import SAE, AnyArray, check_activations
from jaxdict.storage import listing

# What an audit must say beside the numbers of a transcoder.
NOTE = (
    "a transcoder: what is split is the error of its prediction, and other codes may see the target, which its encoder cannot: what "
    "the input does not determine of the target is counted as the encoder's loss"
)


class Transcoder(SAE):
    """A transcoder `x -> f -> y_hat`, features as those of an `SAE`:

        u = x - b_dec if centred else x;  f = activation(u W_enc + b_enc);  y_hat = f W_dec + b_dec + x W_skip

    `W_enc` (d_in, d_sae), `W_dec` (d_sae, d_out), `b_dec` (d_out,), `W_skip` (d_in, d_out) or None. It does not normalise its input.
    Raises ValueError where shapes disagree, and for matching pursuit, which has nothing to pursue but its input.

    >>> sae = Transcoder(jnp.eye(2), jnp.zeros(2), jnp.ones((2, 1)), jnp.zeros(1), centred=False)
    >>> sae(jnp.array([3.0, 0.5])), sae.d_in, sae.d_out
    (Array([3.5], dtype=float32), 2, 1)
    """

    W_skip: Float[AnyArray, "d_in d_out"] | None = None

    def __check_init__(self):
        shape = (self.input_width, self.d_out)
        if self.W_skip is not None and self.W_skip.shape != shape:
            raise ValueError(f"W_skip has shape {self.W_skip.shape}, expected {shape}, (d_in, d_out)")
        if self.normalisation != "none":
            raise ValueError(
                f"normalisation={self.normalisation!r}: a transcoder that normalises its input is not read"
            )
        if self.activation.kind == "matching_pursuit":
            raise ValueError(
                "matching pursuit has no part in a transcoder: it would pursue its input, not what it predicts"
            )
        if self.centred and shape[0] != shape[1]:
            raise ValueError(f"centred: b_dec of width {shape[1]} cannot be subtracted from inputs of width {shape[0]}")

    @property
    def input_width(self) -> int:
        """Width of what the encoder reads."""
        return self.W_enc.shape[0]

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_sae"]:
        """Features of inputs."""
        check_activations(self, x)
        return self._features(jnp.asarray(x))

    def decode(self, f: Float[Array, "*batch d_sae"], x: Float[Array, "*batch d_in"] | None = None):
        """Predictions `f W_dec + b_dec + x W_skip`; raises ValueError where it has a skip connection and x is not given."""
        out = matmul(f, self.W_dec) + self.b_dec
        if self.W_skip is None:
            return out
        if x is None:
            raise ValueError("this transcoder has a skip connection: use decode(f, x) or sae(x)")
        return out + matmul(jnp.asarray(x), self.W_skip)

    def rescaled(self, scale: float) -> "SAE":
        """Refused: a transcoder's input and target may have been scaled apart."""
        raise ValueError(
            f"scale={scale} is of one kind of activations; a transcoder reads one kind and predicts another"
        )

    def _features(self, x):
        u = x - self.b_dec if self.centred else x
        return activate(self.activation, matmul(u, self.W_enc) + self.b_enc, self.threshold, self.ranking)


def of_kind(transcodes: bool, W_skip, *parts, **options) -> SAE:
    """An SAE of these parts, or a transcoder where it predicts other activations or has a skip connection."""
    return Transcoder(*parts, **options, W_skip=W_skip) if transcodes or W_skip is not None else SAE(*parts, **options)


class Paired(Transcoder):
    """A transcoder whose rows hold what it reads and, behind it, what it predicts: what an audit passes over.

    Where an SAE's dictionary stands in the space of its normalised input, this one's stands in that of `y - x W_skip`.
    """

    @property
    def d_in(self) -> int:
        """Width of a row: of what is read and of what is predicted."""
        return self.input_width + self.d_out

    def encode(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_sae"]:
        """Features of what is read."""
        check_activations(self, x)
        return self._features(jnp.asarray(x)[..., : self.input_width])

    def normalise(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """What the features are to add up to: the target, less what the skip connection gives."""
        read, wanted = jnp.asarray(x)[..., : self.input_width], jnp.asarray(x)[..., self.input_width :]
        return wanted if self.W_skip is None else wanted - matmul(read, self.W_skip)

    def target(self, x: Float[AnyArray, "*batch d_in"]) -> Float[AnyArray, "*batch d_out"]:
        """What is predicted."""
        return x[..., self.input_width :]

    def decode(self, f: Float[Array, "*batch d_sae"], x: Float[Array, "*batch d_in"] | None = None):
        """Predictions."""
        return super().decode(f, None if x is None else jnp.asarray(x)[..., : self.input_width])


class Joined:
    """Rows of two array-likes side by side, read where they are looked at.

    >>> Joined(np.zeros((3, 2), "f4"), np.ones((3, 1), "f4"))[1:2].tolist()
    [[0.0, 0.0, 1.0]]
    """

    ndim = 2

    def __init__(self, X: Float[Any, "samples d_in"], Y: Float[Any, "samples d_out"]):
        self.X, self.Y = X, Y
        self.names, self.left_out = getattr(X, "names", ()), getattr(X, "left_out", ())
        self.shape = (X.shape[0], X.shape[1] + Y.shape[1])
        self.dtype = jnp.promote_types(X.dtype, Y.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        return np.concatenate([np.asarray(part[rows]).astype(self.dtype) for part in (self.X, self.Y)], axis=1)


def paired(sae: SAE, X: Float[Any, "samples d_in"], target: Float[Any, "samples d_out"] | None):
    """The SAE and the rows that an audit passes over: as they are, or, of a transcoder, with its target beside them.

    Raises ValueError for a transcoder without a target, another SAE with one, and a target that does not fit.
    """
    if not isinstance(sae, Transcoder):
        if target is not None:
            raise ValueError(
                "target is what a transcoder predicts; this SAE reconstructs its own input: leave target out"
            )
        return sae, X
    if target is None:
        raise ValueError(
            f"this is a transcoder: it predicts activations of width {sae.d_out} from its input; give them as target "
            "(--target), row by row those of X"
        )
    check_activations(sae, X)
    left_out = [tuple(getattr(rows, "left_out", ())) for rows in (X, target)]
    if left_out[0] != left_out[1]:
        raise ValueError(
            f"shards were left out of X ({listing(left_out[0])}) and of target ({listing(left_out[1])}), so that their rows are no pairs; "
            "mend them, or take the same ones out of both"
        )
    if np.shape(target) != (X.shape[0], sae.d_out) or not jnp.issubdtype(target.dtype, jnp.floating):
        raise ValueError(
            f"target has shape {np.shape(target)} and dtype {target.dtype}; expected floating point numbers "
            f"{(X.shape[0], sae.d_out)}, a row for each of X"
        )
    parts: dict[str, Any] = {name: getattr(sae, name) for name in sae.__dataclass_fields__}
    return Paired(**parts), Joined(X, target)
