"""Every format and architecture: read from disk, agree with the package's own equations, in any gauge and precision."""

import json
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from sae_cases import (
    CASES,
    DICTIONARY_LEARNING,
    FOUR,
    LOWER,
    NORM,
    SAELENS,
    SPARSIFY,
    SPARSIFY_CFG,
    D,
    N,
    S,
    inputs,
    pick,
)
from sae_writers import Strided, write_folder, write_torch

from jaxdict.sae import load
from jaxdict.sae.formats import holds_sae

REAL = Path(__file__).parent / "data" / "dl_matryoshka"
# Float32 against a float64 reference: rounding of d_in products, amplified by values up to about 10.
ATOL = 5e-5


def compare(sae, x, features, reconstructions, atol=ATOL):
    """Features and reconstructions equal, the same features on: no row here is within rounding of a threshold."""
    f = np.asarray(sae.encode(x))
    np.testing.assert_allclose(f, features, atol=atol)
    np.testing.assert_array_equal(f != 0, features != 0)
    np.testing.assert_allclose(sae(x), reconstructions, atol=atol)


def read(case, folder):
    write_folder(folder, case.files)
    at = folder / "embedding" / "width_4k" if "embedding/width_4k/params.npz" in case.files else folder
    return load(at, **(case.options or {}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_packages_equations(name, tmp_path):
    sae, x = read(CASES[name], tmp_path), inputs()
    features, reconstructions = CASES[name].forward(x.astype(float))
    assert sae.metadata.format == CASES[name].format
    assert (features != 0).any(axis=1).all()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(sae))
    compare(sae, x, features, reconstructions)


@pytest.mark.parametrize("name", CASES)
def test_canonical_gauge_has_unit_rows_and_the_same_reconstructions(name, tmp_path):
    sae, x = read(CASES[name], tmp_path), inputs()
    unit = sae.canonical()
    np.testing.assert_allclose(jnp.linalg.norm(unit.W_dec, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit.dictionary.atoms, sae.dictionary.atoms, atol=1e-6)
    compare(unit, x, np.asarray(sae.encode(x) * sae.norms), np.asarray(sae(x)))


@pytest.mark.parametrize("name", CASES)
def test_encoder_compiles_once_and_maps_over_rows(name, tmp_path):
    sae, x = read(CASES[name], tmp_path), inputs()
    traces = []
    encode = jax.jit(lambda sae, x: traces.append(0) or sae.encode(x))
    whole = encode(sae, x)
    encode(read(CASES[name], tmp_path), x + 1)
    assert len(traces) == 1
    np.testing.assert_allclose(jax.vmap(sae.encode)(x), whole, rtol=5e-7, atol=1e-6)  # codes of order 10 in float32
    np.testing.assert_allclose(
        sae.encode(x.reshape(4, 5, D)).reshape(20, N), whole, rtol=5e-7, atol=1e-6
    )  # codes of order 10 in float32
    np.testing.assert_allclose(jax.vmap(sae)(x), sae(x), rtol=5e-7, atol=1e-6)  # codes of order 10 in float32


def test_a_file_written_by_dictionary_learning_and_torch():
    sae, expected = load(REAL), np.load(REAL / "expected.npz")
    assert (sae.metadata.format, sae.metadata.architecture) == ("dictionary_learning", "MatryoshkaBatchTopKSAE")
    assert sae.W_dec.shape == (512, 384)
    compare(sae, expected["x"], expected["feature_acts"], expected["x_hat"])
    compare(load(REAL / "ae.pt"), expected["x"], expected["feature_acts"], expected["x_hat"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["standard", "dl_standard", "gemma_scope", "sparsify"])
def test_half_precision_weights_widen_exactly(name, dtype, tmp_path):
    halve = lambda v: Strided(v.array.astype(dtype)) if isinstance(v, Strided) else v.astype(dtype)  # noqa: E731
    files = {
        file: content if file.endswith(".json") else {key: halve(value) for key, value in content.items()}
        for file, content in CASES[name].files.items()
    }
    sae, whole = load(write_folder(tmp_path / "half", files)), load(write_folder(tmp_path / "whole", CASES[name].files))
    for got, full in zip(jax.tree.leaves(sae), jax.tree.leaves(whole), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, np.asarray(full).astype(dtype).astype(np.float32))


def test_float64_weights_stay_float64_under_x64(tmp_path):
    files = {"params.npz": {name: value.astype(float) for name, value in LOWER.items()}}
    assert load(write_folder(tmp_path, files)).W_enc.dtype == jnp.float64


def test_compressed_npz(tmp_path):
    np.savez_compressed(tmp_path / "params.npz", **pick(*FOUR, "threshold"))
    np.testing.assert_array_equal(load(tmp_path).W_dec, pick("W_dec")["W_dec"])


def test_state_dict_of_a_module_with_versions_and_any_file_name(tmp_path):
    state = DICTIONARY_LEARNING["dl_standard"].files["ae.pt"]
    write_torch(tmp_path / "checkpoint_3.pth", state, as_module=True)
    np.testing.assert_array_equal(load(tmp_path).W_dec, pick("W_dec")["W_dec"])


def test_dictionary_learning_checkpoint_finds_the_config_above(tmp_path):
    case = DICTIONARY_LEARNING["dl_batchtopk"]
    write_folder(tmp_path, {"checkpoints/ae_100.pt": case.files["ae.pt"], "config.json": case.files["config.json"]})
    assert load(tmp_path / "checkpoints" / "ae_100.pt").metadata.architecture == "BatchTopKSAE"


def test_lam_is_half_the_coefficient_in_the_units_of_the_data(tmp_path):
    def lam(name, files):
        return load(write_folder(tmp_path / name, files)).lam

    details = {
        "training_architecture": "standard",
        "training_architecture_details": {"l1_coefficient": 0.8, "lp_norm": 1.0},
    }
    files = SAELENS["standard"].files
    cfg = files["cfg.json"] | {"metadata": files["cfg.json"]["metadata"] | details}
    assert lam("new", files | {"cfg.json": cfg}) == 0.4
    scaled = SAELENS["standard_scaled"].files
    cfg_scaled = scaled["cfg.json"] | {"metadata": details}
    assert lam("scaled", scaled | {"cfg.json": cfg_scaled}) == pytest.approx(0.4 / S)
    half_norm = {**details, "training_architecture_details": {"l1_coefficient": 0.8, "lp_norm": 0.5}}
    assert lam("lp", files | {"cfg.json": cfg | {"metadata": half_norm}}) is None
    assert lam("legacy", CASES["legacy_relu"].files) == 0.3
    assert lam("dl", CASES["dl_standard"].files) == 0.15
    assert lam("backup", CASES["dl_backup_lam"].files) == pytest.approx(0.15 * NORM)
    assert lam("topk", CASES["dl_topk"].files) is None


def test_scale_missing_from_a_checkpoint_warns_and_can_be_given(tmp_path):
    files = {
        name: content for name, content in SAELENS["standard_scaled"].files.items() if name != "activation_scaler.json"
    }
    folder, x = write_folder(tmp_path, files), inputs()
    with pytest.warns(UserWarning, match="no scale is stored"):
        sae = load(folder)
    assert "no scale is stored" in sae.metadata.notes[0]
    compare(load(folder, scale=S), x, *SAELENS["standard_scaled"].forward(x.astype(float)))


def test_scale_given_for_any_format_means_activations_times_scale(tmp_path):
    folder, x = write_folder(tmp_path, CASES["dl_jumprelu"].files), inputs()
    plain, scaled = load(folder), load(folder, scale=2.0)
    compare(scaled, x, np.asarray(plain.encode(2 * x)), np.asarray(plain(2 * x)) / 2)


def test_threshold_given_reads_top_k_weights_as_jumprelu(tmp_path):
    folder, x = write_folder(tmp_path, CASES["dl_topk_hint"].files), inputs()
    compare(load(folder, threshold=0.4), x, *CASES["dl_batchtopk"].forward(x.astype(float)))


def test_ambiguous_state_asks_which_class(tmp_path):
    folder = write_folder(tmp_path, CASES["dl_topk_hint"].files)
    with pytest.raises(ValueError, match="give k= for the first or threshold= for the second"):
        load(folder)


def test_a_release_lists_what_it_holds_and_one_alone_is_taken(tmp_path):
    files = SAELENS["standard"].files
    for layer in (10, 2):
        write_folder(tmp_path / "release" / f"layer_{layer}" / "width_16k", files)
        with pytest.raises(ValueError, match="holds 2 folders") if layer == 2 else nullcontext():
            sae = load(tmp_path / "release")
    assert sae.d_sae == N
    with pytest.raises(
        ValueError, match=r"release: .*\('layer_2/width_16k', 'layer_10/width_16k'\); give the one to read"
    ):
        load(tmp_path / "release")


def test_checkpoints_of_one_run_are_one_sae(tmp_path):
    files = DICTIONARY_LEARNING["dl_standard"].files
    write_folder(tmp_path / "trainer_0", files | {"checkpoints/ae_100.pt": files["ae.pt"]})
    write_folder(tmp_path / "trainer_1", files)
    with pytest.raises(ValueError, match=r"\('trainer_0', 'trainer_1'\)"):
        load(tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"W_enc": (2, D, N), "b_enc": (N,), "W_dec": (N, 2, D), "b_dec": (2, D)},
        {"encoder.weight": (2, D, N), "encoder.bias": (N,), "decoder.weight": (2, N, D), "decoder.bias": (2, D)},
        {"w_enc": (D, N), "b_enc": (N,), "w_dec": (N, 3, D), "b_dec": (3, D), "threshold": (N,)},
    ],
)
def test_crosscoders_are_refused_by_name(tmp_path, tensors):
    arrays = {name: np.ones(shape, np.float32) for name, shape in tensors.items()}
    write_folder(tmp_path, {"params.safetensors": arrays, "cfg.json": {}})
    assert holds_sae(tmp_path)
    with pytest.raises(
        ValueError, match=r"a crosscoder: tensor .* of shape \(.*, .*, .*\) holds several layers or models"
    ) as told:
        load(tmp_path)
    assert "\n" not in str(told.value)


def test_what_holds_an_sae(tmp_path):
    write_folder(tmp_path / "release" / "layer_0", SAELENS["standard"].files)
    write_folder(tmp_path / "release" / "layer_1", SAELENS["standard"].files)
    np.save(tmp_path / "acts.npy", inputs())
    write_folder(tmp_path / "acts", {"a.safetensors": {"acts": inputs()}, "b.safetensors": {"acts": inputs()}})
    assert holds_sae(tmp_path / "release")
    assert holds_sae(tmp_path / "release" / "layer_0" / "sae_weights.safetensors")
    for other in ("acts.npy", "acts", "nowhere"):
        assert not holds_sae(tmp_path / other)


def test_format_is_told_by_content_not_by_name(tmp_path):
    write_folder(tmp_path, {"sae_weights.safetensors": SPARSIFY, "cfg.json": SPARSIFY_CFG})
    assert load(tmp_path).metadata.format == "sparsify"
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "weights.bin")
    assert load(tmp_path / "weights.bin").metadata.format == "sparsify"


