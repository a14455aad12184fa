"""Activations are read from every kind of file, and broken files are refused in one line with their name."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdict.files import check_writable, open_activations, read_activations, shard_names

X = np.arange(12, dtype=np.float32).reshape(4, 3)
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_and_type(tmp_path, dtype):
    values = X.astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez_compressed(tmp_path / "a.npz", acts=values, tokens=np.arange(4))
    save_file({"acts": values, "tokens": np.arange(4)}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.npz", "a.safetensors"):
        read = read_activations(tmp_path / name)
        assert read.dtype == dtype
        assert np.array_equal(read.astype(np.float32), X)


def test_large_kinds_are_mapped_not_copied(tmp_path):
    np.save(tmp_path / "a.npy", X)
    save_file({"acts": X}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.safetensors"):
        assert isinstance(read_activations(tmp_path / name), np.memmap)


def test_shards_are_read_in_the_order_that_people_count_in(tmp_path):
    values = np.arange(12, dtype=np.float32)[:, None]
    for k in range(12):
        np.save(tmp_path / f"acts-{k}.npy", values[k : k + 1])
    stored = open_activations(tmp_path)
    assert np.array_equal(stored[:], values)
    assert list(stored.names) == shard_names(tmp_path) == [f"acts-{k}.npy" for k in range(12)]


def test_folder_of_shards_is_joined_in_the_order_of_names(tmp_path):
    np.save(tmp_path / "part-1.npy", X[1:2].astype(np.float16))
    np.savez(tmp_path / "part-0.npz", X[:1].astype(ml_dtypes.bfloat16))
    save_file({"acts": X[2:]}, tmp_path / "part-2.safetensors")
    (tmp_path / "README.txt").write_text("not a shard")
    read = read_activations(tmp_path)
    assert read.dtype == np.float32  # the type that holds float16, bfloat16 and float32
    assert np.array_equal(read, X)


def test_keys(tmp_path):
    np.savez(tmp_path / "two.npz", a=X, b=X + 1)
    assert np.array_equal(read_activations(tmp_path / "two.npz", "b"), X + 1)
    with pytest.raises(
        ValueError, match=r"two.npz: holds 2 floating 2-D arrays: name one by its key; it holds a \(4, 3\)"
    ):
        read_activations(tmp_path / "two.npz")
    with pytest.raises(ValueError, match=r"two.npz: has no array 'c'; it holds a"):
        read_activations(tmp_path / "two.npz", "c")


def written(folder, kind):
    """A file with one fault of each kind."""
    good, path = folder / "good.npy", folder / f"bad{'.npz' if 'npz' in kind else '.npy'}"
    np.save(good, X)
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-5])
    elif kind == "header cut":
        path.write_bytes(good.read_bytes()[:20])
    elif kind == "foreign":
        path.write_bytes(b"%PDF-1.7 nothing here")
    elif kind == "pickle":
        np.save(path, np.array([{"a": 1}, None], object), allow_pickle=True)
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "no rows":
        np.save(path, X[:0])
    elif kind == "three axes":
        np.save(path, X.reshape(2, 2, 3))
    elif kind == "integers":
        np.save(path, X.astype(int))
    elif kind == "npz truncated":
        np.savez(path, X)
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "npz foreign":
        path.write_bytes(b"hello")
    elif kind == "npz pickle":
        np.savez(path, a=np.array([{"a": 1}, None], object))
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "truncated"),
        ("header cut", ""),
        ("foreign", "not a .npy file"),
        ("pickle", "never read"),
        ("empty file", "the file is empty"),
        ("no rows", "is empty"),
        ("three axes", r"X.reshape\(-1, 3\)"),
        ("integers", "dtype int64, not floating point"),
        ("npz truncated", ""),
        ("npz foreign", "not an .npz file"),
        ("npz pickle", "never read"),
    ],
)
def test_broken_files(tmp_path, kind, words):
    path = written(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"{path.name}: .*{words}") as caught:
        read_activations(path)
    assert "\n" not in str(caught.value)


def test_broken_safetensors(tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file({"acts": X}, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    lie = whole[8 : 8 + length].replace(b"[4,3]", b"[9,3]")
    for content, words in [
        (whole[:-4], "'acts' lies outside the file .*truncated"),
        (whole[:20], "truncated or not a safetensors"),
        (b"hi", "not a safetensors file"),
        (b"\x05" + bytes(7) + b"hello", "header is not valid JSON"),
        (whole[:8] + lie + whole[8 + length :], "takes 108 bytes, its offsets hold 48"),
        (b"\x07" + bytes(7) + b'{"a":1}', "'a' has a header without"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"bad.safetensors: .*{words}"):
            read_activations(path)


def test_missing_unknown_and_uneven(tmp_path):
    with pytest.raises(OSError, match=r"none.npy: no such file"):
        read_activations(tmp_path / "none.npy")
    (tmp_path / "acts.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"acts.csv: unknown kind of file '.csv'"):
        read_activations(tmp_path / "acts.csv")
    with pytest.raises(ValueError, match="holds no activations"):
        read_activations(tmp_path)
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :2])
    with pytest.raises(ValueError, match=r"b.npy: 2 features where a.npy has 3"):
        read_activations(tmp_path)


def test_unwritable_output_is_known_beforehand(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file.*cannot write results there"):
        check_writable(tmp_path / "file")
    assert check_writable(tmp_path / "new" / "folder").is_dir()
