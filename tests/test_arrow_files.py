"""Arrow and Parquet files as SAELens' CacheActivationsRunner and Hugging Face's datasets lay them out."""

import json
import sys

import numpy as np
import pytest

from jaxdict.files import open_activations, positions, token_ids

pa = pytest.importorskip("pyarrow", reason="Arrow files need pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

HOOK = "blocks.3.hook_resid_pre"
SEQUENCES, CONTEXT, D = 4, 3, 5


def acts(seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(SEQUENCES, CONTEXT, D)).astype(dtype)


def nested(array, fixed=False):
    """An array as Arrow's lists of lists, of stated or of equal lengths."""
    column = pa.array(array.reshape(-1))
    for size in array.shape[:0:-1]:
        if fixed:
            column = pa.FixedSizeListArray.from_arrays(column, size)
        else:
            column = pa.ListArray.from_arrays(pa.array(np.arange(0, len(column) + 1, size), pa.int32()), column)
    return column


def batch(array, ids, fixed=False, **others):
    return pa.record_batch({HOOK: nested(array, fixed), "token_ids": nested(ids), **others})


def tokens(first=0):
    return np.arange(first, first + SEQUENCES * CONTEXT, dtype=np.int32).reshape(SEQUENCES, CONTEXT)


def write_stream(path, *batches):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for each in batches:
            writer.write_batch(each)
    return path


def cached(folder, shards=3):
    """A folder as `Dataset.save_to_disk` leaves it."""
    names = [f"data-{k:05d}-of-{shards:05d}.arrow" for k in range(shards)]
    for k, name in enumerate(names):
        write_stream(folder / name, batch(acts(k), tokens(100 * k)), batch(acts(k + 50), tokens(100 * k + 50)))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cache-0123.arrow").write_bytes(b"what map() left")
    return names


def expected(shards):
    return np.concatenate([acts(k + part).reshape(-1, D) for k in shards for part in (0, 50)])


def test_a_folder_of_the_cache_runner(tmp_path):
    names = cached(tmp_path)
    stored = open_activations(tmp_path)
    assert stored.shape == (3 * 2 * SEQUENCES * CONTEXT, D)
    assert stored.dtype == np.float32
    assert list(stored.names) == names
    np.testing.assert_array_equal(stored[:], expected(range(3)))
    np.testing.assert_array_equal(stored[np.array([30, 1])], expected(range(3))[[30, 1]])
    where = positions(stored)
    assert where.documents[-1] == 3 * 2 * SEQUENCES - 1
    assert where.positions[:4].tolist() == [0, 1, 2, 0]
    parts = [tokens(100 * k + part).reshape(-1) for k in range(3) for part in (0, 50)]
    np.testing.assert_array_equal(token_ids(stored), np.concatenate(parts))


@pytest.mark.parametrize("how", ["middle", "between messages", "missing"])
def test_a_truncated_shard_in_the_middle_costs_that_shard_alone(tmp_path, how):
    names = cached(tmp_path)
    bad = tmp_path / names[1]
    if how == "missing":
        bad.unlink()
    else:
        whole = bad.read_bytes()
        bad.write_bytes(whole[: len(whole) // 2] if how == "middle" else whole[:-8])
    with pytest.warns(UserWarning, match=rf"{names[1]}: .*left out, the other 2 shards are read"):
        stored = open_activations(tmp_path)
    assert stored.left_out == (names[1],)
    np.testing.assert_array_equal(stored[:], expected([0, 2]))
    assert token_ids(stored)[24] == 200


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["stream", "file", "parquet"])
def test_kinds_types_and_lists(tmp_path, kind, dtype, fixed):
    rows = batch(acts(dtype=dtype), tokens(), fixed)
    path = tmp_path / ("a.parquet" if kind == "parquet" else "a.arrow")
    if kind == "stream":
        write_stream(path, rows)
    elif kind == "file":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_batch(rows)
    else:
        pq.write_table(pa.Table.from_batches([rows, rows]), path, row_group_size=3)  # groups of 3, 3 and 2 sequences
    stored = open_activations(path)
    times = 2 if kind == "parquet" else 1
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored[:], np.concatenate([acts(dtype=dtype).reshape(-1, D)] * times))
    np.testing.assert_array_equal(token_ids(stored), np.concatenate([tokens().reshape(-1)] * times))
    assert positions(stored).documents[-1] == times * SEQUENCES - 1


def test_flat_rows_and_other_columns(tmp_path):
    flat = acts().reshape(-1, D)
    names = pa.array(["a"] * len(flat))
    pq.write_table(
        pa.table({"acts": nested(flat), "text": names, "loss": pa.array(flat[:, 0])}), tmp_path / "a.parquet"
    )
    stored = open_activations(tmp_path / "a.parquet")
    np.testing.assert_array_equal(stored[:], flat)
    assert positions(stored) is None
    assert token_ids(stored) is None


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_what_is_wrong_with_another_column_does_not_matter(tmp_path, name):
    ragged = pa.array([[1], [2, 3], None, [4]], pa.list_(pa.int32()))
    rows = pa.record_batch({HOOK: nested(acts()), "token_ids": ragged})
    if name == "a.parquet":
        pq.write_table(pa.Table.from_batches([rows]), tmp_path / name)
    else:
        write_stream(tmp_path / name, rows)
    stored = open_activations(tmp_path / name)
    np.testing.assert_array_equal(stored[:], acts().reshape(-1, D))
    assert token_ids(stored) is None


def test_a_column_that_is_wrong_in_a_later_batch_is_refused_whole(tmp_path):
    good, bad = (
        pa.record_batch({"a": pa.array(rows, pa.list_(pa.float32()))}) for rows in ([[1.0, 2.0]], [[1.0, None]])
    )
    write_stream(tmp_path / "a.arrow", good, bad)
    with pytest.raises(ValueError, match=r"a.arrow: column 'a' has 1 missing numbers"):
        open_activations(tmp_path / "a.arrow")


def test_the_column_of_the_saes_hook_and_names_with_dots(tmp_path):
    others = {"blocks.1.hook_resid_pre": nested(acts(1)), "blocks.10.hook_resid_pre": nested(acts(2))}
    pq.write_table(pa.table(others), tmp_path / "a.parquet")
    stored = open_activations(tmp_path / "a.parquet", hook="blocks.1.hook_resid_pre")
    np.testing.assert_array_equal(stored[:], acts(1).reshape(-1, D))
    with pytest.raises(ValueError, match=r"a.parquet: holds 2 floating arrays .*name one by its key"):
        open_activations(tmp_path / "a.parquet")


def test_a_folder_pushed_to_the_hub_has_its_parquet_files_below(tmp_path):
    (tmp_path / "data").mkdir()
    for k in range(2):
        pq.write_table(pa.Table.from_batches([batch(acts(k), tokens())]), tmp_path / "data" / f"train-{k:05d}.parquet")
    np.testing.assert_array_equal(
        open_activations(tmp_path)[:], np.concatenate([acts(0).reshape(-1, D), acts(1).reshape(-1, D)])
    )


def test_an_extension_type_is_its_storage(tmp_path):
    class Array2D(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.list_(pa.list_(pa.float32())), "tests.Array2D")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, serialised):
            return cls()

    column = pa.ExtensionArray.from_storage(Array2D(), nested(acts()))
    write_stream(tmp_path / "a.arrow", pa.record_batch({HOOK: column}))
    np.testing.assert_array_equal(open_activations(tmp_path / "a.arrow")[:], acts().reshape(-1, D))
    pa.register_extension_type(Array2D())
    try:
        np.testing.assert_array_equal(open_activations(tmp_path / "a.arrow")[:], acts().reshape(-1, D))
    finally:
        pa.unregister_extension_type("tests.Array2D")


def test_columns_that_are_refused(tmp_path):
    uneven = pa.array([[1.0, 2.0], [3.0]])
    for column, words in [
        (uneven, "lists of 1 to 2 numbers"),
        (pa.array([[1.0, 2.0], None]), "1 missing rows"),
        (pa.array([[1.0, 2.0], [3.0, None]]), "1 missing numbers"),
        (pa.array(["a", "b"]), "holds no floating array"),
    ]:
        pq.write_table(pa.table({"a": column}), tmp_path / "a.parquet")
        write_stream(tmp_path / "a.arrow", pa.record_batch({"a": column}))
        for name in ("a.parquet", "a.arrow"):
            with pytest.raises(ValueError, match=rf"{name}: .*{words}") as caught:
                open_activations(tmp_path / name)[:]
            assert "\n" not in str(caught.value)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"a.parquet: truncated or not a Parquet file"):
        open_activations(tmp_path / "a.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    cached(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'Arrow and Parquet files need pyarrow: pip install "jaxdict\[files\]"'
    ):
        open_activations(tmp_path)


def test_a_damaged_state_is_told(tmp_path):
    cached(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"state.json: does not name the files of a dataset"):
        open_activations(tmp_path)
