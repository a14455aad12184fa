"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, version 6, older ones, and training checkpoints."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from jaxdict.containers.tensors import BadFileError, Config, Tensors
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import NORMALISATIONS, SAE
from jaxdict.sae.reading import (
    LAM_UNITS,
    Hints,
    as_jumprelu,
    decoder_norms,
    describe,
    exp_of,
    gated,
    missing_config,
    neuronpedia_id,
    prefix_weights_of,
    prefixes_of,
    unsupported,
)
from jaxdict.sae.transcoders import Transcoder
from jaxdict.storage import listing

TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = (
    *TRANSCODERS,
    "standard",
    "topk",
    "abstopk",
    "jumprelu",
    "gated",
    "batchtopk",
    "matryoshka_batchtopk",
    "matching_pursuit",
)
# Trained with an L1 penalty where a coefficient of one is stated.
WITH_L1 = ("standard", "transcoder", "skip_transcoder")
# What a checkpoint leaves open, as an audit says it.
NO_SCALE = (
    "The SAE's file says that training scaled the activations but not by how much, so its weights are used as they are: where they "
    "explain little of the variance, give the scale."
)
# Folded into the weights when training ends; only a checkpoint from mid-training still has to be scaled.
FOLDED_AT_END = ("expected_average_only_in", "covariance_whitening")


def read_saelens(tensors: Tensors, hints: Hints) -> SAE:
    """The SAE in a SAELens folder, for raw activations.

    `u = x - b_dec` (with `apply_b_dec_to_input`), `pre = u W_enc + b_enc`, then the architecture's activation.
    Checkpoints of batchtopk become what SAELens makes of them at the end of training: unit decoder rows and one
    threshold. Raises ValueError for crosscoders and temporal SAEs, unknown settings, and tensors that are missing or
    do not fit.
    """
    config = Config.read(tensors.path.parent / "cfg.json")
    if not config.found:
        raise missing_config(tensors, config, "which says how the weights are used")
    architecture = _architecture(tensors, config)
    W_dec = tensors.take("W_dec", (None, None))
    if "scaling_factor" in tensors:  # versions before 6 multiplied features by it before decoding
        W_dec = W_dec * tensors.take("scaling_factor", W_dec.shape[:1])[:, None]
    scale, scale_note = _training_scale(tensors, config, hints)
    build = {"matching_pursuit": _pursuit, **dict.fromkeys(TRANSCODERS, _transcoder)}.get(architecture, _encoder)
    metadata = _metadata(config, architecture, scale_note, len(W_dec))
    sae = build(tensors, config, architecture, W_dec, metadata)
    if scale is not None:
        sae = sae.rescaled(scale)
    return sae.regauged(decoder_norms(sae.W_dec)) if "batchtopk" in architecture else sae


def _architecture(tensors, config) -> str:
    architecture = config.text("architecture", "standard")
    if architecture == "temporal" or "crosscoder" in architecture or "clt" in architecture.split("_"):
        raise unsupported(tensors, f"architecture {listing([architecture])} is not read")
    if architecture not in ARCHITECTURES:
        raise BadFileError(
            f"{config.path}: architecture {listing([architecture])} is unknown; use one of {ARCHITECTURES}"
        )
    # Before version 6 the activation was named apart from the architecture.
    function = config.text("activation_fn") or config.text("activation_fn_str") or "relu"
    if function not in ("relu", "topk"):
        raise BadFileError(f"{config.path}: activation_fn {listing([function])} is not read; use 'relu' or 'topk'")
    return "topk" if function == "topk" and architecture == "standard" else architecture


def _encoder(tensors, config, architecture, W_dec, metadata) -> SAE:
    """Every architecture with an encoder matrix."""
    d_sae, d_in = W_dec.shape
    W_enc, b_dec = tensors.take("W_enc", (d_in, d_sae)), tensors.take("b_dec", (d_in,))
    centred, normalisation = config.flag("apply_b_dec_to_input", True), _normalisation(config)
    if architecture == "gated":
        return gated(tensors, W_enc, W_dec, b_dec, ("b_gate", "b_mag", "r_mag"), normalisation, centred, metadata)
    plain = SAE(
        W_enc,
        tensors.take("b_enc", (d_sae,)),
        W_dec,
        b_dec,
        centred=centred,
        normalisation=normalisation,
        metadata=metadata,
    )
    if architecture == "standard":
        return plain
    if architecture == "jumprelu":
        stored_log = "log_threshold" in tensors and "threshold" not in tensors
        return as_jumprelu(
            plain, exp_of(tensors, "log_threshold", (d_sae,)) if stored_log else tensors.take("threshold", (d_sae,))
        )
    # Features compete or are cut in the unit gauge where the flag says so; SAELens sets it for training, not for
    # older files.
    if config.flag("rescale_acts_by_decoder_norm", "batchtopk" in architecture):
        plain = plain.regauged(decoder_norms(plain.W_dec))
    if "batchtopk" in architecture:
        return as_jumprelu(plain, tensors.scalar("topk_threshold"))
    k = (config if config.values.get("k") is not None else config.section("activation_fn_kwargs")).count("k", d_sae)
    return replace(plain, activation=Activation(architecture, k=k), ranking=None)


