"""Keeping results: a folder with one safetensors file that holds all, and a readable JSON copy of its facts."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxdict.files import check_writable, safetensors_views
from jaxdict.problem import Codes, Dictionary, Problem, SparseCodes, sparse_codes
from jaxdict.storage import one_line, replace_safetensors, replace_text

FORMAT = "jaxdict-solution-1"
ARRAYS_NAME, JSON_NAME = "solution.safetensors", "solution.json"
# Longer arrays are left out of the JSON copy: it is for people.
LONGEST_LIST = 1024


class Saved(NamedTuple):
    """What `load_solution` gives back."""

    problem: Problem
    dictionary: Dictionary
    codes: SparseCodes | None  # None where none were kept, as of a stream
    history: dict[str, np.ndarray]  # by name, one value a step
    rows: np.ndarray | None  # the rows of the activations that were fitted, None for all
    meta: dict[str, Any]  # status, message, certificate numbers, versions, and what the caller added


def save_solution(
    directory, problem: Problem, dictionary: Dictionary, codes: Codes | None, *, history=None, rows=None, meta=None
) -> Path:
    """Save a point in a folder: `solution.safetensors` holds all, `solution.json` its readable part.

    Codes are kept as padded sparse codes (None: not at all), arrays in their own precision. `history` maps names to arrays, `rows` are
    the rows of the activations that were fitted (None for all), `meta` is anything JSON can hold or `as_plain` can
    turn into it. Files are written under a temporary name and renamed: a killed job leaves the old result or the
    new one.

    >>> import tempfile, jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.eye(2)), jnp.array([[1.0, 0.0], [0.0, 0.0]])
    >>> folder = save_solution(tempfile.mkdtemp(), jd.Problem(lam=0.5), *point, meta={"status": 0})
    >>> saved = load_solution(folder)
    >>> float(saved.problem.lam), saved.codes.values.tolist(), saved.meta["status"]
    (0.5, [[1.0], [0.0]], 0)
    """
    directory = check_writable(directory)
    arrays = {"lam": problem.lam, "metric": problem.metric, "weights": problem.weights, "rows": rows}
    arrays |= {"atoms": dictionary.atoms, "offset": dictionary.offset}
    if codes is not None:
        arrays |= {f"codes.{name}": part for name, part in sparse_codes(codes)._asdict().items()}
    arrays |= {f"history.{name}": values for name, values in (history or {}).items()}
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items() if array is not None}
    static = {"offset": problem.offset, "signed": problem.signed, "gauge": problem.gauge}
    document = {
        "format": FORMAT,
        "problem": {"lam": float(problem.lam), **static},
        "coded": codes is not None,
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        **as_plain(meta or {}),
    }
    text = json.dumps(document, indent=2, allow_nan=False)
    # The arrays' file carries the document too, so that one rename changes both.
    replace_safetensors(directory / ARRAYS_NAME, arrays, metadata={"jaxdict": text})
    replace_text(directory / JSON_NAME, text + "\n")
    return directory


def load_solution(directory) -> Saved:
    """What `save_solution` saved.

    Raises OSError or ValueError, with the file's name, for a folder that holds no result or a broken one.
    """
    path = Path(directory) / ARRAYS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a folder that `jaxdict fit` or `save_solution` wrote")
    try:
        views, metadata = safetensors_views(path)
        document = json.loads(metadata.get("jaxdict", "null"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"not a result of this version of jaxdict (format {FORMAT} expected)")
        stored = {name: np.array(view) for name, view in views.items()}
        return _as_saved(stored, document)
    except KeyError as error:
        raise ValueError(f"{path}: the array {error} is missing") from error
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from error
    except OSError as error:
        raise OSError(f"{path}: {error.strerror or one_line(error)}") from error


def as_plain(value) -> Any:
    """A nested value as JSON can hold it.

    Named tuples and objects become dictionaries, arrays numbers or lists, NaN and infinity None. Arrays of more
    than 1024 numbers are left out (None).

    >>> import numpy as np
    >>> as_plain({"gap": np.float32(0.5), "by_atom": np.array([1.0, np.nan])})
    {'gap': 0.5, 'by_atom': [1.0, None]}
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): as_plain(part) for name, part in value.items()}
    if hasattr(value, "_asdict"):
        return as_plain(value._asdict())
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple)):
        return [as_plain(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        return as_plain(array.tolist()) if array.size <= LONGEST_LIST else None
    return str(value)


def fingerprint(X: Float[Any, "samples d"]) -> str:
    """A short name for the values of an array, in float32, to tell other activations from those that were fitted."""
    array = np.asarray(X)
    digest = hashlib.sha256(repr(array.shape).encode())
    for start in range(0, array.shape[0], 4096):
        digest.update(np.ascontiguousarray(array[start : start + 4096]).astype(np.float32).tobytes())
    return digest.hexdigest()[:16]


def _as_saved(stored, document) -> Saved:
    static = {name: document["problem"][name] for name in ("offset", "signed", "gauge")}
    parts = {name: stored.get(name) for name in ("metric", "weights")}
    problem = Problem(jnp.asarray(stored["lam"]), **static, **parts)
    offset = stored.get("offset")
    dictionary = Dictionary(jnp.asarray(stored["atoms"]), None if offset is None else jnp.asarray(offset))
    codes = None
    if "codes.indices" in stored or document.get("coded", not document.get("stream")):
        codes = SparseCodes(jnp.asarray(stored["codes.indices"]), jnp.asarray(stored["codes.values"]))
    history = {name.removeprefix("history."): a for name, a in stored.items() if name.startswith("history.")}
    return Saved(problem, dictionary, codes, history, stored.get("rows"), document)
