"""Releases with layouts of their own: sparsify, Gemma Scope 1 and 2, OpenAI, Llama Scope; and overcomplete states."""

import re
from dataclasses import replace

import numpy as np

from jaxdict.containers.tensors import BadFileError, Config, Tensors
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE
from jaxdict.sae.reading import Hints, as_jumprelu, decoder_norms, describe, exp_of, missing_config, unsupported
from jaxdict.sae.transcoders import of_kind
from jaxdict.storage import listing

# Folders of Gemma Scope's transcoders, of its first release and of its second.
GEMMA_TRANSCODER = re.compile(r"gemma-scope.*transcoder|^transcoder(_all)?$")
NO_CONFIGURATION = "The SAE's file holds no configuration: whether training scaled the activations is not known."
BATCH_NORM_EPS = 1e-5  # torch's default; a state does not hold it


def read_sparsify(tensors: Tensors, hints: Hints) -> SAE:
    """sparsify: `pre = relu((x - b_dec) E^T + e)`, of which the k largest, `x_hat = f W_dec + b_dec`.

    With groupmax, the largest of each of k runs of neighbours. `W_dec` is (d_sae, d_in) as stored; the width is the
    tensors', since `num_latents` may be 0. A transcoder does not subtract `b_dec`, which is of its target; a skip connection
    is stored as (d_out, d_in).
    """
    config = Config.read(tensors.path.parent / "cfg.json")
    if not config.found and hints.k is None:
        raise missing_config(tensors, config, "which holds k; or give k=")
    W_dec = tensors.take("W_dec", (None, None))
    d_sae, d_out = W_dec.shape
    kind = config.text("activation", "topk")
    if kind not in ("topk", "groupmax"):
        raise BadFileError(f"{config.path}: activation {listing([kind])} is unknown; use 'topk' or 'groupmax'")
    if config.flag("signed", False):
        kind = "abstopk"
    k = config.count("k", d_sae) if hints.k is None else hints.k
    transcodes, skips = config.flag("transcode", False), config.flag("skip_connection", False) or "W_skip" in tensors
    d_in = None if transcodes else d_out
    W_enc, metadata = _transposed(tensors, "encoder.weight", (d_sae, d_in)), describe(config, "sparsify", kind)
    biases = tensors.take("encoder.bias", (d_sae,)), tensors.take("b_dec", (d_out,))
    options = {"activation": Activation(kind, k=k), "centred": not transcodes, "metadata": metadata}
    W_skip = _transposed(tensors, "W_skip", (d_out, W_enc.shape[0])) if skips else None
    return of_kind(transcodes, W_skip, W_enc, biases[0], W_dec, biases[1], **options)


def read_gemma_scope(tensors: Tensors, hints: Hints) -> SAE:
    """Gemma Scope 1 and 2: `f = relu(pre) 1[pre > threshold]`, `pre = x W_enc + b_enc`, `x_hat = f W_dec + b_dec`.

    The first release is `params.npz` without a configuration, the second `params.safetensors`. Names may be lower
    case; the offset is only added. Embedding SAEs of the first release were trained on activations times `1 /
    sqrt(d_in)`: for a path with a folder "embedding" the scale is folded in. A transcoder is told by its skip connection
    (`affine_skip_connection`, (d_in, d_out)) or by a folder of its path, since its tensors have the same names.
    """
    # Only names are changed, so that a complaint still names what the file holds.
    upper = {name: name.replace("w_", "W_", 1) if name.startswith("w_") else name for name in tensors.entries}
    renamed = Tensors(
        tensors.path, {upper[name]: entry for name, entry in tensors.entries.items()}, tensors.values, tensors.container
    )
    config = Config.read(tensors.path.parent / "config.json")
    W_dec = renamed.take("W_dec", (None, None))
    d_sae, d_out = W_dec.shape
    skips = "affine_skip_connection" in tensors
    transcodes = skips or any(GEMMA_TRANSCODER.search(part) for part in tensors.path.parts)
    W_enc, b_enc = renamed.take("W_enc", (None if transcodes else d_out, d_sae)), renamed.take("b_enc", (d_sae,))
    d_in, b_dec = W_enc.shape[0], renamed.take("b_dec", (d_out,))
    release = "gemma_scope" if tensors.container == "npz" else "gemma_scope_2"
    metadata = describe(
        config, release, "jumprelu", model=config.values.get("model_name"), hook=config.values.get("hf_hook_point_in")
    )
    W_skip = tensors.take("affine_skip_connection", (d_in, d_out)) if skips else None
    plain = of_kind(transcodes, W_skip, W_enc, b_enc, W_dec, b_dec, centred=False, metadata=metadata)
    sae = as_jumprelu(plain, renamed.take("threshold", (d_sae,)))
    embeds = release == "gemma_scope" and "embedding" in tensors.path.parts
    # The offset is in raw units already, unlike in other scaled formats.
    return replace(sae, W_enc=W_enc / d_in**0.5, W_dec=W_dec * d_in**0.5) if embeds else sae