def test_forced_format_reads_another_container(tmp_path):
    write_folder(tmp_path, {"ae.safetensors": {"encoder.weight": SPARSIFY["encoder.weight"]}})
    state = {k: v.array if isinstance(v, Strided) else v for k, v in CASES["dl_standard"].files["ae.pt"].items()}
    write_folder(tmp_path, {"ae.safetensors": state})
    with pytest.raises(ValueError, match="needs hyperparams"):
        load(tmp_path)
    assert load(tmp_path, format="dictionary_learning").metadata.format == "dictionary_learning"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "crosscoder"}, "only sparse autoencoders"),
        (
            {"architecture": "transcoder", "normalize_activations": "layer_norm"},
            "a transcoder with normalize_activations",
        ),
        ({"architecture": "temporal"}, "only sparse autoencoders"),
        ({"architecture": "mystery"}, "'mystery' is unknown"),
        ({"architecture": 3}, "'architecture' is 3, expected a string"),
        ({"normalize_activations": "whiten"}, "normalize_activations 'whiten' is unknown"),
        ({"apply_b_dec_to_input": "yes"}, "'apply_b_dec_to_input' is 'yes', expected true or false"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn 'tanh-relu' is not read"),
        ({"architecture": "topk"}, "'k' is None, expected a whole number from 1 to 12"),
        ({"architecture": "topk", "k": 10**9}, "'k' is 1000000000, expected a whole number from 1 to 12"),
        ({"architecture": "topk", "k": 2.5}, "'k' is 2.5, expected a whole number"),
        ({"architecture": "matching_pursuit", "residual_threshold": float("nan")}, "'residual_threshold' is nan"),
    ],
)
def test_settings_that_cannot_be_followed(change, message, tmp_path):
    files = SAELENS["standard"].files
    write_folder(tmp_path, files | {"cfg.json": files["cfg.json"] | change})
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_transcoder_of_scales_apart_is_refused(tmp_path):
    files = {
        "final.safetensors": CASES["llama_scope"].files["checkpoints/final.safetensors"],
        "hyperparams.json": CASES["llama_scope"].files["hyperparams.json"] | {"hook_point_out": "blocks.9"},
    }
    with pytest.raises(ValueError, match="input and target were scaled apart"):
        load(write_folder(tmp_path, files))


def test_metadata_keeps_model_place_and_configuration(tmp_path):
    sae = load(write_folder(tmp_path, CASES["legacy_relu"].files))
    assert (sae.metadata.model, sae.metadata.hook) == ("gpt2", "blocks.3.hook_resid_pre")
    assert json.loads(sae.metadata.config)["l1_coefficient"] == 0.6
    hash(sae.metadata)
