"""What an SAE was trained on, as its files say: a Matryoshka's prefixes and their weights, an annealed penalty; carried on and saved."""

import json

import numpy as np
import pytest
from sae_cases import CASES, DICTIONARY_LEARNING, SAELENS, D, N
from sae_writers import write_folder

from jaxdict.sae import load, save
from jaxdict.sae.models import SAE, Metadata

MATRYOSHKA = DICTIONARY_LEARNING["dl_matryoshka"].files


def about(folder, files) -> Metadata:
    return load(write_folder(folder, files)).metadata


def with_trainer(files, **settings):
    trainer = files["config.json"]["trainer"] | settings
    return files | {"config.json": files["config.json"] | {"trainer": trainer}}


def with_training(files, architecture, **details):
    told = {"training_architecture": architecture, "training_architecture_details": details}
    return files | {"cfg.json": files["cfg.json"] | {"metadata": files["cfg.json"]["metadata"] | told}}


def test_groups_of_dictionary_learning_add_up_to_prefixes(tmp_path):
    plain = about(tmp_path / "plain", MATRYOSHKA)
    assert (plain.prefixes, plain.prefix_weights) == ((4, 12), ())
    even = about(tmp_path / "even", with_trainer(MATRYOSHKA, group_weights=[0.5, 0.5]))
    assert even.prefix_weights == ()
    uneven = with_trainer(MATRYOSHKA, group_weights=[0.25, 0.75], trainer_class="MatryoshkaBatchTopKTrainer")
    told = about(tmp_path / "uneven", uneven)
    assert (told.prefix_weights, told.trained_as) == ((0.25, 0.75), "MatryoshkaBatchTopKTrainer")


def test_widths_of_saelens_are_read_of_checkpoints_and_of_what_they_end_as(tmp_path):
    checkpoint = SAELENS["checkpoint_scaled"].files
    known = about(tmp_path / "cfg", checkpoint | {"cfg.json": checkpoint["cfg.json"] | {"matryoshka_widths": [3, 6]}})
    assert (known.architecture, known.prefixes) == ("matryoshka_batchtopk", (3, 6, N))
    assert about(tmp_path / "unknown", checkpoint).prefixes == ()
    ended = with_training(SAELENS["jumprelu"].files, "matryoshka_batchtopk", matryoshka_widths=[3, N])
    told = about(tmp_path / "ended", ended)
    assert (told.architecture, told.trained_as, told.prefixes) == ("jumprelu", "matryoshka_batchtopk", (3, N))


@pytest.mark.parametrize("widths", [[6, 3], [0, 3], [3, N + 1], [3, 3], ["a"], 7, [2.5]])
def test_widths_that_make_no_sense_are_refused_in_one_line(tmp_path, widths):
    files = with_training(SAELENS["jumprelu"].files, "matryoshka_batchtopk", matryoshka_widths=widths)
    with pytest.raises(
        ValueError, match=r"cfg.json: 'matryoshka_widths' gives prefixes .*, expected numbers that ascend from 1 to 12"
    ):
        load(write_folder(tmp_path, files))


@pytest.mark.parametrize("groups", [[4, 9], [-4, 8], [2**40, 2**40]])
def test_groups_that_make_no_sense_are_refused_in_one_line(tmp_path, groups):
    files = MATRYOSHKA | {"ae.pt": MATRYOSHKA["ae.pt"] | {"group_sizes": np.array(groups)}}
    with pytest.raises(ValueError, match=r"ae.pt: 'group_sizes' gives prefixes") as told:
        load(write_folder(tmp_path, files))
    assert "\n" not in str(told.value)


def test_penalties_that_are_not_l1(tmp_path):
    plain = DICTIONARY_LEARNING["dl_standard"].files

    def told(name, **settings):
        found = about(tmp_path / name, with_trainer(plain, trainer_class="PAnnealTrainer", **settings))
        assert found.lam is None
        return found.penalty, found.power

    assert told("sum", sparsity_function="Lp^p", p_end=0.2) == ("power", 0.2)
    assert told("norm", sparsity_function="Lp", p_end=0) == ("norm", 0.0)
    assert told("unsaid", p_end=0.2) == (None, 0.2)
    half = with_training(SAELENS["standard"].files, "standard", l1_coefficient=0.8, lp_norm=0.5)
    found = about(tmp_path / "half", half)
    assert (found.penalty, found.power, found.lam, found.trained_as) == ("norm", 0.5, None, None)
    one = about(tmp_path / "one", with_training(SAELENS["standard"].files, "standard", l1_coefficient=0.8, lp_norm=1.0))
    assert (one.penalty, one.power, one.lam) == (None, None, 0.4)


@pytest.mark.parametrize(
    "told",
    [
        {"prefixes": (3, 7, N), "prefix_weights": (1.0, 2.0, 0.5)},
        {"prefixes": (3, N)},
        {"penalty": "power", "power": 0.3},
        {"penalty": "norm", "power": 0.5},
    ],
)
def test_it_survives_saving_another_gauge_and_another_scale(tmp_path, told):
    W = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    zeros = np.zeros(N, np.float32)
    sae = SAE(W.T, zeros, W, zeros[:D], metadata=Metadata(architecture="mine", **told))
    for moved in (sae, sae.canonical(), sae.rescaled(2.0)):
        again = load(save(moved, tmp_path / "sae")).metadata
        assert {name: getattr(again, name) for name in told} == told
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]
    wanted = "matryoshka_batchtopk" if "prefixes" in told else "mine"
    assert cfg["training_architecture"] == wanted


@pytest.mark.parametrize("name", ["dl_gated", "dl_matryoshka", "gated", "topk"])
def test_a_name_that_says_more_than_the_activation_survives_saving(tmp_path, name):
    sae = load(write_folder(tmp_path / "theirs", CASES[name].files))
    again = load(save(sae, tmp_path / "ours")).metadata
    word = name.removeprefix("dl_")
    assert word in f"{again.architecture} {again.trained_as}".lower()