def _transcoder(tensors, config, architecture, W_dec, metadata) -> SAE:
    """A transcoder never subtracts `b_dec`, which is of its target; its skip connection is stored as (d_out, d_in)."""
    if (name := _normalisation(config)) != "none":
        raise unsupported(tensors, f"a transcoder with normalize_activations {name!r} is not read")
    d_sae, d_out = W_dec.shape
    W_enc = tensors.take("W_enc", (None, d_sae))
    skips = "skip" in architecture.split("_")
    sae = Transcoder(
        W_enc,
        tensors.take("b_enc", (d_sae,)),
        W_dec,
        tensors.take("b_dec", (d_out,)),
        centred=False,
        metadata=metadata,
        W_skip=np.ascontiguousarray(tensors.take("W_skip", (d_out, W_enc.shape[0])).T) if skips else None,
    )
    return as_jumprelu(sae, tensors.take("threshold", (d_sae,))) if architecture.startswith("jumprelu") else sae


def _pursuit(tensors, config, architecture, W_dec, metadata) -> SAE:
    """Matching pursuit has no encoder; without `apply_b_dec_to_input` its offset is neither subtracted nor added."""
    d_sae, d_in = W_dec.shape
    b_dec = tensors.take("b_dec", (d_in,))
    steps = d_in if config.values.get("max_iterations") is None else config.count("max_iterations", 2**31 - 1)
    activation = Activation(
        "matching_pursuit",
        k=steps,
        residual_threshold=config.number("residual_threshold", 1e-2),
        stop_on_repeat=config.flag("stop_on_duplicate_support", True),
    )
    used = config.flag("apply_b_dec_to_input", True)
    return SAE(
        np.ascontiguousarray(W_dec.T),
        np.zeros(d_sae, W_dec.dtype),
        W_dec,
        b_dec if used else np.zeros_like(b_dec),
        activation=activation,
        normalisation=_normalisation(config),
        metadata=metadata,
    )


def _normalisation(config) -> str:
    name = config.values.get("normalize_activations")
    # Versions before 6 wrote a flag (true: expected_average_only_in) or nothing.
    if name is None or isinstance(name, bool) or name in FOLDED_AT_END:
        return "none"
    if not isinstance(name, str) or name not in NORMALISATIONS:
        known = (*NORMALISATIONS, *FOLDED_AT_END)
        raise BadFileError(f"{config.path}: normalize_activations {listing([name])} is unknown; use one of {known}")
    return name


def _training_scale(tensors, config, hints) -> tuple[float | None, str]:
    """What activations were multiplied by in training, if the weights do not hold it yet; and a note if unknown."""
    name = config.values.get("normalize_activations")
    if name is not True and name not in FOLDED_AT_END:
        return hints.scale, ""
    scaler = Config.read(tensors.path.parent / "activation_scaler.json")
    if scaler.flag("has_whitening", False):
        raise BadFileError(
            f"{scaler.path}: 'has_whitening' is true, this checkpoint reads whitened activations; "
            "save the finished SAE instead"
        )
    scale = next(
        (
            s
            for s in (hints.scale, scaler.number("scaling_factor"), config.number("norm_scaling_factor"))
            if s is not None
        ),
        None,
    )
    if scale is not None and not scale > 0:
        raise BadFileError(f"{scaler.path}: scaling_factor is {scale}, expected a number > 0")
    if scale is None:
        note = (
            f"{config.path.name} says {name!r} but no scale is stored, so weights are used as they are; "
            "if reconstructions are poor, give scale = sqrt(d_in) / mean ||x||"
        )
        warnings.warn(f"{config.path}: {note}", stacklevel=4)
        return None, note
    return scale, ""


def _metadata(config, architecture, scale_note, d_sae):
    """lam = l1_coefficient / 2, for the standard architecture with a 1-norm; old and new layouts."""
    inner = config.section("metadata")
    details = inner.section("training_architecture_details")
    trained = inner.values.get("training_architecture") or architecture
    source = details if details.values else config
    l1, power = source.number("l1_coefficient"), source.number("lp_norm", 1.0)
    lam = l1 / 2 if l1 is not None and trained in WITH_L1 and power == 1 else None
    training: dict[str, Any] = {"trained_as": trained if isinstance(trained, str) and trained != architecture else None}
    if trained in WITH_L1 and power != 1:  # the p-th root of sum f^p, codes of unit decoder rows
        training |= {"penalty": "norm", "power": power}
    training["prefixes"] = prefixes_of(config.path, "matryoshka_widths", source.values.get("matryoshka_widths"), d_sae)
    training |= _own_words(inner.section("jaxdict"), len(training["prefixes"]))
    hook = next(
        (s.values[key] for s in (inner, config) for key in ("hook_name", "hook_point") if key in s.values), None
    )
    in_training_units = lam is not None and inner.values.get("saved_by") != "jaxdict"
    notes = (
        scale_note,
        in_training_units
        and "lam is l1_coefficient / 2 in training units; if training scaled activations by s, divide lam by s",
        config.values.get("reshape_activations", "hook_z" if "hook_z" in str(hook) else "none") == "hook_z"
        and "activations are attention heads: flatten (heads, d_head) to d_in",
    )
    model = inner.values.get("model_name") or config.values.get("model_name")
    page = inner.values.get("neuronpedia_id") or config.values.get("neuronpedia_id")
    caveat = NO_SCALE if scale_note else LAM_UNITS if in_training_units else None
    training |= {"neuronpedia": neuronpedia_id(page), "caveat": caveat}
    return describe(config, "saelens", architecture, lam, notes, model, hook, **training)


def _own_words(ours: Config, n_prefixes: int) -> dict[str, Any]:
    """What `save` wrote of a training that SAELens has no words for."""
    if not ours.values:
        return {}
    told = {"penalty": ours.text("penalty"), "power": ours.number("power")}
    weights = prefix_weights_of(ours.values.get("prefix_weights"), n_prefixes)
    return {name: value for name, value in told.items() if value is not None} | {"prefix_weights": weights}