def read_openai(tensors: Tensors, hints: Hints) -> SAE:
    """OpenAI's GPT-2 release: `f = act((z - pre_bias) E^T + latent_bias)`, `x_hat = (f D^T + pre_bias) std + mean`.

    z is x for ReLU and x layer-normalised for TopK, as in their code.
    """
    config = Config(tensors.path, tensors.values)
    kind = config.text("activation", "ReLU")
    if kind not in ("ReLU", "TopK"):
        raise BadFileError(f"{tensors.path}: activation {listing([kind])} is not read; use 'ReLU' or 'TopK'")
    d_sae, d_in = (*tensors.shape("encoder.weight"), 0, 0)[:2]
    activation = Activation("relu")
    if kind == "TopK":
        if tensors.values.get("activation_state_dict.postact_fn", "ReLU") != "ReLU":
            raise BadFileError(
                f"{tensors.path}: 'activation_state_dict.postact_fn' is not ReLU; signed features are not read"
            )
        k = hints.k if hints.k is not None else config.count("activation_state_dict.k", d_sae)
        activation = Activation("topk", k=k)
    return SAE(
        _transposed(tensors, "encoder.weight", (None, None)),
        tensors.take("latent_bias", (d_sae,)),
        _transposed(tensors, "decoder.weight", (d_in, d_sae)),
        tensors.take("pre_bias", (d_in,)),
        activation=activation,
        normalisation="layer_norm" if kind == "TopK" else "none",
        metadata=describe(Config(tensors.path, {}), "openai", kind),
    )


def read_llama_scope(tensors: Tensors, hints: Hints) -> SAE:
    """Llama Scope: `f = relu(pre) 1[pre > threshold]`, `pre = s x W_enc + b_enc`, `x_hat = (f W_dec + b_dec) / s`.

    `s = sqrt(d_in) / mean ||x||`, the mean norm from the configuration. The threshold of `hyperparams.json` is in raw
    units and is taken to training units (times s); R1 files hold its logarithm in training units. With
    `sparsity_include_decoder_norm` features are cut in the unit gauge. Raises ValueError for transcoders.
    """
    folder = tensors.path.parent
    names = ("hyperparams.json", "config.json")
    config = Config.first(*(at / name for at in (folder, folder.parent) for name in names))
    if not config.found:
        raise missing_config(tensors, config, "which holds the threshold and the activation norm")
    if config.values.get("hook_point_in") != config.values.get("hook_point_out"):
        raise unsupported(
            tensors,
            "a transcoder (hook_point_in is not hook_point_out) whose input and target were scaled apart is not read",
        )
    W_dec = _transposed(tensors, "decoder.weight", (None, None))
    d_sae, d_in = W_dec.shape
    biased = config.flag("use_decoder_bias", True)
    b_dec = tensors.take("decoder.bias", (d_in,)) if biased else np.zeros(d_in, W_dec.dtype)
    act_fn = (config.text("act_fn") or "jumprelu").lower()
    metadata = describe(
        config, "llama_scope", act_fn, model=config.values.get("model_name"), hook=config.values.get("hook_point_in")
    )
    W_enc, b_enc = _transposed(tensors, "encoder.weight", (d_sae, d_in)), tensors.take("encoder.bias", (d_sae,))
    sae = SAE(
        W_enc, b_enc, W_dec, b_dec, centred=config.flag("apply_decoder_bias_to_pre_encoder", False), metadata=metadata
    )
    scale = _llama_scale(config, hints, d_in)
    if config.flag("sparsity_include_decoder_norm", False):
        sae = sae.regauged(decoder_norms(W_dec))
    if "log_jumprelu_threshold" in tensors:
        sae = as_jumprelu(sae, exp_of(tensors, "log_jumprelu_threshold", (d_sae,)))
    elif (raw_threshold := config.number("jump_relu_threshold")) is not None and act_fn != "relu":
        sae = as_jumprelu(sae, raw_threshold * scale)
    elif act_fn != "relu":
        raise BadFileError(f"{config.path}: act_fn {listing([act_fn])} without a jump_relu_threshold is not read")
    return sae.rescaled(scale)


