"""The command line on real files: what `info` says, and that every verb takes what the readers take."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from sae_writers import write_torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app
from jaxdict.results import load_solution
from jaxdict.sae import Activation, Metadata, Transcoder

LAM, D = 0.15, 8


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def one_line(stderr: str) -> str:
    (line,) = stderr.strip().splitlines()
    assert line.startswith("jaxdict: error: ")
    return line


def rows(seed=0, n=240):
    rng = np.random.default_rng(seed)
    atoms = np.linalg.qr(np.random.default_rng(9).normal(size=(D, D)))[0][:5]
    on = rng.random((n, 5)) < 0.3
    return ((on * rng.uniform(0.8, 1.6, on.shape)) @ atoms + 0.01 * rng.normal(size=(n, D))).astype(np.float32), atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Activations as (document, position, d) in three shards with tokens, and an SAE."""
    folder = tmp_path_factory.mktemp("files")
    X, atoms = rows()
    (folder / "acts").mkdir()
    for k in range(3):
        part = X[80 * k : 80 * k + 80].reshape(8, 10, D)
        np.savez(folder / "acts" / f"part-{k}.npz", acts=part, token_ids=np.arange(80).reshape(8, 10) % 7)
    np.save(folder / "heads.npy", X.reshape(240, 2, D // 2))
    jd.sae.save(
        jd.Dictionary(atoms.astype(np.float32), np.zeros(D, np.float32)), folder / "sae", lam=LAM,
        metadata={"model_name": "gpt2", "hook_name": "blocks.1.attn.hook_z"},
    )  # fmt: skip
    return folder


def test_info_of_activations_says_where_the_rows_come_from(folder):
    told = json.loads(run("info", folder / "acts", "--json").stdout)
    assert told["kind"] == "activations"
    assert (told["samples"], told["features"], told["dtype"]) == (240, D, "float32")
    assert told["shards_in_order"] == ["part-0.npz", "part-1.npz", "part-2.npz"]
    assert (told["documents"], told["positions_a_document"]) == (24, 10)
    assert told["tokens"] == "in the same files"
    shown = run("info", folder / "acts")
    assert "part-0.npz, part-1.npz, part-2.npz" in shown.stdout


def test_info_reads_heads_as_it_is_told(folder):
    told = json.loads(run("info", folder / "heads.npy", "--d-in", D, "--json").stdout)
    assert (told["samples"], told["features"]) == (240, D)
    told = json.loads(run("info", folder / "heads.npy", "--json").stdout)
    assert (told["samples"], told["features"], told["documents"]) == (480, D // 2, 240)


def test_info_of_an_sae_says_what_it_is_and_what_is_not_known(folder, tmp_path):
    told = json.loads(run("info", folder / "sae", "--json").stdout)
    assert told["kind"] == "sae"
    assert (told["architecture"], told["format"], told["reads"], told["features"]) == ("standard", "saelens", D, 5)
    assert (told["model"], told["hook"], told["lam"]) == ("gpt2", "blocks.1.attn.hook_z", LAM)
    assert told["normalisation_of_the_input"] == "none"
    assert told["not_known"] == []
    sae = jd.sae.SAE(*_parts(), activation=Activation("topk", k=3))
    jd.sae.save(sae, tmp_path / "topk")
    told = json.loads(run("info", tmp_path / "topk" / "sae_weights.safetensors", "--json").stdout)
    assert told["activation"] == "topk, k = 3"
    assert told["not_known"] == ["model", "hook"]
    assert told["lam"].startswith("none")
    assert "not known" in run("info", tmp_path / "topk").stdout


def test_info_says_what_an_sae_was_trained_on_and_what_of_it_is_not_known(tmp_path):
    def told(**about):
        jd.sae.save(
            jd.sae.SAE(*_parts(), metadata=Metadata(architecture="mine", model="m", hook="h", **about)),
            tmp_path / "sae",
        )
        return json.loads(run("info", tmp_path / "sae", "--json").stdout)

    widths = told(prefixes=(2, 4), prefix_weights=(1.0, 3.0))
    assert (widths["prefixes"], widths["trained_as"], widths["not_known"]) == ([2, 4], "matryoshka_batchtopk", [])
    annealed = told(penalty="power", power=0.3)
    assert (annealed["penalty"], annealed["power"], annealed["not_known"]) == ("power", 0.3, [])
    assert annealed["lam"].startswith("none")
    assert told(trained_as="matryoshka_batchtopk")["not_known"] == ["prefixes"]
    assert told(penalty="power")["not_known"] == ["power"]


def _parts():
    return jnp.ones((D, 4)), jnp.zeros(4), jnp.ones((4, D)), jnp.zeros(D)


@pytest.mark.slow
def test_what_the_files_do_not_say_can_be_told(tmp_path):
    """A top-k SAE of dictionary_learning without its configuration, whose tensors are those of a batch top-k SAE too."""
    state = {"encoder.weight": (4, D), "encoder.bias": (4,), "decoder.weight": (D, 4), "b_dec": (D,), "threshold": ()}
    write_torch(tmp_path / "ae.pt", {name: np.ones(shape, np.float32) for name, shape in state.items()})
    assert "give k= for the first" in one_line(run("info", tmp_path / "ae.pt").stderr)
    for options, kind in [(("--k", 2), "topk, k = 2"), (("--threshold", 0.5, "--scale", 2), "jumprelu")]:
        told = json.loads(run("info", tmp_path / "ae.pt", *options, "--json").stdout)
        assert told["activation"] == kind
        assert told["decoder_norms"]["median"] == pytest.approx(D**0.5 / (2 if "--scale" in options else 1))
        np.save(tmp_path / "acts.npy", rows()[0])
        done = run("audit", tmp_path / "ae.pt", tmp_path / "acts.npy", "--out", tmp_path / "out", *options, *AUDIT)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["measures"]["l0"] <= (2 if "--k" in options else 4)


def test_info_of_a_release_lists_it(folder, tmp_path):
    for layer in (0, 1):
        jd.sae.save(jd.sae.SAE(*_parts()), tmp_path / f"layer_{layer}")
    told = run("info", tmp_path)
    assert told.exit_code == 2
    assert "holds 2 folders of weights ('layer_0', 'layer_1'); give the one to read" in one_line(told.stderr)


AUDIT = ("--exact-samples", 100, "--steps", 0, "--json")


@pytest.mark.slow
def test_an_audit_takes_documents_and_tokens_from_the_files(folder, tmp_path):
    done = run("audit", folder / "sae", folder / "acts", "--out", tmp_path, *AUDIT)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "audit.json").read_text())
    assert document["split"]["documents"] == 24
    assert document["data"]["labelled"] is True
    assert document["data"]["shards"] == ["part-0.npz", "part-1.npz", "part-2.npz"]
    assert document["data"]["left_out"] == []


@pytest.mark.slow
def test_an_audit_flattens_heads_as_the_sae_reads_them(folder, tmp_path):
    whole = tmp_path / "whole.npy"
    np.save(whole, np.load(folder / "heads.npy").reshape(240, D))
    verdicts = []
    for acts in (folder / "heads.npy", whole):
        done = run("audit", folder / "sae", acts, "--out", tmp_path / "out", *AUDIT)
        assert done.exit_code == 0, done.output
        verdicts.append(json.loads(done.stdout)["measures"])
    assert verdicts[0] == verdicts[1]
    np.save(tmp_path / "odd.npy", np.ones((20, 3, 4), np.float32))
    wrong = run("audit", folder / "sae", tmp_path / "odd.npy", "--out", tmp_path / "out")
    assert "rows of 4 or 12 numbers, not of 8" in one_line(wrong.stderr)


@pytest.mark.slow
def test_an_audit_goes_on_without_a_damaged_shard_and_names_it(folder, tmp_path):
    acts = tmp_path / "acts"
    acts.mkdir()
    for k in range(3):
        (acts / f"part-{k}.npz").write_bytes((folder / "acts" / f"part-{k}.npz").read_bytes())
    (acts / "part-1.npz").write_bytes((acts / "part-1.npz").read_bytes()[:200])
    done = run("audit", folder / "sae", acts, "--out", tmp_path / "out", *AUDIT)
    assert done.exit_code == 0, done.output
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("jaxdict: warning: ")
    assert "part-1.npz" in line
    data = json.loads((tmp_path / "out" / "audit.json").read_text())["data"]
    assert (data["rows"], data["left_out"], data["shards"]) == (160, ["part-1.npz"], ["part-0.npz", "part-2.npz"])
    told = json.loads(run("info", acts, "--json").stdout)
    assert told["left_out"] == ["part-1.npz"]


@pytest.mark.slow
def test_an_audit_takes_the_column_of_its_hook_and_shows_tokens_as_text(folder, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="texts of tokens need tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"alpha": 0, "beta": 1}, unk_token="beta"))
    made.save(str(tmp_path / "tokenizer.json"))
    X, _ = rows()
    np.savez(tmp_path / "two.npz", **{"blocks.1.attn.hook_z": X, "blocks.2.attn.hook_z": 0 * X})
    np.save(tmp_path / "ids.npy", np.arange(240) % 2)
    options = ("--tokens", tmp_path / "ids.npy", "--tokenizer", tmp_path / "tokenizer.json", "--out", tmp_path / "out")
    done = run("audit", folder / "sae", tmp_path / "two.npz", *options, *AUDIT)
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert {text for feature in document["features"] for text in feature["label"].split(", ")} <= {"alpha", "beta"}
    assert done.stderr == ""


def test_tokens_and_labels_cannot_both_be_shown(folder, tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(["a"] * 240))
    for extra, words in [
        (("--labels", tmp_path / "labels.json", "--tokenizer", "gpt2"), "--labels are shown as they are"),
        (("--tokens", tmp_path / "none.npy"), "none.npy: no such file"),
        (("--target-key", "a"), "give --target too"),
        (("--target", folder / "acts"), "leave target out"),
    ]:
        done = run("audit", folder / "sae", folder / "acts", "--out", tmp_path / "out", *extra)
        assert done.exit_code == 2, done.output
        assert words in one_line(done.stderr)
    done = run("audit", folder / "sae", folder / "heads.npy", "--out", tmp_path / "out", "--tokenizer", "gpt2")
    assert "has no tokens with it or beside it; name their file by --tokens" in one_line(done.stderr)


@pytest.mark.slow
def test_a_transcoder_is_audited_with_its_target(folder, tmp_path):
    X, atoms = rows()
    W_enc = np.asarray(atoms.T, np.float32)
    wide = np.concatenate([atoms, np.ones((5, 1))], axis=1).astype(np.float32)
    sae = Transcoder(
        W_enc, np.zeros(5, np.float32), wide, np.zeros(D + 1, np.float32), centred=False, metadata=Metadata()
    )
    config = {
        "architecture": "transcoder",
        "d_in": D,
        "d_out": D + 1,
        "d_sae": 5,
        "metadata": {"hook_name": "blocks.1.ln2"},
    }
    write_saelens(tmp_path / "sae", config, sae)
    np.save(tmp_path / "target.npy", np.asarray(sae(X)))
    without = run("audit", tmp_path / "sae", folder / "acts", "--out", tmp_path / "out")
    assert "give them as target (--target)" in one_line(without.stderr)
    options = ("--target", tmp_path / "target.npy", "--out", tmp_path / "out", "--lam", 0.1, *AUDIT)
    done = run("audit", tmp_path / "sae", folder / "acts", *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["measures"]["explained_variance"] == pytest.approx(1, abs=1e-6)
    told = json.loads(run("info", tmp_path / "sae", "--json").stdout)
    assert (told["reads"], told["predicts"], told["hook"]) == (D, D + 1, "blocks.1.ln2")


def write_saelens(folder, config, sae):
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(config))
    parts = {name: np.ascontiguousarray(getattr(sae, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    save_file(parts, folder / "sae_weights.safetensors")


@pytest.mark.slow
def test_a_fit_of_heads_and_its_certificate(folder, tmp_path):
    options = ("--atoms", 5, "--lam", LAM, "--max-steps", 3, "--d-in", D, "--json")
    done = run("fit", folder / "heads.npy", "--out", tmp_path, *options)
    assert done.exit_code in (0, 1), done.output
    assert json.loads(done.stdout)["shards"] == []
    assert load_solution(tmp_path).dictionary.atoms.shape == (5, D)
    again = run("certify", tmp_path, folder / "heads.npy", "--tol", 1e9, "--json")
    assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_a_stream_of_batches_in_shards(folder, tmp_path):
    options = ("--atoms", 5, "--lam", LAM, "--json", "--stream", "--passes", 1, "--float32")
    done = run("fit", folder / "acts", "--out", tmp_path, *options)
    assert done.exit_code in (0, 1), done.output
    assert json.loads(done.stdout)["shards"] == ["part-0.npz", "part-1.npz", "part-2.npz"]
    assert load_solution(tmp_path).dictionary.atoms.shape == (5, D)
