"""Labels from files, thresholds from text: what is understood, and one line on what is not."""

import json

import numpy as np
import pytest

from jaxdict.auditing.labels import check_labels, read_labels
from jaxdict.auditing.sentences import MEASURES
from jaxdict.auditing.thresholds import Threshold, failures, parse_threshold


def test_labels_of_every_kind(tmp_path):
    words = ["the", "dög", '"quote"', ""]
    np.save(tmp_path / "a.npy", np.array(words))
    np.savez(tmp_path / "a.npz", tokens=np.array(words), doc=np.arange(4))
    (tmp_path / "a.json").write_text(json.dumps(words))
    (tmp_path / "b.json").write_text(json.dumps({"tokens": words}))
    np.save(tmp_path / "n.npy", np.arange(4))
    for name, key in (("a.npy", None), ("a.npz", "tokens"), ("a.json", None), ("b.json", "tokens")):
        assert read_labels(tmp_path / name, key).tolist() == words
    assert read_labels(tmp_path / "n.npy").tolist() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"the", "unknown kind"),
        ("x.json", b"{", "x.json"),
        ("x.json", b'{"a": 1}', "not a JSON list"),
        ("x.json", b"[]", "one text a row"),
        ("x.json", b"[[1], [2]]", "not a JSON list"),
        ("x.npy", b"not numpy", "x.npy"),
        ("x.npz", b"PK not a zip", "x.npz"),
    ],
)
def test_files_that_hold_no_labels(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / name)


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array(["a", None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="plain numpy array"):
        read_labels(tmp_path / "o.npy")


def test_labels_must_be_chosen_and_fit(tmp_path):
    np.savez(tmp_path / "a.npz", tokens=np.array(["a"]), doc=np.arange(4))
    with pytest.raises(ValueError, match="doc"):
        read_labels(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="no array 'x'"):
        read_labels(tmp_path / "a.npz", "x")
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "none.npy")
    with pytest.raises(ValueError, match="5 rows"):
        check_labels(["a"] * 4, 5)


@pytest.mark.parametrize(
    ("text", "value", "fails"),
    [
        ("l0<3", 2.0, True), ("l0<3", 3.0, False), ("l0 <= 3", 3.0, True), ("l0>3", 3.5, True), ("l0>3", 3.0, False),
        ("l0>=3", 3.0, True), ("l0==3", 3.0, True), ("l0==3", 3.1, False), ("l0<1e-3", 1e-4, True),
        ("l0<3", None, True), ("l0>3", float("nan"), True),
    ],
)  # fmt: skip
def test_thresholds(text, value, fails):
    assert bool(failures([parse_threshold(text, MEASURES)], {"l0": value})) == fails


@pytest.mark.parametrize("text", ["l0", "l0 is 3", "loss<3", "l0<three", "l0<nan", "<3", "l0=3"])
def test_thresholds_that_are_not_understood(text):
    with pytest.raises(ValueError, match="--fail-on"):
        parse_threshold(text, MEASURES)


def test_a_threshold_reads_back():
    assert str(Threshold("l0", "<=", 3.5)) == "l0<=3.5"
    assert parse_threshold("l0<=3.5", ["l0"]) == Threshold("l0", "<=", 3.5)
