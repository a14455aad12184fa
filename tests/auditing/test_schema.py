"""The documents of every architecture are as audit.schema.json says, key by key: what a document holds is described, and what is
described it holds."""

import copy
import json
from dataclasses import replace
from importlib.resources import files

import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from audited import LAM, noisy_sae, planted, truth_sae
from schemas import closed
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app
from jaxdict.reporting import vocabulary
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import Metadata

pytestmark = pytest.mark.slow

SCHEMA = json.loads((files("jaxdict.auditing") / "audit.schema.json").read_text(encoding="utf-8"))
X = np.random.default_rng(0).normal(size=(80, 16)).astype(np.float32)


STRICT = jsonschema.Draft202012Validator(closed(SCHEMA))
PRINTED = jsonschema.Draft202012Validator(closed(SCHEMA["$defs"]["printed"]))


def complaints(document, validator=STRICT):
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]


def audited(sae, X=X, **options):
    asked = {"exact_samples": 40, "descent_steps": 0} | options
    return json.loads(json.dumps(jd.audit(sae, X, **asked).document))


@pytest.fixture(scope="module")
def of_relu():
    data, atoms, _, tokens = planted(300)
    return audited(truth_sae(atoms), data, labels=tokens, groups=np.arange(300) // 10, descent_steps=5)


def test_an_audit_under_an_l1_penalty(of_relu):
    assert complaints(of_relu) == []
    assert of_relu["schema"] == SCHEMA["properties"]["schema"]["const"] == vocabulary.SCHEMA
    assert of_relu["pairs"]
    assert of_relu["cards"]["features"]


def test_an_audit_without():
    assert complaints(audited(replace(noisy_sae(kind="topk"), metadata=Metadata(architecture="topk")))) == []


def pursuit():
    kind = Activation("matching_pursuit", k=4)
    return jd.sae.SAE(jnp.eye(16), jnp.zeros(16), jnp.eye(16), jnp.zeros(16), activation=kind)


OTHERS = {
    "jumprelu": (lambda: noisy_sae(kind="jumprelu"), {}),
    "abstopk": (lambda: noisy_sae(kind="abstopk"), {"lam": LAM}),
    "groupmax": (lambda: replace(noisy_sae(), activation=Activation("groupmax", k=4)), {}),
    "matching_pursuit": (pursuit, {}),
    "layer_norm": (lambda: noisy_sae(normalisation="layer_norm"), {}),
    "p_anneal": (lambda: replace(noisy_sae(), metadata=Metadata(architecture="PAnneal")), {}),
    "matryoshka": (lambda: replace(noisy_sae(kind="topk"), metadata=Metadata(architecture="matryoshka")), {}),
    "transcoder": (
        lambda: jd.sae.Transcoder(jnp.eye(16), jnp.zeros(16), jnp.ones((16, 2)), jnp.zeros(2), centred=False),
        {"target": X[:, :2]},
    ),
    "nothing is on": (lambda: replace(noisy_sae(), b_enc=jnp.full(24, -100.0)), {"lam": LAM}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_an_audit_of_another_architecture(name):
    make, options = OTHERS[name]
    assert complaints(audited(make(), **options)) == []


def test_what_the_schema_does_not_describe_is_noticed(of_relu):
    added = copy.deepcopy(of_relu)
    added["features"][0]["colour"] = "blue"
    assert len(complaints(added)) == 1
    assert complaints(added, jsonschema.Draft202012Validator(SCHEMA)) == []  # within a version keys may be added
    for path in (["split", "own"], ["features", 0, "histogram", "from"], ["cards", "pairs", 0, "points"], ["seconds"]):
        less = copy.deepcopy(of_relu)
        place = less
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        assert len(complaints(less)) == 1, path


def test_every_key_is_described_in_words():
    def bare(schema, path):
        if not isinstance(schema, dict):
            return []
        found = [
            f"{path}/{key}"
            for key, item in schema.get("properties", {}).items()
            if "description" not in item and "properties" not in item and "const" not in item
        ]
        inner = {**schema.get("properties", {}), **schema.get("$defs", {}), "items": schema.get("items")}
        return found + [place for key, item in inner.items() for place in bare(item, f"{path}/{key}")]

    assert bare(SCHEMA, "") == []


def test_what_the_command_line_prints(tmp_path):
    data, atoms, _, _ = planted(300)
    np.save(tmp_path / "acts.npy", data)
    jd.sae.save(jd.Dictionary(atoms.astype(np.float32), np.zeros(16, np.float32)), tmp_path / "sae", lam=LAM)
    asked = ["audit", tmp_path / "sae", tmp_path / "acts.npy", "--out", tmp_path / "report", "--exact-samples", 40]
    done = CliRunner().invoke(app, [str(word) for word in [*asked, "--steps", 0, "--json"]])
    assert done.exit_code == 0, done.output
    assert complaints(json.loads(done.stdout), PRINTED) == []
    assert complaints(json.loads((tmp_path / "report" / "audit.json").read_text())) == []
