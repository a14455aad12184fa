"""One small SAE a format and architecture: its files, and in numpy what each package's equations give."""

from typing import NamedTuple

import numpy as np
from sae_writers import Strided

D, N, ROWS, K = 6, 12, 20, 3


class Case(NamedTuple):
    """Files by name, the expected format, and the forward map x -> (features, reconstruction)."""

    files: dict
    format: str
    forward: object
    options: dict | None = None


def relu(x):
    return np.maximum(x, 0)


def keep_top(pre, scores, k):
    kept = np.zeros_like(pre)
    for row, score, out in zip(pre, scores, kept, strict=True):
        for i in np.argsort(-score)[:k]:
            out[i] = row[i]
    return kept


def pieces(seed=0):
    """Random weights in float32 values, held in float64 for the reference."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "W_enc": draw(D, N),
        "b_enc": draw(N) * 0.3,
        "W_dec": draw(N, D) * np.float32(0.8),
        "b_dec": draw(D) * 0.5,
        "threshold": np.abs(draw(N)) * np.float32(0.3),
        "b_gate": draw(N) * 0.3,
        "b_mag": draw(N) * 0.3,
        "r_mag": draw(N) * 0.3,
    }


def inputs(seed=1):
    return np.random.default_rng(seed).normal(size=(ROWS, D)).astype(np.float32)


P = {name: value.astype(np.float32) for name, value in pieces().items()}
W, B, V, C, T = (P[name].astype(float) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"))
NU = np.linalg.norm(V, axis=1)
S = 1.7


def pick(*names):
    return {name: P[name] for name in names}


def config(architecture, **extra):
    base = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12"},
    }
    return base | extra


def saelens(architecture, tensors, forward, also=None, **extra):
    weights = pick(*tensors) if not isinstance(tensors, dict) else tensors
    files = {"cfg.json": config(architecture, **extra), "sae_weights.safetensors": weights}
    # What lies beside the weights in real folders must not be taken for them.
    files["sparsity.safetensors"] = {"sparsity": np.zeros(N, np.float32)}
    return Case(files | (also or {}), "saelens", forward)


FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")


def standard(x):
    f = relu((x - C) @ W + B)
    return f, f @ V + C


def gated(x):
    c = (x - C) @ W
    f = (c + P["b_gate"] > 0) * relu(c * np.exp(P["r_mag"].astype(float)) + P["b_mag"])
    return f, f @ V + C


def jumprelu(x, centred=True, threshold=T):
    pre = (x - C * centred) @ W + B
    f = relu(pre) * (pre > threshold)
    return f, f @ V + C


def topk(x, scores=lambda pre: pre):
    pre = (x - C) @ W + B
    f = keep_top(relu(pre), scores(pre), K)
    return f, f @ V + C


def topk_rescaled(x):
    pre = ((x - C) @ W + B) * NU
    f = keep_top(relu(pre), pre, K)
    return f, (f / NU) @ V + C


def abstopk(x):
    pre = (x - C) @ W + B
    f = keep_top(pre, np.abs(pre), K)
    return f, f @ V + C


def groupmax(x):
    a = relu((x - C) @ W + B)
    f = np.zeros_like(a)
    for row, out in zip(a, f, strict=True):
        for start in range(0, N, N // K):
            i = start + np.argmax(row[start : start + N // K])
            out[i] = row[i]
    return f, f @ V + C


def layer_norm(x):
    mean = x.mean(1, keepdims=True)
    spread = (x - mean).std(1, ddof=1, keepdims=True)
    f, out = standard((x - mean) / (spread + 1e-5))
    return f, out * spread + mean


def unit_norm(x):
    c = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    f, out = standard(x * c)
    return f, out / c


def no_centring(x):
    f = relu(x @ W + B)
    return f, f @ V + C


def pursuit(x, offset=C, threshold=0.5, steps=4):
    features = np.zeros((len(x), N))
    for row, f in zip(x, features, strict=True):
        r = row - offset
        for _ in range(steps):
            scores = relu(V @ r)
            i = int(np.argmax(scores))
            fresh = f[i] == 0 and scores[i] > 0
            f[i] += scores[i]
            r = r - scores[i] * V[i]
            if not fresh or np.linalg.norm(r) < threshold:
                break
    return features, features @ V + offset


def batchtopk_checkpoint(x, s=1.0, cut=0.4):
    acts = relu((x * s - C) @ W + B) * NU
    f = acts * (acts > cut)
    return f / s, ((f / NU) @ V + C) / s


def scaled(x):
    f, out = standard(x * S)
    return f, out / S


MP = {"max_iterations": 4, "residual_threshold": 0.5, "stop_on_duplicate_support": True}
CUT = {"topk_threshold": np.float64(0.4)}
BATCH = {"k": K, "rescale_acts_by_decoder_norm": True}
SCALER = {"activation_scaler.json": {"scaling_factor": S, "has_whitening": False}}
LN = "layer_norm"
SAELENS = {
    "standard": saelens("standard", FOUR, standard),
    "jumprelu": saelens("jumprelu", (*FOUR, "threshold"), jumprelu),
    "jumprelu_log": saelens("jumprelu", pick(*FOUR) | {"log_threshold": np.log(P["threshold"])}, jumprelu),
    "topk": saelens("topk", FOUR, topk, k=K),
    "topk_rescaled": saelens("topk", FOUR, topk_rescaled, k=K, rescale_acts_by_decoder_norm=True),
    "abstopk": saelens("abstopk", FOUR, abstopk, k=K),
    "gated": saelens("gated", ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"), gated),
    "matching_pursuit": saelens("matching_pursuit", ("W_dec", "b_dec"), pursuit, **MP),
    "matching_pursuit_bare": saelens(
        "matching_pursuit", ("W_dec", "b_dec"), lambda x: pursuit(x, offset=0 * C), **MP, apply_b_dec_to_input=False
    ),
    "layer_norm": saelens("standard", FOUR, layer_norm, normalize_activations=LN),
    "constant_norm": saelens("standard", FOUR, unit_norm, normalize_activations="constant_norm_rescale"),
    "no_centring": saelens("standard", FOUR, no_centring, apply_b_dec_to_input=False),
    "checkpoint": saelens("batchtopk", pick(*FOUR) | CUT, batchtopk_checkpoint, **BATCH),
    "checkpoint_scaled": saelens(
        "matryoshka_batchtopk",
        pick(*FOUR) | CUT,
        lambda x: batchtopk_checkpoint(x, S),
        SCALER,
        **BATCH,
        normalize_activations="expected_average_only_in",
    ),
    "standard_scaled": saelens("standard", FOUR, scaled, SCALER, normalize_activations="expected_average_only_in"),
}


def legacy(forward, tensors=FOUR, extra_tensors=None, **settings):
    flat = {
        "hook_point": "blocks.3.hook_resid_pre",
        "model_name": "gpt2",
        "d_in": D,
        "expansion_factor": 2,
        "l1_coefficient": 0.6,
    }
    weights = pick(*tensors) | (extra_tensors or {})
    return Case({"cfg.json": flat | settings, "sae_weights.safetensors": weights}, "saelens", forward)


FACTOR = np.linspace(0.5, 2, N).astype(np.float32)


def finetuned(x):
    f, _ = standard(x)
    return f, (f * FACTOR) @ V + C


LEGACY = {
    "legacy_relu": legacy(standard, activation_fn_str="relu", normalize_activations=False),
    "legacy_topk": legacy(topk, activation_fn="topk", activation_fn_kwargs={"k": K}, normalize_activations=None),
    "legacy_finetuned": legacy(finetuned, extra_tensors={"scaling_factor": FACTOR}, finetuning_scaling_factor=True),
    "legacy_ones": legacy(standard, extra_tensors={"scaling_factor": np.ones(N, np.float32)}),
}

LINEAR = {"encoder.weight": np.ascontiguousarray(P["W_enc"].T), "encoder.bias": P["b_enc"]}
DECODER = {"decoder.weight": Strided(P["W_dec"].T)}
SCALARS = {"k": np.int32(K), "threshold": np.float32(0.4)}


def dl(kind, state, forward, trainer=None, **options):
    settings = {"trainer": {"dict_class": kind, "lm_name": "gpt2"} | (trainer or {}), "buffer": {"d_submodule": D}}
    return Case({"ae.pt": state, "config.json": settings}, "dictionary_learning", forward, options)


def dl_batchtopk(x):
    a = relu((x - C) @ W + B)
    f = a * (a > np.float32(0.4))
    return f, f @ V + C


DL_STANDARD = LINEAR | DECODER | {"bias": P["b_dec"]}
DIRECT = {"W_enc": Strided(P["W_enc"]), "b_enc": P["b_enc"], "W_dec": Strided(P["W_dec"]), "b_dec": P["b_dec"]}
GATE = {"r_mag": P["r_mag"], "gate_bias": P["b_gate"], "mag_bias": P["b_mag"], "decoder_bias": P["b_dec"]}
NORM = 3.0


def backup(x):
    """Trained on x / NORM; the package saves biases times NORM, so that features come in raw units."""
    f = relu((x - C * NORM) @ W + B * NORM)
    return f, f @ V + C * NORM


def backup_batchtopk(x):
    """A threshold too is saved in training units and taken times NORM."""
    a = relu((x - C * NORM) @ W + B * NORM)
    f = a * (a > np.float32(0.4 * NORM))
    return f, f @ V + C * NORM


def backup_jumprelu(x):
    pre = x @ W + B * NORM
    f = relu(pre) * (pre > T * NORM)
    return f, f @ V + C * NORM


DICTIONARY_LEARNING = {
    "dl_standard": dl("AutoEncoder", DL_STANDARD, standard, {"trainer_class": "StandardTrainer", "l1_penalty": 0.3}),
    "dl_new": dl("AutoEncoderNew", LINEAR | DECODER | {"decoder.bias": P["b_dec"]}, no_centring),
    "dl_topk": dl("AutoEncoderTopK", LINEAR | DECODER | {"b_dec": P["b_dec"]} | SCALARS, topk),
    "dl_batchtopk": dl("BatchTopKSAE", LINEAR | DECODER | {"b_dec": P["b_dec"]} | SCALARS, dl_batchtopk),
    "dl_matryoshka": dl("MatryoshkaBatchTopKSAE", DIRECT | SCALARS | {"group_sizes": np.array([4, 8])}, dl_batchtopk),
    "dl_jumprelu": dl(
        "JumpReluAutoEncoder", DIRECT | {"threshold": P["threshold"]}, lambda x: jumprelu(x, centred=False)
    ),
    "dl_gated": dl("GatedAutoEncoder", {"encoder.weight": LINEAR["encoder.weight"]} | DECODER | GATE, gated),
    "dl_backup": dl(
        "AutoEncoder", {"step": 7, "ae": DL_STANDARD, "optimizer": {"lr": 0.1}, "norm_factor": NORM}, backup
    ),
    "dl_backup_lam": dl(
        "AutoEncoder",
        {"ae": DL_STANDARD, "norm_factor": NORM},
        backup,
        {"trainer_class": "StandardTrainer", "l1_penalty": 0.3},
    ),
    "dl_backup_gated": dl(
        "GatedAutoEncoder",
        {"ae": {"encoder.weight": LINEAR["encoder.weight"]} | DECODER | GATE, "norm_factor": NORM},
        lambda x: tuple(NORM * part for part in gated(x / NORM)),  # all of it is homogeneous
    ),
    "dl_backup_batchtopk": dl(
        "BatchTopKSAE",
        {"ae": LINEAR | DECODER | {"b_dec": P["b_dec"]} | SCALARS, "norm_factor": NORM},
        backup_batchtopk,
    ),
    "dl_backup_jumprelu": dl(
        "JumpReluAutoEncoder", {"ae": DIRECT | {"threshold": P["threshold"]}, "norm_factor": NORM}, backup_jumprelu
    ),
    "dl_without_config": Case({"ae.pt": DL_STANDARD}, "dictionary_learning", standard),
    "dl_topk_hint": Case(
        {"ae.pt": LINEAR | DECODER | {"b_dec": P["b_dec"]} | SCALARS}, "dictionary_learning", topk, {"k": K}
    ),
}

SPARSIFY = LINEAR | {"W_dec": P["W_dec"], "b_dec": P["b_dec"]}
SPARSIFY_CFG = {"activation": "topk", "expansion_factor": 2, "num_latents": 0, "k": K, "d_in": D, "transcode": False}
LOWER = {
    "w_enc": P["W_enc"],
    "w_dec": P["W_dec"],
    "b_enc": P["b_enc"],
    "b_dec": P["b_dec"],
    "threshold": P["threshold"],
}
OPENAI = {"pre_bias": P["b_dec"], "encoder.weight": LINEAR["encoder.weight"], "latent_bias": P["b_enc"]} | DECODER
LLAMA = LINEAR | {"decoder.weight": np.ascontiguousarray(P["W_dec"].T), "decoder.bias": P["b_dec"]}
LLAMA_CFG = {
    "d_model": D,
    "d_sae": N,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.2,
    "hook_point_in": "blocks.3.hook_resid_post",
    "hook_point_out": "blocks.3.hook_resid_post",
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": float(np.sqrt(D) / S), "out": float(np.sqrt(D) / S)},
}


def bare(x):
    return jumprelu(x, centred=False)


def embedding(x):
    pre = x @ (W / np.sqrt(D)) + B
    f = relu(pre) * (pre > T)
    return f, f @ (V * np.sqrt(D)) + C


def openai_topk(x):
    mean, spread = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    f, out = topk((x - mean) / (spread + 1e-5))
    return f, out * spread + mean


def llama(x, gauge=1.0, threshold=0.2 * S):
    """lm-saes at inference: pre-activations of raw inputs against the raw threshold; here in training units."""
    pre = (S * x @ W + B) * gauge
    f = relu(pre) * (pre > threshold)
    return f, (f @ (V / np.broadcast_to(gauge, N)[:, None]) + C) / S


OC_ROWS = V / NU[:, None] * np.exp(0.2)
OC = {
    "encoder.final_block.0.weight": LINEAR["encoder.weight"],
    "encoder.final_block.0.bias": P["b_enc"],
    "dictionary._weights": P["W_dec"],
    "dictionary.multiplier": np.float32(0.2),
}


def overcomplete(x, activate=relu, rows=OC_ROWS):
    f = activate(x @ W + B)
    return f, f @ rows


def batch_norm(x):
    f = relu((x @ W + B - C[0]) / np.sqrt(0.7 + 1e-5) * 1.3 + 0.1)
    return f, f @ OC_ROWS


BN = {
    "encoder.final_block.1.weight": np.full(N, 1.3, np.float32),
    "encoder.final_block.1.bias": np.full(N, 0.1, np.float32),
    "encoder.final_block.1.running_mean": np.full(N, P["b_dec"][0]),
    "encoder.final_block.1.running_var": np.full(N, 0.7, np.float32),
    "encoder.final_block.1.num_batches_tracked": np.int64(5),
}
MIX = np.random.default_rng(5).dirichlet(np.ones(5), N).astype(np.float32)
POINTS = np.random.default_rng(6).normal(size=(5, D)).astype(np.float32)
RELAX = np.random.default_rng(7).normal(size=(N, D)).astype(np.float32) * np.float32(0.1)
RA = {name: value for name, value in OC.items() if name.startswith("encoder")} | {
    "dictionary.W": MIX,
    "dictionary.C": POINTS,
    "dictionary.Relax": RELAX,
    "dictionary.multiplier": np.float32(0.2),
}
RA_ROWS = (MIX.astype(float) @ POINTS + RELAX) * np.exp(0.2)

RELEASES = {
    "sparsify": Case({"sae.safetensors": SPARSIFY, "cfg.json": SPARSIFY_CFG}, "sparsify", topk),
    "sparsify_groupmax": Case(
        {"sae.safetensors": SPARSIFY, "cfg.json": SPARSIFY_CFG | {"activation": "groupmax"}}, "sparsify", groupmax
    ),
    "gemma_scope": Case({"params.npz": pick(*FOUR, "threshold")}, "gemma_scope", bare),
    "gemma_scope_lower": Case({"params.npz": LOWER}, "gemma_scope", bare),
    "gemma_scope_embedding": Case(
        {"embedding/width_4k/params.npz": pick(*FOUR, "threshold")}, "gemma_scope", embedding
    ),
    "gemma_scope_2": Case(
        {"params.safetensors": LOWER, "config.json": {"architecture": "jump_relu"}}, "gemma_scope_2", bare
    ),
    "openai_relu": Case({"autoencoder.pt": OPENAI | {"activation": "ReLU"}}, "openai", standard),
    "openai_topk": Case(
        {"autoencoder.pt": OPENAI | {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}},
        "openai",
        openai_topk,
    ),
    "llama_scope": Case({"checkpoints/final.safetensors": LLAMA, "hyperparams.json": LLAMA_CFG}, "llama_scope", llama),
    "llama_scope_unit": Case(
        {
            "checkpoints/final.safetensors": LLAMA,
            "hyperparams.json": LLAMA_CFG | {"sparsity_include_decoder_norm": True},
        },
        "llama_scope",
        lambda x: llama(x, NU),
    ),
    "llama_scope_r1": Case(
        {
            "sae_weights.safetensors": LLAMA | {"log_jumprelu_threshold": np.log(P["threshold"])},
            "config.json": LLAMA_CFG,
        },
        "llama_scope",
        lambda x: llama(x, threshold=T),
    ),
    "overcomplete_relu": Case({"model.pt": OC}, "overcomplete", overcomplete),
    "overcomplete_jump": Case(
        {"model.pt": OC | {"thresholds": np.log(P["threshold"])}},
        "overcomplete",
        lambda x: overcomplete(x, lambda p: relu(p) * (p > T)),
    ),
    "overcomplete_topk": Case(
        {"model.pt": OC}, "overcomplete", lambda x: overcomplete(x, lambda p: keep_top(relu(p), p, K)), {"k": K}
    ),
    "overcomplete_batch_norm": Case({"model.pt": OC | BN}, "overcomplete", batch_norm),
    "overcomplete_archetypal": Case({"model.pt": RA}, "overcomplete", lambda x: overcomplete(x, rows=RA_ROWS)),
}

CASES = SAELENS | LEGACY | DICTIONARY_LEARNING | RELEASES