def _llama_scale(config, hints, d_in) -> float:
    norm = config.section("dataset_average_activation_norm").number("in")
    if hints.scale is not None:
        return hints.scale
    if config.text("norm_activation", "dataset-wise") in ("inference", "none"):
        return 1.0
    if norm is None or not norm > 0:
        raise BadFileError(
            f"{config.path}: 'dataset_average_activation_norm.in' is {norm}, expected a number > 0; or give scale="
        )
    return float(np.sqrt(d_in)) / norm


def read_overcomplete(tensors: Tensors, hints: Hints) -> SAE:
    """An overcomplete SAE with its linear encoder: `pre = x E^T + e`, batch norm folded in, `x_hat = f D`, no offset.

    `D` is the row-normalised `_weights` (or `W C + Relax`) times `exp(multiplier)`. `thresholds` are logarithms; k
    and a batch top-k's running threshold are not in a state: give `k=` or `threshold=`, else features are
    `relu(pre)`. Raises ValueError for other encoders.
    """
    strange = [
        name for name in tensors.entries if name.startswith("encoder.") and not name.startswith("encoder.final_block.")
    ]
    if strange:
        raise unsupported(tensors, f"the encoder has tensor {strange[0]!r}: only overcomplete's linear encoder is read")
    D = _overcomplete_dictionary(tensors)
    d_sae, d_in = D.shape
    E = tensors.take("encoder.final_block.0.weight", (d_sae, d_in))
    e = tensors.take("encoder.final_block.0.bias", (d_sae,))
    gain, shift = _batch_norm(tensors, d_sae)
    note = "no thresholds or k in the state: read as plain relu; give k= or threshold= for a top-k or batch top-k SAE"
    jump = "thresholds" in tensors
    plain_relu = not jump and hints.k is None and hints.threshold is None
    notes = ("decoder rows are normalised in L2, overcomplete's default", note if plain_relu else "")
    kind = "jumprelu" if jump or hints.threshold is not None else "relu" if plain_relu else "topk"
    sae = SAE(
        np.ascontiguousarray(E.T) * gain,
        e * gain + shift,
        D,
        np.zeros(d_in, D.dtype),
        centred=False,
        metadata=describe(Config(tensors.path, {}), "overcomplete", kind, notes=notes, caveat=NO_CONFIGURATION),
    )
    # What the hints say is applied to every format in the same way, after reading.
    return as_jumprelu(sae, exp_of(tensors, "thresholds", (d_sae,))) if jump else sae


def _overcomplete_dictionary(tensors) -> np.ndarray:
    if "dictionary._weights" in tensors:
        weights = tensors.take("dictionary._weights", (None, None))
        rows = weights / decoder_norms(weights)[:, None]
    else:
        relax = tensors.take("dictionary.Relax", (None, None))
        C = tensors.take("dictionary.C", (None, relax.shape[1]))
        rows = tensors.take("dictionary.W", (relax.shape[0], C.shape[0])) @ C + relax
    if "dictionary.multiplier" not in tensors:
        return rows
    return rows * exp_of(tensors, "dictionary.multiplier", ())


def _batch_norm(tensors, d_sae):
    """Gain and shift of the encoder's normalisation at inference; one and zero where it has none."""
    at = "encoder.final_block.1."
    if not any(name.startswith(at) for name in tensors.entries):
        return np.float32(1), np.float32(0)
    if at + "running_mean" not in tensors:
        raise unsupported(
            tensors, "the encoder normalises each row (layer norm): only overcomplete's linear encoder is read"
        )
    weight, bias, mean, variance = (
        tensors.take(at + name, (d_sae,)) for name in ("weight", "bias", "running_mean", "running_var")
    )
    if np.any(variance < 0):
        raise BadFileError(f"{tensors.path}: tensor {at + 'running_var'!r} is negative; the file is damaged")
    gain = weight / np.sqrt(variance + np.float32(BATCH_NORM_EPS))
    return gain, bias - mean * gain


def _transposed(tensors, name, shape) -> np.ndarray:
    """A matrix stored as torch's Linear does, (out, in), as (in, out)."""
    return np.ascontiguousarray(tensors.take(name, shape).T)
