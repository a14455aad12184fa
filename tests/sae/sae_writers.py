"""Small files in every format's layout, written without the packages; the torch zip writer is our own."""

import json
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

TORCH_NAMES = {
    np.dtype("f8"): "DoubleStorage",
    np.dtype("f4"): "FloatStorage",
    np.dtype("f2"): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype("i8"): "LongStorage",
    np.dtype("i4"): "IntStorage",
}


class Strided:
    """A matrix stored column by column, as torch does with a transposed weight."""

    def __init__(self, array):
        self.array = np.asarray(array)


def text(string):
    raw = string.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(number):
    return b"J" + struct.pack("<i", number) if abs(number) < 2**31 else b"\x8a\x08" + struct.pack("<q", number)


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


def call(name, *arguments):
    module, attribute = name.rsplit(".", 1)
    return f"c{module}\n{attribute}\n".encode() + tuple_of(*arguments) + b"R"


def storage(key, dtype, length):
    kind = f"ctorch\n{TORCH_NAMES[np.dtype(dtype)]}\n".encode()
    return tuple_of(text("storage"), kind, text(key), text("cpu"), integer(length)) + b"Q"


def tensor(key, dtype, length, offset, shape, stride):
    """The program that rebuilds a tensor, with every number free to be a lie."""
    shape, stride = (tuple_of(*(integer(n) for n in numbers)) for numbers in (shape, stride))
    hooks = call("collections.OrderedDict")
    return call(
        "torch._utils._rebuild_tensor_v2", storage(key, dtype, length), integer(offset), shape, stride, b"\x89", hooks
    )


def dictionary(items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def torch_program(state, storages, as_module=False):
    """The pickle program of a nested state; arrays go to `storages`. `as_module`: as a module's state_dict is."""
    if isinstance(state, list):
        return b"](" + b"".join(torch_program(value, storages) for value in state) + b"e"
    if isinstance(state, str):
        return text(state)
    if isinstance(state, (int, float)):
        return integer(state) if isinstance(state, int) else b"G" + struct.pack(">d", state)
    if not isinstance(state, dict):
        return array_program(state, storages)
    items = {name: torch_program(value, storages) for name, value in state.items()}
    if not as_module:
        return dictionary(items)
    pairs = b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"
    versions = dictionary({"_metadata": call("collections.OrderedDict")})
    return call("collections.OrderedDict") + pairs + versions + b"b"


def array_program(value, storages):
    strided = isinstance(value, Strided)
    array = value.array if strided else np.asarray(value)
    flat, key = np.asarray(array.T if strided else array).ravel(), str(len(storages))
    storages[key] = flat.tobytes()
    steps = np.empty(array.shape, array.dtype, order="F" if strided else "C").strides
    return tensor(key, array.dtype, flat.size, 0, array.shape, [s // array.itemsize for s in steps])


def write_torch(path, state, as_module=False, program=None, storages=None, compression=zipfile.ZIP_STORED):
    """A file as torch.save writes it; `program` and `storages` replace what `state` would give."""
    own = {}
    program = torch_program(state, own, as_module) if program is None else program
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("ae/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("ae/byteorder", b"little")
        for key, raw in (own if storages is None else storages).items():
            archive.writestr(f"ae/data/{key}", raw)
        archive.writestr("ae/version", b"3\n")


def write_folder(folder, files):
    """Files by name: a dict of arrays becomes safetensors, npz or torch by its suffix, anything else JSON."""
    folder = Path(folder)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(content))
        elif path.suffix == ".safetensors":
            save_file({key: np.ascontiguousarray(value) for key, value in content.items()}, path)
        elif path.suffix == ".npz":
            np.savez(path, **content)
        else:
            write_torch(path, content)
    return folder
