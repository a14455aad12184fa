"""Write an SAE, or a dictionary with an encoder, in SAELens' format: the door to SAEBench and Neuronpedia."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdict.problem import Dictionary
from jaxdict.sae.encoders import fitted_sae, tied_sae
from jaxdict.sae.models import SAE
from jaxdict.sae.transcoders import Transcoder
from jaxdict.storage import replace_safetensors, replace_text, replacing

ARCHITECTURES = {
    "relu": "standard",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abstopk",
    "matching_pursuit": "matching_pursuit",
}
# The first version whose readers take a configuration as it is; earlier ones are rewritten.
SAELENS_VERSION = "6.0.0"


def save(
    sae,
    path,
    format: str = "saelens",
    *,
    lam: float | None = None,
    encoder: str | None = None,
    X: Float[Array, "samples d"] | None = None,
    codes=None,
    metadata: dict | None = None,
) -> Path:
    """Write an SAE or a `Dictionary` as a SAELens folder, `cfg.json` and `sae_weights.safetensors`; returns the folder.

    An SAE is written as it is: `load(save(sae, path))` has the same arrays. A dictionary gets unit atoms and an
    encoder:

    - `encoder="tied"` (default): `W_enc = atoms.T`, `b_enc = -lam`, one proximal step; needs `lam`.
    - `encoder="fitted"`: least squares to exact codes, see `fitted_sae`; needs `lam`, `X` (samples, d) and `codes`
      (samples, atoms).

    The configuration states `l1_coefficient = 2 lam` (SAELens' loss has no 1/2); `metadata` adds entries to it, such
    as `model_name` and `hook_name`, which SAEBench asks for. A new folder appears whole or not at all; in an existing
    one each file does.

    **Raises** ValueError for what the format cannot hold, OSError where the folder cannot be written.

    >>> import tempfile, jaxdict as jd
    >>> folder = save(jd.Dictionary(jnp.eye(2)), tempfile.mkdtemp() + "/sae", lam=0.1)
    >>> sorted(file.name for file in folder.iterdir())
    ['cfg.json', 'sae_weights.safetensors']
    """
    if format != "saelens":
        raise ValueError(f"format={format!r} cannot be written; use 'saelens'")
    sae = _with_encoder(sae, lam, encoder, X, codes)
    tensors, settings = _saelens_parts(sae)
    config = _config(sae, settings, metadata or {})
    return _write(Path(path), config, tensors)


def check_savable(sae: SAE) -> None:
    """Raise ValueError where SAELens has no architecture for an SAE, before anything is made of it.

    >>> from jaxdict.sae.activations import Activation
    >>> check_savable(SAE(jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2), activation=Activation("groupmax", k=1)))
    Traceback (most recent call last):
    ValueError: activation 'groupmax' has no architecture in SAELens; it writes ('relu', 'jumprelu', 'topk', ...
    """
    _saelens_parts(sae)


def _with_encoder(sae, lam, encoder, X: Float[Array, "samples d"] | None, codes) -> SAE:
    if isinstance(sae, Transcoder):
        raise ValueError("a transcoder cannot be written; only SAEs of their own input can")
    if isinstance(sae, SAE):
        if encoder is not None or lam is not None:
            raise ValueError(
                "this SAE has an encoder of its own; to give it another, save sae.dictionary with lam and encoder"
            )
        return sae
    if not isinstance(sae, Dictionary):
        raise ValueError(f"{type(sae).__name__} cannot be saved; give an SAE or a Dictionary")
    if encoder not in (None, "tied", "fitted"):
        raise ValueError(f"encoder={encoder!r} is unknown; use 'tied' or 'fitted'")
    if lam is None:
        raise ValueError("lam is not given: a dictionary's encoder needs the sparsity weight its codes belong to")
    if encoder != "fitted":
        return tied_sae(sae, lam)
    if X is None or codes is None:
        raise ValueError("encoder='fitted' needs X and codes, the exact codes of X on this dictionary")
    return fitted_sae(sae, lam, X, codes)


def _saelens_parts(sae: SAE) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors and settings SAELens' architecture of the same kind is made of."""
    kind = sae.activation.kind
    if kind not in ARCHITECTURES:
        raise ValueError(f"activation {kind!r} has no architecture in SAELens; it writes {tuple(ARCHITECTURES)}")
    # SAELens compares pre-activations as they are: go to the gauge where ranking is one.
    sae = sae if sae.ranking is None else sae.regauged(sae.ranking)
    settings = {
        "architecture": ARCHITECTURES[kind],
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": sae.normalisation,
    }
    tensors = {"W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if kind == "matching_pursuit":
        tied = bool(jnp.allclose(sae.W_enc, sae.W_dec.T, rtol=1e-5, atol=1e-6)) and sae.centred
        if not tied:
            raise ValueError(
                "this matching pursuit analyses with other vectors than its atoms; SAELens has no such architecture"
            )
        settings |= {
            "max_iterations": sae.activation.k,
            "residual_threshold": sae.activation.residual_threshold,
            "stop_on_duplicate_support": sae.activation.stop_on_repeat,
        }
    else:
        tensors |= {"W_enc": sae.W_enc, "b_enc": sae.b_enc}
    if sae.threshold is not None and kind == "jumprelu":
        tensors["threshold"] = sae.threshold
    if kind in ("topk", "abstopk"):
        settings |= {"k": sae.activation.k, "rescale_acts_by_decoder_norm": False}
    return {name: _on_disk(array) for name, array in tensors.items()}, settings


def _on_disk(array) -> np.ndarray:
    array = np.asarray(array)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _config(sae: SAE, settings: dict, extra: dict) -> dict:
    about = {
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": None,
        "saved_by": "jaxdict",
        "model_name": sae.metadata.model,
        "hook_name": sae.metadata.hook,
        **_training(sae, settings["architecture"]),
    }
    return {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(np.asarray(sae.W_dec).dtype) if sae.W_dec.dtype in (np.float32, np.float64) else "float32",
        "device": "cpu",
        # SAELens flattens heads itself where the activations are a hook_z.
        "reshape_activations": "hook_z" if str(sae.metadata.hook).endswith("hook_z") else "none",
        **settings,
        "metadata": about | extra,
    }


def _training(sae: SAE, architecture: str) -> dict:
    """What it was trained on, in SAELens' words where it has some, and under our own name where it has none."""
    told = sae.metadata
    details = {} if sae.lam is None else {"l1_coefficient": 2 * sae.lam, "lp_norm": 1.0}
    details |= {"matryoshka_widths": list(told.prefixes)} if told.prefixes else {}
    named = told.trained_as or told.architecture
    trained = architecture if named == "standard" else named
    trained = "matryoshka_batchtopk" if told.prefixes else "standard" if details else trained
    ours = {"penalty": told.penalty, "power": told.power, "prefix_weights": list(told.prefix_weights) or None}
    ours = {name: value for name, value in ours.items() if value is not None}
    parts = {"training_architecture": trained, "training_architecture_details": details}
    return parts | ({"jaxdict": ours} if ours else {})


def _write(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    """Both files under their final names only once they are whole."""
    text = json.dumps(config, indent=2) + "\n"
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; give a folder")
    if folder.exists():
        _write_files(folder, text, tensors)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as temporary:
        temporary.mkdir()
        _write_files(temporary, text, tensors)
    return folder


def _write_files(folder: Path, text: str, tensors: dict[str, np.ndarray]) -> None:
    replace_safetensors(folder / "sae_weights.safetensors", tensors)
    replace_text(folder / "cfg.json", text)
