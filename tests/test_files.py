"""Activations are read from every kind of file, and broken files are refused in one line with their name."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdict.files import check_writable, open_activations, positions, read_activations, token_ids

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
    assert list(stored.names) == [f"acts-{k}.npy" for k in range(12)]


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
        ValueError, match=r"two.npz: holds 2 floating arrays .*: name one by its key; it holds a \(4, 3\)"
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
    elif kind == "one axis":
        np.save(path, X[0])
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
        ("one axis", r"has shape \(3,\); jaxdict wants \(samples, features\)"),
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


BATCH = np.arange(48, dtype=np.float32).reshape(2, 3, 8)  # (batch, position, d), or (samples, heads, d_head)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_batches_are_flattened_and_positions_kept(tmp_path, kind):
    path = tmp_path / f"acts.{kind}"
    {"npy": np.save, "npz": lambda p, a: np.savez(p, a=a), "safetensors": lambda p, a: save_file({"a": a}, p)}[kind](
        path, BATCH
    )
    stored = open_activations(path)
    assert np.array_equal(stored[:], BATCH.reshape(6, 8))
    where = positions(stored)
    assert where.documents.tolist() == [0, 0, 0, 1, 1, 1]
    assert where.positions.tolist() == [0, 1, 2, 0, 1, 2]
    heads = open_activations(path, width=24)
    assert np.array_equal(heads[:], BATCH.reshape(2, 24))
    assert positions(heads) is None
    with pytest.raises(ValueError, match=r"has shape \(2, 3, 8\): rows of 8 or 24 numbers, not of 7"):
        open_activations(path, width=7)


def test_heads_of_every_position_make_a_row(tmp_path):
    np.save(tmp_path / "z.npy", BATCH.reshape(2, 3, 2, 4))
    stored = open_activations(tmp_path / "z.npy", width=8)
    assert np.array_equal(stored[:], BATCH.reshape(6, 8))
    assert positions(stored).positions.tolist() == [0, 1, 2] * 2


def test_documents_are_counted_through_shards(tmp_path):
    np.save(tmp_path / "a-1.npy", BATCH)
    np.save(tmp_path / "a-2.npy", BATCH[:1, :2])
    stored = open_activations(tmp_path)
    assert positions(stored).documents.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    np.save(tmp_path / "a-3.npy", BATCH[0])
    assert positions(open_activations(tmp_path)) is None  # of the last rows nothing is known


def test_tokens_in_the_same_file(tmp_path):
    np.savez(tmp_path / "a.npz", acts=BATCH, tokens=np.arange(6).reshape(2, 3))
    np.savez(tmp_path / "b.npz", acts=BATCH, tokens=np.arange(5))
    assert token_ids(open_activations(tmp_path / "a.npz")).tolist() == list(range(6))
    assert token_ids(open_activations(tmp_path / "b.npz")) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_shard_costs_that_shard_alone(tmp_path, damage):
    for k in range(5):
        np.save(tmp_path / f"part-{k}.npy", X + 100 * k)
    bad = tmp_path / "part-2.npy"
    bad.write_bytes({"truncated": bad.read_bytes()[:-5], "empty": b"", "foreign": b"%PDF-1.7"}[damage])
    with pytest.warns(UserWarning, match=r"part-2.npy: .*: left out, the other 4 shards are read") as told:
        stored = open_activations(tmp_path)
    assert len(told) == 1
    assert stored.left_out == ("part-2.npy",)
    assert list(stored.names) == [f"part-{k}.npy" for k in (0, 1, 3, 4)]
    assert np.array_equal(stored[:], np.concatenate([X + 100 * k for k in (0, 1, 3, 4)]))


def test_where_no_shard_is_whole_the_first_is_named(tmp_path):
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.npy: the file is empty"):
        open_activations(tmp_path)


def test_what_is_no_damage_is_not_left_out(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "b.npz", p=X, q=X)
    with pytest.raises(ValueError, match=r"b.npz: holds 2 floating arrays"):
        open_activations(tmp_path)


def test_folders_of_folders(tmp_path):
    for k in range(11):
        (tmp_path / f"shard_{k}").mkdir()
        np.save(tmp_path / f"shard_{k}" / "data.npy", X[:1] + k)
    stored = open_activations(tmp_path)
    assert np.array_equal(stored[:], np.concatenate([X[:1] + k for k in range(11)]))
    assert stored.names[10] == "shard_10/data.npy"
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "data.npy", X)
    with pytest.raises(ValueError, match=r"holds several folders of activations \('other', 'shard_0'.* give one"):
        open_activations(tmp_path)


def test_unwritable_output_is_known_beforehand(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file.*cannot write results there"):
        check_writable(tmp_path / "file")
    assert check_writable(tmp_path / "new" / "folder").is_dir()
