"""Tokens of rows: with the activations, beside them or named, as numbers or as text."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdict.auditing.tokens import decoded
from jaxdict.files import open_activations
from jaxdict.files.tokens import read_tokens, row_tokens

ACTS = np.ones((2, 3, 4), np.float32)
IDS = np.array([[0, 1, 2], [2, 1, 0]])


def acts(tmp_path):
    np.save(tmp_path / "acts.npy", ACTS)
    return tmp_path / "acts.npy"


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "json"])
def test_a_file_beside_the_activations(tmp_path, kind):
    path, file = acts(tmp_path), tmp_path / f"tokens.{kind}"
    assert row_tokens(path, open_activations(path)) is None
    if kind == "json":
        file.write_text(json.dumps(IDS.tolist()))
    else:
        {
            "npy": np.save,
            "npz": lambda p, a: np.savez(p, mask=a, token_ids=a),
            "safetensors": lambda p, a: save_file({"t": a}, p),
        }[kind](file, IDS)
    assert row_tokens(path, open_activations(path)).tolist() == IDS.reshape(-1).tolist()


def test_in_a_folder_of_shards_they_are_no_shard(tmp_path):
    for k in range(2):
        np.save(tmp_path / f"part-{k}.npy", ACTS[k])
    np.save(tmp_path / "tokens.npy", IDS)
    stored = open_activations(tmp_path)
    assert stored.shape == (6, 4)
    assert row_tokens(tmp_path, stored).tolist() == IDS.reshape(-1).tolist()


def test_those_of_the_file_go_before_those_beside_and_named_ones_before_both(tmp_path):
    np.savez(tmp_path / "acts.npz", acts=ACTS, tokens=IDS + 7)
    np.save(tmp_path / "tokens.npy", IDS)
    np.save(tmp_path / "other.npy", IDS + 1)
    stored = open_activations(tmp_path / "acts.npz")
    assert row_tokens(tmp_path / "acts.npz", stored)[0] == 7
    assert row_tokens(tmp_path / "acts.npz", stored, tmp_path / "other.npy")[0] == 1


def test_tokens_that_do_not_fit(tmp_path):
    path = acts(tmp_path)
    np.save(tmp_path / "few.npy", IDS[0])
    np.save(tmp_path / "floats.npy", ACTS)
    np.savez(tmp_path / "two.npz", a=IDS, b=IDS)
    for name, words in [
        ("few.npy", "3 tokens for 6 rows"),
        ("floats.npy", "holds 0 arrays of integers or texts"),
        ("two.npz", "holds 2 arrays of integers or texts; call the one of tokens 'token_ids'"),
        ("none.npy", "no such file"),
        ("acts.csv", "no such file"),
    ]:
        with pytest.raises((ValueError, OSError), match=rf"{name}: .*{words}"):
            row_tokens(path, open_activations(path), tmp_path / name)
    (tmp_path / "ids.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"unknown kind of file '.csv'; give tokens as"):
        read_tokens(tmp_path / "ids.csv")


def test_a_shard_that_was_left_out_does_not_shift_the_others_tokens(tmp_path):
    for k in range(3):
        np.save(tmp_path / f"part-{k}.npy", ACTS[0])
    (tmp_path / "part-1.npy").write_bytes(b"")
    np.save(tmp_path / "tokens.npy", np.arange(9))
    with pytest.warns(UserWarning, match=r"part-1.npy"):
        stored = open_activations(tmp_path)
    with pytest.raises(ValueError, match=r"tokens.npy: 9 tokens for 6 rows .*shards left out: part-1.npy"):
        row_tokens(tmp_path, stored)


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="texts of tokens need tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "dog": 1, "<unk>": 2}, unk_token="<unk>"))
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_tokenizer_gives_texts(tokenizer):
    ids = IDS.reshape(-1)
    assert decoded(ids, None).tolist() == ["0", "1", "2", "2", "1", "0"]
    for name in (tokenizer, tokenizer / "tokenizer.json"):
        assert decoded(ids, str(name)).tolist() == ["the", "dog", "<unk>", "<unk>", "dog", "the"]
    assert decoded(np.array(["a", "b"]), str(tokenizer)).tolist() == ["a", "b"]
    with pytest.raises(ValueError, match=r"has 3 tokens, but the rows have token 9; is it that of the model\?"):
        decoded(np.array([1, 9]), str(tokenizer))


def test_a_tokenizer_that_is_not_there(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        OSError, match=r"tokenizer no-such/model: .*HF_HUB_OFFLINE.*or give the path of the model's tokenizer.json"
    ) as told:
        decoded(np.array([1]), "no-such/model")
    assert "\n" not in str(told.value)


def test_a_tokenizer_from_the_hubs_cache(tokenizer, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tokenizer / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tokenizer / "hub" / "models--owner--model"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots" / commit).mkdir(parents=True)
    (tokenizer / "tokenizer.json").rename(root / "snapshots" / commit / "tokenizer.json")
    assert decoded(np.array([1, 0]), "owner/model").tolist() == ["dog", "the"]
