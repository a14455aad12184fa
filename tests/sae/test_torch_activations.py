"""Activations that torch.save wrote are read without torch: a tensor, a list of them, a dictionary of either."""

import ml_dtypes
import numpy as np
import pytest
from sae_writers import Strided, call, write_torch

from jaxdict.files import open_activations, positions, read_activations, token_ids

X = np.arange(24, dtype=np.float32).reshape(8, 3)
BATCH = X.reshape(2, 4, 3)


def saved(tmp_path, state, name="acts.pt", **options):
    write_torch(tmp_path / name, state, **options)
    return tmp_path / name


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("name", ["acts.pt", "acts.pth"])
def test_a_tensor_of_every_type_is_mapped(tmp_path, dtype, name):
    read = read_activations(saved(tmp_path, X.astype(dtype), name))
    assert read.dtype == dtype
    assert np.array_equal(read.astype(np.float32), X)
    base = read
    while not isinstance(base, np.memmap):
        base = base.base
    assert not base.flags.writeable


def test_a_transposed_tensor(tmp_path):
    assert np.array_equal(read_activations(saved(tmp_path, Strided(X))), X)


@pytest.mark.parametrize(
    "state",
    [[X[:2], X[2:]], [BATCH[:1], BATCH[1:]], {"acts": [X[:5], X[5:]], "step": 3}, list(X), {"acts": X, "lr": 0.1}],
)
def test_lists_and_dictionaries(tmp_path, state):
    assert np.array_equal(read_activations(saved(tmp_path, state)), X)


def test_a_key_chooses_and_tokens_go_along(tmp_path):
    path = saved(tmp_path, {"a": BATCH, "b": {"c": BATCH + 1}, "tokens": np.arange(8).reshape(2, 4)})
    with pytest.raises(
        ValueError, match=r"acts.pt: holds 2 floating arrays .*: name one by its key; it holds a \(2, 4, 3\)"
    ):
        open_activations(path)
    stored = open_activations(path, "b.c")
    assert np.array_equal(stored[:], X + 1)
    assert positions(stored).positions.tolist() == [0, 1, 2, 3] * 2
    assert token_ids(stored).tolist() == list(range(8))


def test_the_column_of_the_saes_hook_is_taken(tmp_path):
    path = saved(tmp_path, {"blocks.0.hook_resid_pre": X, "blocks.1.hook_resid_pre": X + 1})
    assert np.array_equal(open_activations(path, hook="blocks.1.hook_resid_pre")[:], X + 1)


def test_another_hook_is_warned_of(tmp_path):
    path = saved(tmp_path, {"blocks.0.hook_resid_pre": X})
    with pytest.warns(UserWarning, match="are of blocks.0.hook_resid_pre, the SAE reads blocks.1.hook_resid_pre"):
        open_activations(path, hook="blocks.1.hook_resid_pre")


def test_files_that_are_refused(tmp_path):
    for state, words in [
        ({"step": 3}, "holds no tensor"),
        ([X, X[:, :2]], "no rows of one width"),
        (np.arange(6).reshape(2, 3), "dtype int64, not floating point"),
        (X[0], r"has shape \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=rf"acts.pt: .*{words}") as caught:
            open_activations(saved(tmp_path, state))
        assert "\n" not in str(caught.value)
    program = call("os.system")
    with pytest.raises(ValueError, match="only tensors are read, nothing is executed"):
        open_activations(saved(tmp_path, None, program=program))
    (tmp_path / "acts.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"a bare pickle .old torch format.*re-save"):
        open_activations(tmp_path / "acts.pt")


def test_a_truncated_shard_among_torch_files(tmp_path):
    for k in range(3):
        saved(tmp_path, X + k, f"{k}.pt")
    (tmp_path / "1.pt").write_bytes((tmp_path / "1.pt").read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"1.pt: the zip directory is missing or damaged.*left out, the other 2"):
        stored = open_activations(tmp_path)
    assert np.array_equal(stored[:], np.concatenate([X, X + 2]))
