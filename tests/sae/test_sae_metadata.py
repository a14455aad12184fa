"""What readers carry beside the tensors: the name on Neuronpedia, and what the files leave open of training."""

from dataclasses import replace

import pytest
from sae_cases import CASES, SAELENS, S
from sae_writers import write_folder

from jaxdict.sae import hub, load
from jaxdict.sae.saving import save

L1 = {"training_architecture": "standard", "training_architecture_details": {"l1_coefficient": 0.8, "lp_norm": 1.0}}


def about(folder, files, **cfg):
    """The metadata of a folder, its configuration changed."""
    return load(write_folder(folder, files | {"cfg.json": files["cfg.json"] | cfg})).metadata


@pytest.mark.parametrize(
    ("cfg", "known"),
    [
        ({"metadata": {"neuronpedia_id": "gpt2-small/8-res-jb"}}, "gpt2-small/8-res-jb"),
        ({"neuronpedia_id": "gemma-2-2b/5-gemmascope-res-16k"}, "gemma-2-2b/5-gemmascope-res-16k"),
        ({"metadata": {"neuronpedia_id": None}}, None),
        ({"metadata": {"neuronpedia_id": "https://evil.example/a"}}, None),
        ({"metadata": {"neuronpedia_id": ["a/b"]}}, None),
        ({}, None),
    ],
)
def test_saelens_names_the_page_on_neuronpedia(tmp_path, cfg, known):
    found = about(tmp_path, SAELENS["standard"].files, **cfg)
    assert found.neuronpedia == known
    hash(found)


def test_a_release_in_the_table_of_sae_lens_names_it_too(tmp_path, monkeypatch):
    package = tmp_path / "sae_lens"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "pretrained_saes.yaml").write_text(
        "my-release:\n  repo_id: owner/weights\n  saes:\n  - {id: layer_0, neuronpedia: model/0-res}\n  - {id: layer_1}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [hub.neuronpedia_of(f"my-release/layer_{k}") for k in range(3)] == ["model/0-res", None, None]
    monkeypatch.setattr(
        "jaxdict.sae.formats.fetch", lambda text: write_folder(tmp_path / "sae", SAELENS["standard"].files)
    )
    assert load("my-release/layer_0").metadata.neuronpedia == "model/0-res"
    assert load("my-release/layer_1").metadata.neuronpedia is None


def test_files_that_do_not_say_how_training_scaled_carry_a_caveat(tmp_path):
    files = SAELENS["standard"].files
    told = about(tmp_path / "l1", files, metadata=L1).caveat
    assert told is not None
    assert "its lam is of other units" in told
    assert about(tmp_path / "ours", files, metadata=L1 | {"saved_by": "jaxdict"}).caveat is None
    assert about(tmp_path / "topk", SAELENS["topk"].files).caveat is None
    assert load(write_folder(tmp_path / "dl", CASES["dl_standard"].files)).metadata.caveat == told
    assert load(write_folder(tmp_path / "backup", CASES["dl_backup_lam"].files)).metadata.caveat is None  # c is stored
    assert load(write_folder(tmp_path / "dl_topk", CASES["dl_topk"].files)).metadata.caveat is None


def test_a_scale_that_is_missing_is_a_caveat_until_it_is_given(tmp_path):
    files = {
        name: content for name, content in SAELENS["standard_scaled"].files.items() if name != "activation_scaler.json"
    }
    folder = write_folder(tmp_path, files)
    with pytest.warns(UserWarning, match="no scale is stored"):
        caveat = load(folder).metadata.caveat
    assert caveat is not None
    assert "give the scale" in caveat
    assert load(folder, scale=S).metadata.caveat is None


def test_another_sae_does_not_inherit_the_page(tmp_path):
    """What is saved is another SAE than the one that Neuronpedia shows, or may be."""
    sae = load(write_folder(tmp_path / "one", SAELENS["standard"].files))
    named = replace(sae, metadata=replace(sae.metadata, neuronpedia="gpt2-small/8-res-jb"))
    assert load(save(named, tmp_path / "two")).metadata.neuronpedia is None
