"""Models on disk, in the form in which SynthSAEBench's package saves its own."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxdict.containers.archives import read_safetensors
from jaxdict.containers.tensors import BadFileError, Config, Tensors
from jaxdict.problem import Dictionary, offset_of
from jaxdict.storage import listing, replace_safetensors, replace_text, replacing
from jaxdict.synthetic_benchmark.models import BenchModel
from jaxdict.synthetic_benchmark.nested_trees import Flat, flattened, nested
from jaxdict.synthetic_benchmark.sizes import SIZES, Constant, FoldedNormal
from jaxdict.synthetic_benchmark.torch_draws import torch_normals

CONFIG, WEIGHTS, HIERARCHY = "synthetic_model_config.json", "synthetic_model.safetensors", "hierarchy.json"
# Sizes, which their files leave to the configuration: its name there, and how far the seed of its draw is from the model's.
SIZE_NAMES = {"std_firing_magnitudes": 1, "mean_firing_magnitudes": 2}
MOST_FEATURES = 2**26
MOST_HIERARCHY_BYTES = 2**30


def load_bench_model(folder) -> BenchModel:
    """The model in a folder of `synthetic_model_config.json`, `synthetic_model.safetensors` and, with a hierarchy, `hierarchy.json`.

    Arrays are those of the file, with its compensated probabilities; no torch. Their files hold no sizes, only laws of them and a
    seed: folded normal ones are drawn as torch draws them, to rounding. A model without a seed draws its sizes anew whenever it is
    loaded there, and is refused here.

    **Raises** OSError where a file cannot be read; ValueError, naming the file and the field, for one that is damaged, has other
    shapes than the configuration says, or a hierarchy that names a feature outside.

    >>> import tempfile, jax, jaxdict as jd
    >>> model = jd.synthetic.bench_model(jax.random.key(0), 4, 3, spreads=jd.synthetic.sizes.FoldedNormal(0.5, 0.5))
    >>> folder = jd.synthetic.save_bench_model(model, tempfile.mkdtemp() + "/model")
    >>> bool((jd.synthetic.load_bench_model(folder).spreads == model.spreads).all())
    True
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: no such file; a saved model is a folder with {CONFIG} and {WEIGHTS}"
            )
    config, tensors = Config.read(folder / CONFIG), read_safetensors(folder / WEIGHTS)
    n, d = config.count("num_features", MOST_FEATURES), config.count("hidden_dim", MOST_FEATURES)
    atoms = tensors.take("feature_vectors", (n, d))
    sizes = {name: _sizes(config, tensors, name, n) for name in SIZE_NAMES}
    flat = _hierarchy(config, folder / HIERARCHY, n)
    factor, diagonal = _copula(tensors, n)

    def like(array) -> Array:
        return jnp.asarray(array, atoms.dtype)

    return BenchModel(
        dictionary=Dictionary(like(atoms), like(tensors.take("bias", (d,)))),
        probabilities=like(_within(tensors, "firing_probabilities", n, 0, 1)),
        means=like(sizes["mean_firing_magnitudes"]),
        spreads=like(sizes["std_firing_magnitudes"]),
        factor=None if factor is None else like(factor),
        diagonal=None if diagonal is None else like(diagonal),
        parents=jnp.asarray(flat.parents),
        levels=jnp.asarray(flat.levels),
        groups=jnp.asarray(flat.groups) if (flat.groups >= 0).any() else None,
        scaled=jnp.asarray(flat.scaled),
        depth=max(int(flat.levels.max()), 0),
        config=json.dumps(config.values),
    )


