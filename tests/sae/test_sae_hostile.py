"""Damaged and hostile files: one line naming file and field, nothing executed, no memory beyond the file's own size."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from sae_cases import CASES, SAELENS, D, N, pick
from sae_writers import call, dictionary, tensor, text, torch_program, tuple_of, write_folder, write_torch

from jaxdict.sae import load

FOUR = ("W_enc", "b_enc", "W_dec", "b_dec")
MEMORY_LIMIT = 2**24  # bytes; the files here are a few kilobytes, or honest about being larger


def refused(path, *words, **options):
    """The message of a refusal, having checked that it is one line, names the file, and that memory stayed small."""
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, OSError)) as caught:
            load(path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 1000
    assert peak < MEMORY_LIMIT
    for word in words:
        assert word in message, f"{word!r} not in {message!r}"
    return message


def saelens_folder(tmp_path, **tensors):
    files = SAELENS["standard"].files
    weights = files["sae_weights.safetensors"] | tensors
    return write_folder(tmp_path, files | {"sae_weights.safetensors": weights})


def safetensors_file(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def spec(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_missing_path_and_folders_without_weights(tmp_path):
    refused(tmp_path / "nowhere", "no such file or folder")
    refused(tmp_path, "holds no weights file", "found nothing")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "trainer_state.pt").write_bytes(b"x")
    refused(tmp_path, "'notes.txt', 'trainer_state.pt'")
    for name in ("a.pt", "b.pt"):
        write_torch(tmp_path / name, {})
    refused(tmp_path, "several weights files", "'a.pt', 'b.pt'")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\x00" * 100, b"\x89PNG\r\n\x1a\n" + b"0" * 50, b"#!/bin/sh\nrm -rf /\n"]
)
def test_wrong_magic(content, tmp_path):
    (tmp_path / "ae.pt").write_bytes(content)
    refused(tmp_path / "ae.pt", "which is not safetensors, npz or torch zip", "known formats: openai, ")


@pytest.mark.parametrize("name", ["standard", "dl_topk", "gemma_scope"])
def test_truncated_anywhere(name, tmp_path):
    folder = write_folder(tmp_path, CASES[name].files)
    path = next(p for p in folder.iterdir() if p.name in ("sae_weights.safetensors", "ae.pt", "params.npz"))
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        refused(path)


def test_wrong_key_names(tmp_path):
    write_folder(tmp_path, {"sae_weights.safetensors": {"weight": np.ones((3, 4), np.float32)}, "cfg.json": {}})
    refused(tmp_path / "sae_weights.safetensors", "no known SAE format (openai, ", "its tensors: 'weight'")
    refused(tmp_path / "sae_weights.safetensors", "tensor 'W_dec' is missing; found 'weight'", format="saelens")
    with pytest.raises(ValueError, match="format='onnx' is unknown; use one of"):
        load(tmp_path, format="onnx")


def test_tensor_names_cannot_break_the_line(tmp_path):
    header = {"a\nb\x1b[31m" * 40: spec([1], 0, 4)}
    refused(safetensors_file(tmp_path / "x.safetensors", header, b"0000"), "no known SAE format")


@pytest.mark.parametrize("name", FOUR)
def test_inconsistent_shapes(name, tmp_path):
    tensor = pick(name)[name]
    folder = saelens_folder(tmp_path / "longer", **{name: np.concatenate([tensor, tensor])})
    refused(folder / "sae_weights.safetensors", "has shape", "expected (")
    refused(saelens_folder(tmp_path / "flat", **{name: tensor[None]}) / "sae_weights.safetensors", "has shape")
    refused(saelens_folder(tmp_path / "empty", **{name: tensor[:0]}) / "sae_weights.safetensors")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FOUR)
def test_weights_that_are_not_finite(name, bad, tmp_path):
    tensor = pick(name)[name].copy()
    tensor.flat[1] = bad
    folder = saelens_folder(tmp_path, **{name: tensor})
    refused(folder / "sae_weights.safetensors", f"tensor {name!r} holds 1 NaN or infinite values")


def test_folding_that_overflows(tmp_path):
    folder = write_folder(tmp_path, SAELENS["gated"].files)
    weights = SAELENS["gated"].files["sae_weights.safetensors"]
    write_folder(folder, {"sae_weights.safetensors": weights | {"r_mag": np.full(N, 1e4, np.float32)}})
    refused(folder / "sae_weights.safetensors", "'r_mag'", "overflows")
    write_folder(folder, SAELENS["standard_scaled"].files | {"activation_scaler.json": {"scaling_factor": 1e200}})
    refused(folder / "sae_weights.safetensors", "W_enc is not finite once norms and scales are folded in")


def test_zero_decoder_rows(tmp_path):
    W_dec = pick("W_dec")["W_dec"].copy()
    W_dec[[2, 7]] = 0
    folder = saelens_folder(tmp_path, W_dec=W_dec)
    refused(folder / "sae_weights.safetensors", "W_dec has 2 zero rows (first: feature 2)")
    np.testing.assert_array_equal(load(folder, zero_rows="keep").canonical().W_dec[2], 0)
    with pytest.raises(ValueError, match="zero_rows='drop' is unknown"):
        load(folder, zero_rows="drop")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1, 2]", "holds a list, expected an object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"k": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"metadata": 3}', "'metadata' is 3, expected an object"),
        (b" " * (2**22 + 1), "too large for a configuration"),
    ],
)
def test_hostile_configuration(content, words, tmp_path):
    folder = saelens_folder(tmp_path)
    (folder / "cfg.json").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        load(folder)
    assert str(folder / "cfg.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_configuration_is_asked_for(tmp_path):
    folder = saelens_folder(tmp_path)
    (folder / "cfg.json").unlink()
    refused(folder / "sae_weights.safetensors", "needs cfg.json in")


HUGE = 10**9


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"W_dec": spec([HUGE, HUGE], 0, 64)}, "takes 4000000000000000000 bytes, its offsets hold 64"),
        ({"W_dec": spec([HUGE], 0, 4 * HUGE)}, "lies outside the file"),
        ({"W_dec": spec([16], 4, 2**80)}, "lies outside the file"),
        ({"W_dec": spec([16], -64, 0)}, "lies outside the file"),
        ({"W_dec": spec([16], 64, 0)}, "lies outside the file"),
        ({"W_dec": spec([-1, -16], 0, 64)}, "expected at most 8 whole numbers >= 0"),
        ({"W_dec": spec([1.5], 0, 64)}, "expected at most 8 whole numbers >= 0"),
        ({"W_dec": spec([True], 0, 4)}, "expected at most 8 whole numbers >= 0"),
        ({"W_dec": spec([1] * 2000, 0, 4)}, "expected at most 8 whole numbers >= 0"),
        ({"W_dec": spec("16", 0, 64)}, "a shape that is not a list"),
        ({"W_dec": spec([16], 0, 64, "F31")}, "without a known dtype"),
        ({"W_dec": spec([16], 0, 64, ["F32"])}, "without a known dtype"),
        ({"W_dec": {"dtype": "F32", "shape": [16]}}, "two offsets"),
        ({"W_dec": 7}, "two offsets"),
        ([1, 2], "which is not safetensors"),
        (b"{" + b"[" * 50_000, "header is not valid JSON"),
        (b"{\xff}", "header is not valid JSON"),
    ],
)
def test_hostile_safetensors_header(header, words, tmp_path):
    refused(safetensors_file(tmp_path / "w.safetensors", header, b"\0" * 64), words)


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 10**9, 65])
def test_safetensors_header_longer_than_the_file(length, tmp_path):
    refused(
        safetensors_file(tmp_path / "w.safetensors", b"{}", b"\0" * 50, length), f"header length {length} does not fit"
    )


# --- torch files -----------------------------------------------------------------------------------------------------


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker):
    command = f"touch {marker}"
    yield from (
        pickle.dumps(Attack(os.system, command), protocol=protocol)[2 * (protocol >= 2) : -1] for protocol in (2, 4)
    )
    yield b"cos\nsystem\n" + tuple_of(text(command)) + b"R"
    yield b"(" + text(command) + b"ios\nsystem\n"
    yield b"(cos\nsystem\n" + text(command) + b"o"
    yield b"c__builtin__\neval\n" + tuple_of(text(f"__import__('os').system({command!r})")) + b"R"
    yield b"cbuiltins\nexec\n" + tuple_of(text("import os")) + b"R"
    yield b"cnumpy\nload\n" + tuple_of(text("/etc/passwd")) + b"R"
    yield b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n"
    yield b"\x8c\x02os\x8c\x06system\x93" + tuple_of(text(command)) + b"R"
    yield b"ctorch\nload\n" + tuple_of(text("x")) + b"R"
    yield dictionary({"bias": b"cos\nsystem\n" + tuple_of(text(command)) + b"R"})


def test_programs_that_call_are_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "executed"
    for number, program in enumerate(attacks(marker)):
        path = tmp_path / f"{number}.pt"
        write_torch(path, {}, program=program)
        refused(path, "only tensors are read, nothing is executed")
        assert not marker.exists()


def test_a_bare_pickle_and_an_old_torch_file_are_refused(tmp_path):
    marker = tmp_path / "executed"
    for protocol in (2, 3, 4, 5):
        (tmp_path / "ae.pt").write_bytes(pickle.dumps(Attack(os.system, f"touch {marker}"), protocol=protocol))
        refused(tmp_path / "ae.pt", "a bare pickle (old torch format)")
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2))
    refused(tmp_path / "ae.pt", "a bare pickle (old torch format)")
    assert not marker.exists()


def test_a_pickle_hidden_in_npz(tmp_path):
    marker = tmp_path / "executed"
    np.savez(
        tmp_path / "params.npz",
        **pick("W_enc", "b_enc", "b_dec", "threshold"),
        W_dec=np.array([Attack(os.system, f"touch {marker}")]),
    )
    refused(tmp_path / "params.npz", "array 'W_dec' has dtype 'O'")
    assert not marker.exists()


ORDERED = call("collections.OrderedDict")
GLOBAL = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"}",
        b"0",
        b"R",
        b"u",
        b"h\x07",
        b"t",
        b"Nq\x01r\xff\xff\xff\x7f" * 50,  # a memo index that makes pickle allocate 16 GiB
        b"N" + b"\x85" * 200_000,  # a tuple nested so deep that hashing it overflows the C stack
        b"}N" + b"\x85" * 200_000 + b"Ns",
        b"}q\x00" + text("self") + b"h\x00s",  # a dictionary that contains itself
        b"\x8e" + struct.pack("<Q", 2**60),
        b"\x96" + struct.pack("<Q", 2**40) + b"x",
        b"\x8d" + struct.pack("<Q", 2**40) + b"x",
        b"X" + struct.pack("<I", 2**31) + b"x",
        b"\x8b" + struct.pack("<i", 2**30) + b"1",
        GLOBAL + b"}b",
        GLOBAL + tuple_of() + b"R",
        GLOBAL + tuple_of(b"N", b"N", b"N", b"N") + b"R",
        ORDERED + b"N\x86",
        b"ccollections\nOrderedDict\n" + tuple_of(b"]") + b"R",
        b"ctorch\nFloatStorage\n" + tuple_of(text("9")) + b"R",
        text("storage") + b"Q",
        tuple_of(text("storage"), GLOBAL, text("0"), text("cpu"), b"K\x04") + b"Q",
        b"]" + b"N" + b"a",
        b"}Ns",
        b"}(K\x01K\x02K\x03u",
        b"}" + text("a") + b"}q\x01" + b"h\x01" * 3 + b"s",
        b"\x80\x09}",
        b"\x82\x01",
        b"I99999999999\n",
        b"L" + b"9" * 5000 + b"L\n",
        b"}" * 100_000,
    ],
)
def test_programs_that_are_broken_or_wasteful(program, tmp_path):
    write_torch(tmp_path / "ae.pt", {}, program=program)
    refused(tmp_path / "ae.pt")


def test_program_longer_than_any_state(tmp_path):
    write_torch(tmp_path / "ae.pt", {}, program=b"}" * (2**20 + 1))
    refused(tmp_path / "ae.pt", "member 'ae/data.pkl' claims")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (("0", "f4", HUGE, 0, [HUGE], [1]), "has 64 bytes, expected 4000000000"),
        (("0", "f4", 16, 0, [HUGE, HUGE], [1, 1]), "does not fit its storage of 16 numbers"),
        (("0", "f4", 16, 0, [HUGE], [0]), "does not fit its storage of 16 numbers"),
        (("0", "f4", 16, 0, [4, 4], [5, 1]), "does not fit its storage of 16 numbers"),
        (("0", "f4", 16, 1, [4, 4], [4, 1]), "does not fit its storage of 16 numbers"),
        (("0", "f4", 16, -4, [4], [1]), "strides or an offset that do not fit"),
        (("0", "f4", 16, 8, [4], [-1]), "strides or an offset that do not fit"),
        (("0", "f4", 16, 0, [4, 4], [4]), "strides or an offset that do not fit"),
        (("0", "f4", 16, 0, [-4, -4], [4, 1]), "whole numbers >= 0"),
        (("0", "f4", -16, 0, [4], [1]), "not a storage"),
        (("0", "f8", 16, 0, [16], [1]), "has 64 bytes, expected 128"),
        (("9", "f4", 16, 0, [16], [1]), "missing storage '9'"),
        (("../../etc/passwd", "f4", 16, 0, [16], [1]), "missing storage '../../etc/passwd'"),
    ],
)
def test_hostile_storages(numbers, words, tmp_path):
    write_torch(tmp_path / "ae.pt", {}, program=dictionary({"bias": tensor(*numbers)}), storages={"0": b"\0" * 64})
    refused(tmp_path / "ae.pt", words)


def test_zip_bombs(tmp_path):
    zeros = {"0": b"\0" * 2**27}
    program = dictionary({"bias": tensor("0", "f4", 2**25, 0, [2**25], [1])})
    write_torch(tmp_path / "ae.pt", {}, program=program, storages=zeros, compression=zipfile.ZIP_DEFLATED)
    del zeros
    refused(tmp_path / "ae.pt", "compressed or larger than the file")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**13, 2**12)})
    with zipfile.ZipFile(tmp_path / "params.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in pick("W_enc", "b_enc", "b_dec", "threshold").items():
            archive.writestr(f"{name}.npy", npy(value))
        archive.writestr("W_dec.npy", header.getvalue() + b"\0" * 2**27)
    refused(tmp_path / "params.npz", "member 'W_dec.npy' claims")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with(header):
    raw = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + b"\0" * 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy_with(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE}, {HUGE})}}"), "its member holds 64"),
        (npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -4)}"), "whole numbers >= 0"),
        (npy_with("{'descr': '|O', 'fortran_order': False, 'shape': (8,)}"), "would need pickle"),
        (npy_with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (16,)}"), "expected numbers"),
        (npy_with("__import__('os').system('true')"), "a header that cannot be read"),
        (npy_with("{'shape': 3}"), "a header that cannot be read"),
        (npy_with("(" * 5000), "a header that cannot be read"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"x" * 100, "a header of 2147483648 bytes"),
        (b"hello", "does not start like a .npy file"),
    ],
)
def test_hostile_npy_headers(content, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        for name, value in pick("W_enc", "b_enc", "b_dec", "threshold").items():
            archive.writestr(f"{name}.npy", npy(value))
        archive.writestr("W_dec.npy", content)
    refused(tmp_path / "params.npz", "W_dec", words)


def test_zip_that_is_neither_torch_nor_npz(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "model.pt", "a zip without one data.pkl is not a torch file; found 'readme.txt'")


def test_whole_models_are_refused_by_the_class_they_name(tmp_path):
    program = b"covercomplete.sae.base\nSAE\n)\x81}b"
    write_torch(tmp_path / "model.pt", {}, program=program)
    refused(tmp_path / "model.pt", "asks for 'overcomplete.sae.base SAE'")


def test_big_endian_file_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "ae.pt", "w") as archive:
        archive.writestr("ae/data.pkl", b"\x80\x02}.")
        archive.writestr("ae/byteorder", b"big")
    refused(tmp_path / "ae.pt", "'byteorder' is not little")


FUZZED = [
    "standard",
    "matching_pursuit",
    "checkpoint_scaled",
    "dl_matryoshka",
    "dl_backup",
    "sparsify",
    "gemma_scope",
    "openai_topk",
    "llama_scope",
]


def outcome(folder):
    """The message of a refusal, or nothing where an SAE came out; any other exception passes through."""
    try:
        load(folder)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FUZZED)
def test_random_damage_gives_a_sae_or_one_line(name, tmp_path):
    """Bytes flipped, cut and swapped in every file of a folder, configuration included."""
    rng = np.random.default_rng(len(name))
    folder = write_folder(tmp_path, CASES[name].files)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "sparsity.safetensors"]
    for _ in range(60):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        damaged = bytearray(whole)
        # Half of the damage goes to the headers, where it matters.
        reach = len(damaged) if rng.random() < 0.5 else min(400, len(damaged))
        for position in rng.integers(reach, size=rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.integers(len(damaged))] if rng.random() < 0.2 else damaged))
        message = outcome(folder)
        assert "\n" not in message
        assert message == "" or str(folder) in message
        path.write_bytes(whole)


def test_torch_writer_of_these_tests_writes_what_it_is_told(tmp_path):
    """The hostile files differ from this sound one only in what each test changes."""
    storages = {}
    program = torch_program(CASES["dl_standard"].files["ae.pt"], storages)
    write_torch(tmp_path / "ae.pt", {}, program=program, storages=storages)
    assert load(tmp_path).W_dec.shape == (N, D)
