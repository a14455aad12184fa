"""The README's way from a model to an audit, on a tiny transformer with random weights, where torch and transformers are there."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app

README = Path(__file__).parent.parent / "README.md"
WORDS = ["the", "dog", "saw", "a", "cat", "and", "the", "cat", "saw", "a", "dog"]


def recipe() -> str:
    """The code between the README's mark and the end of its block."""
    return re.search(r"<!-- recipe: [^\n]*-->\n```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)


def tiny_model(folder):
    """GPT-2 with two layers of width 16 and a tokenizer of seven words, as `save_pretrained` writes them."""
    tokenizers, transformers = (
        pytest.importorskip("tokenizers"),
        pytest.importorskip("transformers", reason="needs transformers"),
    )
    vocabulary = {word: k for k, word in enumerate(["<unk>", *sorted(set(WORDS))])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>").save_pretrained(folder)
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 8, "vocab_size": len(vocabulary)}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
    return folder


def test_the_recipe_compiles():
    compile(recipe(), "README.md", "exec")


def test_the_recipe_ends_in_an_audit_with_words(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the recipe runs a model of torch")
    model = tiny_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text(" ".join(WORDS * 20))
    code = recipe().replace('name, layer, context = "gpt2", 8, 128', f"name, layer, context = {str(model)!r}, 1, 8")
    exec(code, {})
    sae = jd.sae.tied_sae(jd.Dictionary(jnp.eye(16), jnp.zeros(16)), 0.1)
    jd.sae.save(sae, tmp_path / "sae", metadata={"hook_name": "blocks.1.hook_resid_pre"})
    arguments = ["audit", "sae", "acts.pt", "--tokenizer", str(model), "--steps", "0", "--out", "report"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert document["data"]["rows"] == 11 * 20 // 8 * 8
    assert document["split"]["documents"] == 11 * 20 // 8
    assert any(word in json.dumps(document["features"]) for word in set(WORDS))
    assert np.isfinite(document["split"]["own"])