def save_bench_model(model: BenchModel, folder) -> Path:
    """Write a model as `load_bench_model` reads it, and as its package does; returns the folder.

    `load_bench_model(save_bench_model(model, folder))` has the same arrays. The sizes are saved with the others, which the package
    does not read: there folded normal ones, and with a copula the probabilities of `firing.Random`, are drawn anew from its own
    seed, so that they are the model's in law only. A new folder appears whole or not at all; in an existing one each file does.

    **Raises** ValueError for a model with a leading axis (of vmap), OSError where the folder cannot be written.
    """
    if jnp.ndim(model.probabilities) != 1:
        raise ValueError(
            f"this model's arrays have a leading axis, probabilities {jnp.shape(model.probabilities)}; save one at a time"
        )
    folder = Path(folder)
    tensors = {
        "feature_vectors": model.dictionary.atoms,
        "bias": offset_of(model.dictionary),
        "firing_probabilities": model.probabilities,
        "mean_firing_magnitudes": model.means,
        "std_firing_magnitudes": model.spreads,
        "correlation_factor": model.factor,
        "correlation_diag": model.diagonal,
    }
    tensors = {name: np.asarray(array) for name, array in tensors.items() if array is not None}
    n, d = tensors["feature_vectors"].shape
    config = {**json.loads(model.config), "num_features": n, "hidden_dim": d}
    if folder.exists():
        _write(folder, model, config, tensors)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as temporary:
        temporary.mkdir()
        _write(temporary, model, config, tensors)
    return folder


def _write(folder: Path, model: BenchModel, config: dict, tensors: dict[str, np.ndarray]) -> None:
    levels = np.asarray(model.levels)
    if (levels >= 0).any():
        groups = np.full_like(levels, -1) if model.groups is None else np.asarray(model.groups)
        flat = Flat(np.asarray(model.parents), levels, groups, np.asarray(model.scaled))
        replace_text(folder / HIERARCHY, json.dumps(nested(flat)) + "\n")
    else:
        (folder / HIERARCHY).unlink(missing_ok=True)
    replace_safetensors(folder / WEIGHTS, tensors)
    replace_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _hierarchy(config: Config, path: Path, n: int) -> Flat:
    if path.is_file():
        return flattened(Config.read(path, MOST_HIERARCHY_BYTES), n)
    if config.values.get("hierarchy") is not None:
        raise FileNotFoundError(f"{path}: no such file, though {config.path.name} speaks of a hierarchy; copy it too")
    none = np.full(n, -1)
    return Flat(none, none, none, np.zeros(n, bool))


def _copula(tensors: Tensors, n: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    if "correlation_factor" not in tensors:
        return None, None
    return tensors.take("correlation_factor", (n, None)), _within(tensors, "correlation_diag", n, 0, np.inf)


def _within(tensors: Tensors, name: str, n: int, least: float, most: float) -> np.ndarray:
    values = tensors.take(name, (n,))
    wrong = values[(values < least) | (values > most)]
    if wrong.size:
        raise BadFileError(f"{tensors.path}: tensor {name!r} holds {wrong[0]:.4g}, expected {least} to {most}")
    return values


def _sizes(config: Config, tensors: Tensors, name: str, n: int) -> np.ndarray:
    """The sizes in the file, where we wrote it; else by their law in the configuration."""
    if name in tensors:
        return _within(tensors, name, n, 0, np.inf)
    law, own_seed = _law(config, name)
    if not isinstance(law, FoldedNormal):
        return np.asarray(law.draw(None, n))
    seed, base = own_seed, config.values.get("seed")
    if seed is None and type(base) is int:
        seed = base + SIZE_NAMES[name]
    if type(seed) is not int:
        raise BadFileError(
            f"{config.path}: {name!r} are drawn at random but 'seed' is null: the model has no sizes of its own; "
            f"add a tensor of that name ({n},) to {tensors.path.name}"
        )
    return np.asarray(law.fold(torch_normals(n, seed)))


def _law(config: Config, name: str):
    """The law of sizes in a configuration, and its own seed where it has one."""
    given = config.values.get(name, float(name.startswith("mean")))
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        given = {"generator_name": Constant.name, "value": float(given)}
    if not isinstance(given, dict) or given.get("generator_name") not in SIZES:
        raise BadFileError(f"{config.path}: {name!r} is {listing([given])}, expected a number or one of {tuple(SIZES)}")
    options = {key: value for key, value in given.items() if key not in ("generator_name", "seed")}
    try:
        return SIZES[given["generator_name"]](**options), given.get("seed")
    except (TypeError, ValueError) as error:
        raise BadFileError(f"{config.path}: {name!r}: {error}") from None
