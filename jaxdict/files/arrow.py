"""Columns of Arrow and Parquet files as arrays: how SAELens' CacheActivationsRunner and Hugging Face's datasets keep activations.

A column of lists of equal lengths is an array: `list<list<float>>` of n sequences is (n, position, d). Arrow files are memory-mapped,
Parquet files are read a group of rows at a time.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdict.containers.tensors import Entry

# How a stream of Arrow messages ends; a file cut between two messages has all else.
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def arrow_pieces(path: Path) -> dict[str, list[Entry]]:
    """The columns of numbers of an Arrow file, streamed (as `datasets` writes) or with a footer; a piece for each batch of rows.

    Raises ValueError for a file that is truncated or none of Arrow's.
    """
    arrow = pyarrow()
    with path.open("rb") as file:
        footed = file.read(6) == b"ARROW1"
        file.seek(max(0, path.stat().st_size - len(END_OF_STREAM)))
        if not footed and file.read() != END_OF_STREAM:
            raise ValueError("truncated: it does not end as a stream of Arrow does")
    try:
        source = arrow.memory_map(str(path))
        reader = arrow.ipc.open_file(source) if footed else arrow.ipc.open_stream(source)
        batches = [reader.get_batch(k) for k in range(reader.num_record_batches)] if footed else list(reader)
    except (OSError, arrow.ArrowInvalid) as error:
        raise ValueError(f"truncated or not an Arrow file: {error}") from None
    return _whole({name: lambda name=name: _of_batches(batches, name) for name in reader.schema.names})


def _of_batches(batches, name: str) -> list[Entry]:
    arrays = [numbers(batch.column(name), name) for batch in batches if batch.num_rows]
    return [Entry(array.shape, array.dtype, lambda array=array: array) for array in arrays if array is not None]


def parquet_pieces(path: Path) -> dict[str, list[Entry]]:
    """The columns of numbers of a Parquet file, a piece for each of its groups of rows; the group last read is kept in memory.

    Raises ValueError for a file that is truncated or none of Parquet's.
    """
    arrow, parquet = pyarrow(), pyarrow("parquet")
    try:
        file = parquet.ParquetFile(path)
    except (OSError, arrow.ArrowInvalid) as error:
        raise ValueError(f"truncated or not a Parquet file: {error}") from None

    @functools.lru_cache(maxsize=2)
    def group(k: int, name: str) -> np.ndarray:
        column = file.read_row_group(k, columns=[name]).column(name).combine_chunks()
        array = numbers(column, name)
        assert array is not None
        return array

    def groups(name: str) -> list[Entry]:
        first = next(file.iter_batches(batch_size=1, columns=[name]), None)
        array = None if first is None else numbers(first.column(name), name)
        if array is None:
            return []
        sizes = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
        shapes = [(n, *array.shape[1:]) for n in sizes]
        reads = [functools.partial(_checked, group, k, name, shape) for k, shape in enumerate(shapes)]
        return [Entry(shape, array.dtype, read) for shape, read in zip(shapes, reads, strict=True) if shape[0]]

    return _whole({name: functools.partial(groups, name) for name in file.schema_arrow.names})


def _whole(columns: dict[str, Callable[[], list[Entry]]]) -> dict[str, list[Entry]]:
    """The columns that are arrays; what is wrong with another matters only where none of them could be activations."""
    held, complaint = {}, None
    for name, pieces in columns.items():
        try:
            found = pieces()
        except ValueError as error:
            complaint = complaint or error
            continue
        if found:
            held[name] = found
    if complaint is not None and not any(
        len(found[0].shape) > 1 and found[0].dtype.kind == "f" for found in held.values()
    ):
        raise complaint
    return held


def _checked(group, k: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = group(k, name)
    if array.shape != shape:
        raise ValueError(
            f"column {name!r}, group of rows {k}: shape {array.shape} where the first row makes it {shape}"
        )
    return array


def numbers(column: Any, name: str) -> np.ndarray | None:
    """A column as an array, a view of its memory; None where it holds other things than numbers.

    Raises ValueError for lists of different lengths and for missing values.
    """
    arrow = pyarrow()
    column, shape = getattr(column, "storage", column), [len(column)]
    types = arrow.types
    while types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type):
        if column.null_count:
            raise ValueError(f"column {name!r} has {column.null_count} missing rows; leave such rows out")
        if types.is_fixed_size_list(column.type):
            shape.append(column.type.list_size)
        else:
            lengths = np.diff(np.asarray(column.offsets))
            if len(lengths) and lengths.min() != lengths.max():
                raise ValueError(
                    f"column {name!r} has lists of {lengths.min()} to {lengths.max()} numbers; all must be of one length"
                )
            shape.append(int(lengths[0]) if len(lengths) else 0)
        inner = column.flatten()
        column = getattr(inner, "storage", inner)
    if not (types.is_floating(column.type) or types.is_integer(column.type)):
        return None
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} missing numbers; leave such rows out")
    return column.to_numpy(zero_copy_only=True).reshape(shape) if math.prod(shape) else None


def pyarrow(part: str = "") -> Any:
    """pyarrow, or its part; raises ModuleNotFoundError that names the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        words = 'Arrow and Parquet files need pyarrow: pip install "jaxdict[files]"'
        raise ModuleNotFoundError(words, name=error.name) from error
    return pyarrow.parquet if part == "parquet" else pyarrow
