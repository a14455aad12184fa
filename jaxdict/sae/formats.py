"""Read a trained SAE from disk, whatever package wrote it: the format is told by what is in the file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdict.containers.opening import open_tensors
from jaxdict.containers.tensors import BadFileError, Tensors
from jaxdict.sae.activations import Activation
from jaxdict.sae.from_dictionary_learning import NEEDS, read_dictionary_learning
from jaxdict.sae.from_releases import read_gemma_scope, read_llama_scope, read_openai, read_overcomplete, read_sparsify
from jaxdict.sae.from_saelens import read_saelens
from jaxdict.sae.hub import fetch, is_address, neuronpedia_of
from jaxdict.sae.locating import SeveralError, find_weights
from jaxdict.sae.models import SAE
from jaxdict.sae.reading import Hints, as_jumprelu
from jaxdict.storage import listing


class Format(NamedTuple):
    """A format: how to tell it by its tensors, and how to read it."""

    fits: Callable[[Tensors], bool]
    read: Callable[[Tensors, Hints], SAE]
    takes_scale: bool = False  # whether the reader uses the scale hint itself


def _fits_dictionary_learning(tensors):
    inner = {name.removeprefix("ae.") for name in tensors.entries}
    return tensors.container == "torch" and any(needs <= inner for needs in NEEDS.values())


def _fits_gemma_scope(tensors):
    lower = {name.lower() for name in tensors.entries}
    named = {"w_enc", "w_dec", "b_enc", "b_dec", "threshold"} <= lower
    # SAELens stores a jumprelu SAE under the same names; only its container and case differ.
    return named and (tensors.container == "npz" or (tensors.container == "safetensors" and "w_enc" in tensors))


FORMATS = {
    "openai": Format(lambda t: t.has("pre_bias", "latent_bias", "encoder.weight"), read_openai),
    "overcomplete": Format(
        lambda t: "dictionary._weights" in t or t.has("dictionary.W", "dictionary.C"), read_overcomplete
    ),
    "sparsify": Format(lambda t: t.has("encoder.weight", "encoder.bias", "W_dec", "b_dec"), read_sparsify),
    "dictionary_learning": Format(_fits_dictionary_learning, read_dictionary_learning),
    "llama_scope": Format(
        lambda t: t.container == "safetensors" and t.has("encoder.weight", "encoder.bias", "decoder.weight"),
        read_llama_scope,
        takes_scale=True,
    ),
    "gemma_scope": Format(_fits_gemma_scope, read_gemma_scope),
    "saelens": Format(
        lambda t: t.container == "safetensors" and t.has("W_dec", "b_dec"), read_saelens, takes_scale=True
    ),
}


def load(
    path,
    format: str | None = None,
    *,
    k: int | None = None,
    threshold: float | None = None,
    scale: float | None = None,
    zero_rows: str = "refuse",
) -> SAE:
    """The trained SAE in a file or folder, for raw activations, without torch and without running anything in the file.

    The format is told by the tensors: saelens, dictionary_learning, sparsify, gemma_scope (1 and 2), openai, llama_scope,
    overcomplete. A transcoder is read as a `Transcoder`. Half precision is widened to float32. `metadata.lam` is half the
    writer's `l1_coefficient` (see `Metadata`).

    **Arguments:**

    - `path`: the weights file, or the folder it lies in; of a release's folder with several SAEs what is inside is listed. Or
      `hf://owner/repo/folder` (`hf://owner/repo@revision/folder`) on the Hugging Face Hub, or `release/sae_id` by SAELens' names
      (`gpt2-small-res-jb/blocks.8.hook_resid_pre`): fetched into the Hub's own cache by huggingface_hub, the extra `hub`.
    - `format`: one of `FORMATS`, to skip the detection.
    - `k`, `threshold`: read it as a top-k SAE with this k, or as a jumprelu SAE with this threshold, where the file
      cannot say.
    - `scale`: what activations were multiplied by in training, if that was not folded into the weights.
    - `zero_rows`: "refuse" or "keep" decoder rows of zeros, which are no feature.

    **Raises** OSError where nothing can be read; ValueError, naming file and field, for what is damaged or unknown.

    >>> import tempfile, jax.numpy as jnp, jaxdict as jd
    >>> from jaxdict.sae import load, save
    >>> folder = tempfile.mkdtemp()
    >>> _ = save(jd.Dictionary(jnp.eye(3)), folder + "/sae", lam=0.5)
    >>> load(folder + "/sae").encode(jnp.array([2.0, 0.25, 0.0]))
    Array([1.5, 0. , 0. ], dtype=float32)
    """
    if zero_rows not in ("refuse", "keep"):
        raise ValueError(f"zero_rows={zero_rows!r} is unknown; use 'refuse' or 'keep'")
    if format is not None and format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown; use one of {tuple(FORMATS)}")
    hints = Hints(k, threshold, scale)
    _check_hints(hints)
    tensors = open_weights(find_weights(fetch(str(path)) if is_address(path) else Path(path)))
    refuse_crosscoder(tensors)
    name = format or detect(tensors)
    try:
        with np.errstate(all="ignore"):  # what overflows is found, and named, at the end
            sae = _apply(FORMATS[name].read(tensors, hints), hints)
            if hints.scale is not None and not FORMATS[name].takes_scale:
                sae = sae.rescaled(hints.scale)
    except BadFileError:
        raise
    except (ValueError, MemoryError) as error:
        # What shows only when the parts are put together does not know the file.
        raise BadFileError(f"{tensors.path}: cannot be read as {name}: {error}") from None
    sae = _settle(tensors.path, sae)
    if is_address(path) and sae.metadata.neuronpedia is None:
        sae = replace(sae, metadata=replace(sae.metadata, neuronpedia=neuronpedia_of(str(path))))
    if zero_rows == "refuse":
        _refuse_zero_rows(tensors.path, sae)
    return sae


def open_weights(path: Path) -> Tensors:
    """The tensors of a weights file. Raises ValueError for any other file, listing the known formats."""
    try:
        return open_tensors(path)
    except BadFileError as error:
        known = f"; known formats: {', '.join(FORMATS)}" if "starts with" in str(error) else ""
        raise BadFileError(f"{error}{known}") from None


def detect(tensors: Tensors) -> str:
    """The format whose tensors these are. Raises ValueError listing the formats and what was seen."""
    for name, format in FORMATS.items():
        if format.fits(tensors):
            return name
    raise BadFileError(
        f"{tensors.path}: no known SAE format ({', '.join(FORMATS)}) has its tensors: {listing(tensors.entries)}"
    )


def refuse_crosscoder(tensors: Tensors) -> None:
    """Raise ValueError for tensors of several layers or models at once, which have a third axis."""
    for name in ("W_dec", "w_dec", "decoder.weight", "W_enc", "w_enc", "encoder.weight", "ae.decoder.weight"):
        if name in tensors and len(tensors.shape(name)) == 3 and min(tensors.shape(name)) > 1:
            raise BadFileError(
                f"{tensors.path}: a crosscoder: tensor {name!r} of shape {tensors.shape(name)} holds several layers or models, and is "
                "not read; give one of them as jaxdict.sae.SAE(W_enc, b_enc, W_dec, b_dec)"
            )


def holds_sae(path: Path) -> bool:
    """Whether a file or folder holds a trained SAE, or a crosscoder, of any known format, as far as its tensors' names tell.

    >>> holds_sae(Path("nowhere"))
    False
    """
    try:
        tensors = open_weights(find_weights(path))
        refuse_crosscoder(tensors)
        return bool(detect(tensors))
    except SeveralError as several:
        return holds_sae(several.places[0])
    except (ValueError, OSError) as error:
        return "a crosscoder:" in str(error)


def _check_hints(hints):
    if hints.k is not None and not (type(hints.k) is int and hints.k >= 1):
        raise ValueError(f"k={hints.k!r} is not a whole number >= 1")
    if hints.threshold is not None and not np.isfinite(hints.threshold):
        raise ValueError(f"threshold={hints.threshold!r} is not a finite number")
    if hints.k is not None and hints.threshold is not None:
        raise ValueError("k and threshold are both given; a top-k SAE takes k, a jumprelu SAE a threshold")


def _apply(sae, hints):
    """What the caller says goes before what the file says."""
    competes = sae.activation.kind in ("topk", "abstopk", "groupmax")
    if hints.k is not None and not (competes and sae.activation.k == hints.k):
        return replace(sae, activation=Activation("topk", k=hints.k), threshold=None)
    return sae if hints.threshold is None else as_jumprelu(sae, hints.threshold)


def _refuse_zero_rows(path, sae):
    zero = np.flatnonzero(~np.any(np.asarray(sae.W_dec), axis=1))
    if zero.size:
        raise BadFileError(
            f"{path}: W_dec has {zero.size} zero rows (first: feature {zero[0]}), which are no features; "
            "zero_rows='keep' reads it all the same"
        )


def _settle(path, sae):
    """On jax's device and in its default float type; folding may overflow what was finite on disk."""
    sae = jax.tree.map(jnp.asarray, sae)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "ranking"):
        array = getattr(sae, name)
        if array is not None and not bool(jnp.all(jnp.isfinite(array))):
            raise BadFileError(f"{path}: {name} is not finite once norms and scales are folded in; the file is damaged")
    return sae
