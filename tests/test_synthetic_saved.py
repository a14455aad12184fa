"""Saved models of SynthSAEBench: read as its package writes them, written so that it reads them, refused where they are damaged."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdict import synthetic
from jaxdict.synthetic import Forest, LowRank, sizes
from jaxdict.synthetic_benchmark.torch_draws import torch_normals

KEY = jax.random.key(0)
NAMES = ("synthetic_model_config.json", "synthetic_model.safetensors", "hierarchy.json")
N, D, RANK = 17, 3, 2


def node(feature, *children, exclusive=False, **more):
    """A node as the package writes it: `scale_children_by_parent` only where it is true."""
    return {
        "feature_index": feature, "mutually_exclusive_children": exclusive, "feature_id": None, "children": list(children), **more,
    }  # fmt: skip


ROOTS = [
    node(0, node(2, node(5)), node(3), node(4), exclusive=True, scale_children_by_parent=True),
    node(None, node(1, node(9), node(8)), node(7), exclusive=True),  # two roots that exclude one another
    node(6, node(None, node(11), node(10), exclusive=True), node(12)),
]
CONFIG = {
    "num_features": N,
    "hidden_dim": D,
    "firing_probability": {"exponent": 0.5, "max_prob": 0.4, "min_prob": 0.0005, "generator_name": "zipfian"},
    "hierarchy": {"total_root_nodes": 3, "branching_factor": 2, "max_depth": 2, "compensate_probabilities": True},
    "orthogonalization": None,
    "correlation": {"rank": RANK, "correlation_scale": 0.1, "seed": None},
    "std_firing_magnitudes": {
        "mean": 0.5,
        "std": 0.5,
        "min_value": None,
        "max_value": None,
        "generator_name": "folded_normal",
    },
    "mean_firing_magnitudes": {"start": 5.0, "end": 4.0, "generator_name": "linear"},
    "bias": 0.5,
    "dtype": "float32",
    "seed": 41,
}


def tensors():
    draw = np.random.default_rng(0)
    return {
        "feature_vectors": draw.normal(size=(N, D)).astype(np.float32),
        "bias": draw.normal(size=D).astype(np.float32),
        "firing_probabilities": draw.uniform(size=N).astype(np.float32),
        "correlation_factor": (0.1 * draw.normal(size=(N, RANK))).astype(np.float32),
        "correlation_diag": draw.uniform(0.9, 1.0, N).astype(np.float32),
    }


def written(folder, config=CONFIG, roots=ROOTS, **changed):
    folder.mkdir(exist_ok=True)
    (folder / NAMES[0]).write_text(json.dumps(config))
    save_file({name: array for name, array in (tensors() | changed).items() if array is not None}, folder / NAMES[1])
    if roots is not None:
        (folder / NAMES[2]).write_text(json.dumps({"roots": roots}, indent=2))
    return folder


def test_a_model_that_its_package_saved(tmp_path):
    model, theirs = synthetic.load_bench_model(written(tmp_path / "model")), tensors()
    np.testing.assert_array_equal(model.dictionary.atoms, theirs["feature_vectors"])
    np.testing.assert_array_equal(model.dictionary.offset, theirs["bias"])
    np.testing.assert_array_equal(model.probabilities, theirs["firing_probabilities"])
    np.testing.assert_array_equal(model.factor, theirs["correlation_factor"])
    np.testing.assert_array_equal(model.diagonal, theirs["correlation_diag"])
    np.testing.assert_allclose(model.means, np.linspace(5, 4, N), rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(model) if jnp.issubdtype(leaf.dtype, jnp.floating)} == {
        np.dtype("f4")
    }
    assert model.parents.tolist() == [-1, -1, 0, 0, 0, 2, -1, -1, 1, 1, 6, 6, 6, -1, -1, -1, -1]
    assert model.levels.tolist() == [0, 0, 1, 1, 1, 2, 0, 0, 1, 1, 1, 1, 1, -1, -1, -1, -1]
    assert model.groups.tolist() == [-1, 1, 2, 2, 2, -1, -1, 1, -1, -1, 10, 10, -1, -1, -1, -1, -1]
    assert np.flatnonzero(model.scaled).tolist() == [2, 3, 4]
    assert model.depth == 2
    on = np.asarray(synthetic.bench_sample(KEY, model, 500).codes > 0)
    for group in ([2, 3, 4], [1, 7], [10, 11]):
        assert on[:, group].sum(axis=1).max() == 1
    for parent, child in model.edges():
        assert not (on[:, child] & ~on[:, parent]).any()


def test_sizes_without_a_tensor_are_drawn_as_torch_draws_them(tmp_path):
    """torch.randn of seed 42, its first eight of sixteen and more, as its documentation and many a notebook show them."""
    shown = [1.9269, 1.4873, 0.9007, -2.1055, 0.6784, -1.2345, -0.0431, -1.6047]
    model = synthetic.load_bench_model(written(tmp_path / "model"))
    np.testing.assert_allclose(torch_normals(16, 42)[:8], shown, atol=6e-5)
    np.testing.assert_array_equal(torch_normals(40, 42)[:16], torch_normals(16, 42))
    # 17 numbers: the first comes of the first sixteen, the others of the last sixteen, drawn anew.
    np.testing.assert_allclose(model.spreads[0], abs(0.5 + 0.5 * shown[0]), atol=6e-5)
    assert not np.allclose(torch_normals(17, 42)[1:16], torch_normals(16, 42)[1:])
    np.testing.assert_allclose(torch_normals(5, 42), [0.3367, 0.1288, 0.2345, 0.2303, -1.1229], atol=6e-5)
    capped = CONFIG | {
        "std_firing_magnitudes": CONFIG["std_firing_magnitudes"] | {"max_value": 0.7, "seed": 42},
        "seed": 3,
    }
    found = synthetic.load_bench_model(written(tmp_path / "model", capped)).spreads
    np.testing.assert_allclose(found, np.minimum(model.spreads, 0.7), rtol=1e-6)


def test_plain_numbers_are_sizes_and_there_need_be_no_hierarchy_nor_copula(tmp_path):
    config = CONFIG | {"hierarchy": None, "std_firing_magnitudes": 0.25, "mean_firing_magnitudes": 2}
    model = synthetic.load_bench_model(
        written(tmp_path / "m", config, None, correlation_factor=None, correlation_diag=None)
    )
    assert set(model.spreads.tolist()) == {0.25}
    assert set(model.means.tolist()) == {2.0}
    assert (model.factor, model.diagonal, model.groups, model.depth) == (None, None, None, 0)
    assert set(model.parents.tolist()) == {-1}


@pytest.mark.parametrize(
    "forest",
    [
        pytest.param(None, marks=pytest.mark.slow),
        Forest(roots=2, branching=2, depth=2, exclusive=0.5, scale_by_parent=True),
    ],
)
def test_round_trip_is_exact(forest, tmp_path):
    model = synthetic.bench_model(
        KEY,
        15,
        4,
        forest=forest,
        correlation=LowRank(2),
        spreads=sizes.FoldedNormal(0.5, 0.5),
        means=sizes.Exponential(1.0, 3.0),
    )
    folder = synthetic.save_bench_model(model, tmp_path / "deep" / "model")
    assert sorted(file.name for file in folder.iterdir()) == sorted(NAMES if forest else NAMES[:2])
    again = synthetic.load_bench_model(folder)
    assert eqx.tree_equal(model, again)
    assert set(tensors()) < set(load_file(folder / NAMES[1]))


def test_trees_that_their_own_generator_does_not_make_come_back_too(tmp_path):
    first = synthetic.load_bench_model(written(tmp_path / "theirs"))
    folder = synthetic.save_bench_model(first, tmp_path / "ours")
    assert eqx.tree_equal(first, synthetic.load_bench_model(folder))
    config = json.loads((folder / NAMES[0]).read_text())
    assert config == CONFIG


@pytest.mark.slow
def test_a_model_without_trees_leaves_no_old_trees_behind(tmp_path):
    folder = written(tmp_path / "model")
    model, none = synthetic.load_bench_model(folder), jnp.full(N, -1)
    parts = vars(model) | {"parents": none, "levels": none, "groups": None, "depth": 0}
    bare = json.dumps(CONFIG | {"hierarchy": None})
    synthetic.save_bench_model(synthetic.BenchModel(**parts | {"config": bare}), folder)
    assert synthetic.load_bench_model(folder).edges() == []


def test_a_batch_of_models_is_no_model(tmp_path):
    one = synthetic.load_bench_model(written(tmp_path / "one"))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), one)
    with pytest.raises(ValueError, match=r"\(2, 17\); save one at a time"):
        synthetic.save_bench_model(many, tmp_path / "model")


def cut(folder):
    whole = (folder / NAMES[1]).read_bytes()
    (folder / NAMES[1]).write_bytes(whole[:-20])


DAMAGE = {
    "no configuration": (lambda folder: (folder / NAMES[0]).unlink(), FileNotFoundError, "synthetic_model_config.json"),
    "no weights": (lambda folder: (folder / NAMES[1]).unlink(), FileNotFoundError, "synthetic_model.safetensors"),
    "no hierarchy": (lambda folder: (folder / NAMES[2]).unlink(), FileNotFoundError, "hierarchy.json"),
    "cut short": (cut, ValueError, "truncated"),
    "no JSON": (lambda folder: (folder / NAMES[0]).write_text("{"), ValueError, "not valid JSON"),
    "nodes of another kind": (lambda folder: (folder / NAMES[2]).write_text('{"roots": [3]}'), ValueError, "a node is 3"),
    "no list of nodes": (lambda folder: (folder / NAMES[2]).write_text('{"roots": 3}'), ValueError, "'roots' is 3"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_folders_are_refused(what, tmp_path):
    damage, kind, says = DAMAGE[what]
    damage(written(tmp_path / "model"))
    with pytest.raises(kind, match=says):
        synthetic.load_bench_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"feature_vectors": np.ones((N, D + 1), "f4")}, r"feature_vectors' has shape \(17, 4\), expected \(17, 3\)"),
        ({"bias": None}, "'bias' is missing"),
        ({"firing_probabilities": np.full(N, 1.5, "f4")}, "firing_probabilities' holds 1.5, expected 0 to 1"),
        ({"correlation_diag": np.full(N, -0.5, "f4")}, "correlation_diag' holds -0.5"),
        ({"correlation_factor": np.ones(N, "f4")}, r"correlation_factor' has shape \(17,\)"),
        ({"roots": [node(0, node(17))]}, "'feature_index' is 17, but the model has features 0 to 16"),
        ({"roots": [node(0, node(True))]}, "'feature_index' is True"),
        ({"roots": [node(0, node(1)), node(1)]}, "feature 1 stands twice"),
        ({"config": CONFIG | {"num_features": 18}}, r"expected \(18, 3\)"),
        ({"config": CONFIG | {"hidden_dim": None}}, "'hidden_dim' is None"),
        ({"config": CONFIG | {"seed": None}}, "'seed' is null"),
        ({"config": CONFIG | {"mean_firing_magnitudes": {"generator_name": "cubic"}}}, "mean_firing_magnitudes"),
        ({"config": CONFIG | {"mean_firing_magnitudes": {"generator_name": "linear", "start": 1.0}}}, "mean_firing_magnitudes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, says, tmp_path):
    written(tmp_path / "model", **change)
    with pytest.raises(ValueError, match=says) as caught:
        synthetic.load_bench_model(tmp_path / "model")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
