"""SAEs by their address: from the Hub's cache as the library lays it out, offline, and from lists of a repository's files."""

import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from sae_cases import SAELENS, inputs
from sae_writers import write_folder

from jaxdict.sae import hub, load

constants = pytest.importorskip("huggingface_hub.constants", reason="addresses on the Hub need huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "jbloom/GPT2-Small-SAEs-Reformatted"
LAYERS = ("blocks.2.hook_resid_pre", "blocks.10.hook_resid_pre")


def repository(home, repo=REPO, layers=LAYERS):
    """A repository in a cache, laid out as huggingface_hub does: snapshots of links to blobs."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    for layer in layers:
        folder = write_folder(root / "snapshots" / COMMIT / layer, SAELENS["standard"].files)
        for file in sorted(folder.iterdir()):
            blob = root / "blobs" / f"{layer}-{file.name}-sum"
            file.rename(blob)
            file.symlink_to(os.path.relpath(blob, folder))
    return root


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository(tmp_path)


@pytest.mark.parametrize(
    "address", [f"hf://{REPO}/{LAYERS[1]}", f"hf:/{REPO}@main/{LAYERS[1]}/", f"gpt2-small-res-jb/{LAYERS[1]}"]
)
def test_from_the_cache_without_a_network(offline, address):
    sae, x = load(address), inputs()
    np.testing.assert_allclose(sae(x), SAELENS["standard"].forward(x.astype(float))[1], atol=5e-5)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"hf://{REPO}", r"2 folders of weights \('blocks.2.hook_resid_pre', 'blocks.10.hook_resid_pre'\)"),
        (
            f"hf://{REPO}/blocks.3",
            "holds of this repository only 'blocks.2.hook_resid_pre', 'blocks.10.*HF_HUB_OFFLINE.*hf download",
        ),
        (
            "hf://someone/else/layer_3",
            r"does not hold this repository; connect .*hf download someone/else --include 'layer_3/\*'",
        ),
        ("hf://someone", "not understood; write hf://owner/repo/folder"),
        ("hf://--/..", "."),
        ("no-such-release/blocks.0", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(offline, address, words):
    with pytest.raises((ValueError, OSError), match=words) as told:
        load(address)
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_in_a_fresh_process_as_a_user_sets_it(tmp_path):
    """HF_HOME and HF_HUB_OFFLINE are read when the library is imported."""
    repository(tmp_path)
    program = """
        from jaxdict.cli import main
        import sys
        sys.argv = ["jaxdict", "info", sys.argv[1]]
        main()
    """
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    told = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), address],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for address in (f"hf://{REPO}/{LAYERS[0]}", f"hf://{REPO}/none")
    ]
    assert told[0].returncode == 0, told[0].stderr
    assert "standard" in told[0].stdout
    assert told[1].returncode == 2
    assert len(told[1].stderr.strip().splitlines()) == 1
    assert "HF_HUB_OFFLINE" in told[1].stderr


class Online:
    """A Hub that lists files and fetches those that are asked for."""

    errors = errors

    def __init__(self, root, names):
        self.root, self.names, self.asked = root, names, None

    def HfApi(self):
        return self

    def model_info(self, repo, revision=None, timeout=None):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, repo, revision=None, allow_patterns=None, **options):
        self.asked = allow_patterns
        return str(self.root)


def test_only_what_is_asked_for_is_fetched(tmp_path, monkeypatch):
    names = [f"resid/{layer}/{name}" for layer in LAYERS for name in ("sae_weights.safetensors", "cfg.json")]
    write_folder(tmp_path / "resid" / LAYERS[1], SAELENS["standard"].files)
    online = Online(tmp_path, [*names, "README.md"])
    monkeypatch.setattr(hub, "_hub", lambda: online)
    load(f"hf://owner/repo/resid/{LAYERS[1]}")
    assert sorted(online.asked) == sorted([f"resid/{LAYERS[1]}/*", f"resid/{LAYERS[1]}/*.json", "resid/*.json"])
    online.asked = None
    with pytest.raises(
        ValueError, match=r"hf://owner/repo/resid: holds 2 folders of weights \('resid/blocks.2.*give one"
    ):
        load("hf://owner/repo/resid")
    with pytest.raises(
        ValueError, match=r"hf://owner/repo/mlp: holds no weights; the repository holds 'README.md', 'resid'"
    ):
        load("hf://owner/repo/mlp")
    assert online.asked is None


def test_an_installed_table_of_releases_is_read_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "sae_lens"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "pretrained_saes.yaml").write_text(
        "first-release:\n  repo_id: a/b\n  saes:\n  - id: x\n    path: y\n"
        "# between\n"
        "my-release:\n  conversion_func: gemma_2\n\n  repo_id: owner/weights\n  saes:\n"
        "  - id: layer_0/canonical\n    path: layer_0/average_l0_105\n    l0: 105\n"
        "  - {id: layer_1, l0: 3}\n"
        "last-release:\n  repo_id: c/d\n  saes: []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert hub.is_address("my-release/layer_1")
    assert hub.parse("my-release/layer_0/canonical") == hub.Address("owner/weights", "layer_0/average_l0_105")
    assert hub.parse("my-release/layer_1").path == "layer_1"
    with pytest.raises(ValueError, match=r"no such SAE; its 2 are 'layer_0/canonical', 'layer_1': write my-release/ID"):
        hub.parse("my-release/layer_2")
    assert not hub.is_address("other-release/layer_1")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'files on the Hub need huggingface_hub: pip install "jaxdict\[hub\]"'
    ):
        load("hf://owner/repo/layer")
