"""dictionary_learning files: `ae.pt`, a torch state, beside (or below) `config.json` with the trainer's settings."""

from typing import Any

import numpy as np

from jaxdict.containers.tensors import BadFileError, Config, Entry, Tensors
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE
from jaxdict.sae.reading import LAM_UNITS, Hints, as_jumprelu, describe, gated, prefix_weights_of, prefixes_of
from jaxdict.storage import listing

# What makes each class recognisable by its tensors; a shared set is settled by the configuration.
NEEDS = {
    "GatedAutoEncoder": {"encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"},
    "AutoEncoder": {"encoder.weight", "encoder.bias", "decoder.weight", "bias"},
    "AutoEncoderNew": {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"},
    "AutoEncoderTopK": {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec"},
    "BatchTopKSAE": {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "threshold"},
    "MatryoshkaBatchTopKSAE": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "group_sizes"},
    "JumpReluAutoEncoder": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
}
# Quantities in the units of the activations: a backup holds them in training units, its norm factor apart.
IN_DATA_UNITS = (
    "bias",
    "b_dec",
    "b_enc",
    "decoder_bias",
    "encoder.bias",
    "decoder.bias",
    "gate_bias",
    "mag_bias",
    "threshold",
)


def read_dictionary_learning(tensors: Tensors, hints: Hints) -> SAE:
    """The SAE in a dictionary_learning state, one of the seven classes in `NEEDS`.

    `u = x - b_dec` but for AutoEncoderNew and JumpReluAutoEncoder, which do not subtract; `pre = u E^T + e`.
    AutoEncoderTopK keeps the k largest and ignores its stored threshold, as the package does by default; batch top-k
    classes cut at theirs. Raises ValueError where tensors fit no class, or fit two and neither the configuration nor
    a hint says which.
    """
    folder = tensors.path.parent
    config = Config.first(folder / "config.json", folder.parent / "config.json")
    tensors = _unwrap(tensors)
    kind = _class_of(tensors, config, hints)
    metadata = _metadata(tensors, config, kind)
    if kind in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        return _direct(tensors, kind, metadata)
    W_enc, W_dec = _transposed(tensors)
    d_sae, d_in = W_dec.shape
    if kind == "GatedAutoEncoder":
        b_dec = tensors.take("decoder_bias", (d_in,))
        return gated(tensors, W_enc, W_dec, b_dec, ("gate_bias", "mag_bias", "r_mag"), "none", True, metadata)
    name = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
    b_enc, b_dec = tensors.take("encoder.bias", (d_sae,)), tensors.take(name, (d_in,))
    plain = SAE(W_enc, b_enc, W_dec, b_dec, centred=kind != "AutoEncoderNew", metadata=metadata)
    if kind == "BatchTopKSAE":
        return as_jumprelu(plain, hints.threshold if hints.threshold is not None else tensors.scalar("threshold"))
    if kind == "AutoEncoderTopK":
        return SAE(
            W_enc,
            b_enc,
            W_dec,
            b_dec,
            activation=Activation("topk", k=_k(tensors, config, hints, d_sae)),
            metadata=metadata,
        )
    return plain


def _direct(tensors, kind, metadata) -> SAE:
    """The two classes that store `W_enc` and `W_dec` as SAELens does."""
    W_dec = tensors.take("W_dec", (None, None))
    d_sae, d_in = W_dec.shape
    centred = kind == "MatryoshkaBatchTopKSAE"
    threshold = tensors.scalar("threshold") if centred else tensors.take("threshold", (d_sae,))
    W_enc, b_enc, b_dec = (
        tensors.take("W_enc", (d_in, d_sae)),
        tensors.take("b_enc", (d_sae,)),
        tensors.take("b_dec", (d_in,)),
    )
    return as_jumprelu(SAE(W_enc, b_enc, W_dec, b_dec, centred=centred, metadata=metadata), threshold)


def _transposed(tensors) -> tuple[np.ndarray, np.ndarray]:
    d_sae, d_in = (*tensors.shape("encoder.weight"), 0, 0)[:2]
    W_enc = tensors.take("encoder.weight", (None, None)).T
    return np.ascontiguousarray(W_enc), np.ascontiguousarray(tensors.take("decoder.weight", (d_in, d_sae)).T)


def _unwrap(tensors: Tensors) -> Tensors:
    """The autoencoder inside a training backup {"ae": state, "norm_factor": c, ...}, biases taken to raw units."""
    if not any(name.startswith("ae.") for name in tensors.entries):
        return tensors
    factor = tensors.values.get("norm_factor")
    factor = tensors.scalar("norm_factor") if "norm_factor" in tensors else 1.0 if factor is None else factor
    if type(factor) not in (int, float) or not (np.isfinite(factor) and factor > 0):
        raise BadFileError(f"{tensors.path}: 'norm_factor' is {listing([factor])}, expected a number > 0")
    inner = {name[3:]: entry for name, entry in tensors.entries.items() if name.startswith("ae.")}
    if factor != 1:
        inner |= {name: _times(inner[name], factor) for name in IN_DATA_UNITS if name in inner}
    return Tensors(tensors.path, inner, tensors.values | {"norm_factor": float(factor)}, tensors.container)


def _times(entry: Entry, factor: float) -> Entry:
    return entry._replace(read=lambda: (entry.read().astype(np.float64) * factor).astype(np.float32))


def _class_of(tensors, config, hints) -> str:
    named = config.section("trainer").text("dict_class")
    fitting = [kind for kind, needs in NEEDS.items() if tensors.has(*needs)]
    if named is not None and named not in NEEDS:
        raise BadFileError(f"{config.path}: dict_class {listing([named])} is not read; use one of {tuple(NEEDS)}")
    if named is not None:
        missing = sorted(NEEDS[named] - set(tensors.entries))
        if missing:
            raise BadFileError(f"{tensors.path}: {named} needs tensor {missing[0]!r}; found {listing(tensors.entries)}")
        return named
    if not fitting:
        raise BadFileError(f"{tensors.path}: fits no class of dictionary_learning; found {listing(tensors.entries)}")
    if fitting == ["AutoEncoderTopK", "BatchTopKSAE"]:
        if (hints.k is None) == (hints.threshold is None):
            raise BadFileError(
                f"{tensors.path}: AutoEncoderTopK and BatchTopKSAE store the same tensors and config.json does not "
                "name the class; give k= for the first or threshold= for the second"
            )
        return "AutoEncoderTopK" if hints.k is not None else "BatchTopKSAE"
    return fitting[0]


def _k(tensors, config, hints, d_sae) -> int:
    """k, from the caller, the state or the configuration."""
    if hints.k is not None:
        values = {"k": hints.k}
    elif "k" in tensors:
        values = {"k": tensors.scalar("k")}
    else:
        values = config.section("trainer").values
    return Config(tensors.path, values).count("k", d_sae)


def _metadata(tensors, config, kind):
    """lam = l1_penalty / 2 where the loss is a plain L1; annealed norms, p-norms, gates and targets have none."""
    trainer, norm_factor = config.section("trainer"), tensors.values.get("norm_factor")
    named = trainer.values.get("trainer_class")
    trained_as = named if isinstance(named, str) else None
    is_l1 = kind in ("AutoEncoder", "AutoEncoderNew") and (trained_as or "").startswith("StandardTrainer")
    penalty = trainer.number("l1_penalty") if is_l1 else None
    lam = None if penalty is None else penalty / 2 * (norm_factor or 1.0)
    note = (
        "lam is l1_penalty / 2 in training units; trainSAE with normalize_activations divides activations by a norm "
        "factor c and does not store it: multiply lam by c then"
    )
    submodule = trainer.values.get("submodule_name")
    training = {"trained_as": trained_as} | _annealed(trainer, trained_as) | _prefixes(tensors, trainer, kind)
    short = "power is p_end, which the annealing of the penalty may have ended an update short of"
    unknown = lam is not None and norm_factor is None
    training["caveat"] = LAM_UNITS if unknown else None
    notes = (note if unknown else "", short if training.get("power") is not None else "")
    places = trainer.values.get("lm_name"), submodule
    return describe(config, "dictionary_learning", kind, lam, notes, *places, **training)


def _annealed(trainer: Config, trained_as: str | None) -> dict[str, Any]:
    """The penalty that p-annealing ends at: `Lp^p` is `sum f^p`, `Lp` its p-th root; of unit decoder rows."""
    if trained_as != "PAnnealTrainer":
        return {}
    penalty = {"Lp^p": "power", "Lp": "norm"}.get(str(trainer.values.get("sparsity_function")))
    return {"penalty": penalty, "power": trainer.number("p_end")}


def _prefixes(tensors: Tensors, trainer: Config, kind: str) -> dict[str, Any]:
    """A Matryoshka's groups, added up to prefixes, and what its trainer weighed each one's error with."""
    if kind != "MatryoshkaBatchTopKSAE":
        return {}
    d_sae = (*tensors.shape("W_dec"), 0)[0]
    sizes = tensors.take("group_sizes", (None,)).astype(np.float64)
    prefixes = prefixes_of(
        tensors.path, "group_sizes", [int(end) for end in np.cumsum(np.clip(sizes, -1e9, 1e9))], d_sae
    )
    return {
        "prefixes": prefixes,
        "prefix_weights": prefix_weights_of(trainer.values.get("group_weights"), len(prefixes)),
    }
