"""What a preference model hears is told apart by measure: a model that scores one measure alone is found out."""

import numpy as np
import pytest

from spo_jax.build_toy.people_accuracy import GROUPS, group_differences, print_heard, summarised
from spo_jax.toy.annotators import labels_of

NAMES = ("term/crisp", "term/clean", "layout/centred", "layout/large", "accuracy/shape")
PAIRS = 4000


@pytest.fixture
def differences():
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal(PAIRS) * scale for name, scale in zip(NAMES, (1, 3, 0.1, 1, 1), strict=True)}
    return drawn | {"accuracy/colour": np.zeros(PAIRS)}


def heard(difference, differences):
    scores = np.stack([difference, np.zeros(PAIRS)], axis=1)
    truth = labels_of(differences["term/crisp"] + differences["term/clean"], 0.5)
    people = labels_of(differences["term/crisp"] + differences["layout/large"], 0.5)
    return summarised(scores, {"people": people, "truth": truth}, differences)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_one_measure_is_found_out(differences, name):
    summary = heard(differences[name], differences)
    ranks = summary["rank"]
    assert ranks.pop("accuracy/colour") is None
    assert ranks.pop(name) == pytest.approx(1)
    assert max(map(abs, ranks.values())) < 0.06
    for group in GROUPS:
        value, error = (summary["alone"][group][key] for key in ("value", "error"))
        if name.startswith(f"{group}/"):
            assert value > 0.7
        else:
            assert abs(value - 0.5) < 4 * error


def test_accuracies_count_ties_by_half(differences):
    summary = heard(differences["term/crisp"] + differences["term/clean"], differences)
    ties = np.abs(differences["term/crisp"] + differences["term/clean"]) < 0.5
    assert summary["truth"]["value"] == pytest.approx(1 - ties.mean() / 2)


def test_groups_weigh_their_measures_alike(differences):
    groups = group_differences(differences)
    for name in ("term/crisp", "term/clean"):
        assert np.corrcoef(groups["term"], differences[name])[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.03)
    np.testing.assert_allclose([values.std() for values in groups.values()], 1, rtol=1e-6)


def test_tables_have_a_row_per_timestep_and_kind_of_labels(differences, capsys):
    summary = heard(differences["term/crisp"], differences)
    labels = {kind: {"rank": summary["rank"]} for kind in ("people", "truth")}
    print_heard({"labels": labels, "timesteps": {"0": summary, "501": summary}})
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("| 0 |", "| 501 |", "| scores at", "| labels by")) for line in lines) == 6
    assert " – |" in lines[-1] and " 1.00 |" in lines[-1]
