"""What the readers of all formats share: hints from the caller, metadata, thresholds and gates."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdict.containers.tensors import BadFileError, Config, Tensors
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE, Metadata
from jaxdict.storage import listing

# What a file with a coefficient leaves open of training, as an audit says it.
LAM_UNITS = "The SAE's file does not say whether training scaled the activations: if it did, its lam is of other units than these rows."


class Hints(NamedTuple):
    """What the caller knows and a file may not say: k of a top-k, a threshold, the scale of training."""

    k: int | None = None
    threshold: float | None = None
    scale: float | None = None


# What Neuronpedia calls an SAE, model/set: no part of it but letters, digits and these signs, so that a link of it is whole.
NEURONPEDIA = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)+", re.ASCII)


def describe(
    config: Config,
    format: str,
    architecture: str,
    lam: float | None = None,
    notes=(),
    model=None,
    hook=None,
    **training,
):
    """Metadata from a configuration; names that are not text are left out, since nothing is computed from them."""
    return Metadata(
        format=format,
        architecture=architecture,
        lam=lam,
        notes=tuple(note for note in notes if note),
        model=model if isinstance(model, str) else None,
        hook=hook if isinstance(hook, str) else None,
        config=json.dumps(config.values, default=str),
        **training,
    )


def prefixes_of(path: Path, name: str, widths, d_sae: int) -> tuple[int, ...]:
    """The numbers of features in a Matryoshka's prefixes, all features last; empty where the file does not say.

    Raises ValueError where they do not ascend to at most `d_sae`.

    >>> prefixes_of(Path("cfg.json"), "matryoshka_widths", [2, 5], 8)
    (2, 5, 8)
    """
    if widths is None or (isinstance(widths, list | tuple) and not widths):
        return ()
    whole = isinstance(widths, list | tuple) and all(type(width) is int for width in widths)
    if not whole or list(widths) != sorted(set(widths)) or not 1 <= widths[0] <= widths[-1] <= d_sae:
        raise BadFileError(
            f"{path}: {name!r} gives prefixes {listing([widths])}, expected numbers that ascend from 1 to {d_sae}"
        )
    return (*widths, *((d_sae,) if widths[-1] < d_sae else ()))


def prefix_weights_of(given, n_prefixes: int) -> tuple[float, ...]:
    """What each prefix counts for in a Matryoshka's loss; empty where all count the same, or nothing sound is said.

    >>> prefix_weights_of([0.5, 0.5], 2), prefix_weights_of([1, 3], 2)
    ((), (1.0, 3.0))
    """
    listed = isinstance(given, list) and len(given) == n_prefixes
    sound = listed and all(type(weight) in (int, float) and 0 < weight < 1e300 for weight in given)
    return tuple(float(weight) for weight in given) if sound and len(set(given)) > 1 else ()


def neuronpedia_id(value) -> str | None:
    """What Neuronpedia calls an SAE, as a file states it; None for anything that could not be part of its address.

    >>> [neuronpedia_id(value) for value in ("gpt2-small/8-res-jb", "gpt2-small", "a/../b", "a/b?x", 3)]
    ['gpt2-small/8-res-jb', None, None, None, None]
    """
    return value if isinstance(value, str) and NEURONPEDIA.fullmatch(value) else None


def as_jumprelu(sae: SAE, threshold: np.ndarray | float) -> SAE:
    """The same SAE with a threshold per feature, a scalar serving all."""
    sizes = np.broadcast_to(np.asarray(threshold, sae.W_dec.dtype), (sae.d_sae,))
    return replace(sae, threshold=np.array(sizes), ranking=None, activation=Activation("jumprelu"))


def gated(
    tensors: Tensors, W_enc, W_dec, b_dec, names: tuple[str, str, str], normalisation: str, centred: bool, metadata
):
    """A gated SAE as the jumprelu SAE it equals; `names` are its gate bias, magnitude bias and log gain.

    `f = 1[c + b_gate > 0] relu(g c + b_mag)` with `c = u W_enc` and `g = exp(r_mag) > 0`. With `p = g c + b_mag`, the
    gate is open where `p > b_mag - g b_gate`: a threshold on p.
    """
    d_sae = W_dec.shape[:1]
    b_gate, b_mag, gain = tensors.take(names[0], d_sae), tensors.take(names[1], d_sae), exp_of(tensors, names[2], d_sae)
    return SAE(
        W_enc * gain,
        b_mag,
        W_dec,
        b_dec,
        threshold=b_mag - gain * b_gate,
        activation=Activation("jumprelu"),
        centred=centred,
        normalisation=normalisation,
        metadata=metadata,
    )


def exp_of(tensors: Tensors, name: str, shape) -> np.ndarray:
    """The exponential of a tensor stored as a logarithm. Raises ValueError where it overflows."""
    with np.errstate(over="ignore"):
        values = np.exp(tensors.take(name, shape))
    if not np.all(np.isfinite(values)):
        raise BadFileError(
            f"{tensors.path}: tensor {name!r} is a logarithm whose exponential overflows; the file is damaged"
        )
    return values


def decoder_norms(W_dec) -> np.ndarray:
    """Norms of decoder rows, one where a row is zero, in the decoder's dtype."""
    norms = np.linalg.norm(np.asarray(W_dec, np.float64), axis=1).astype(W_dec.dtype)
    return np.where(norms > 0, norms, np.ones_like(norms))


def unsupported(tensors: Tensors, what: str) -> BadFileError:
    """The error for a file that is sound but of another kind than is read."""
    return BadFileError(f"{tensors.path}: {what}; only sparse autoencoders and transcoders of one place are read")


def missing_config(tensors: Tensors, config: Config, why: str) -> BadFileError:
    """The error for weights that cannot be understood without the file beside them."""
    return BadFileError(f"{tensors.path}: needs {config.path.name} in {config.path.parent}, {why}")
