"""The comparison of methods, with stand-ins for what trains and measures: restarts, failures, choices and words."""

import dataclasses
import math
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks.compare_methods import (
    contestants,
    documents,
    figures,
    measuring,
    plan,
    results,
    stages,
    tuning,
    verdicts,
    voting,
)
from benchmarks.compare_methods.__main__ import groups_of, judges_of
from benchmarks.compare_methods.comparison import Comparison, Labels, Tools
from benchmarks.compare_methods.training import Trained
from spo_jax.core.errors import Preempted, UserError
from spo_jax.core.files import read_json, write_json
from spo_jax.toy import ASSETS
from tests.support.commands import ROOT

PLAN = plan.Plan(budget=3840.0, trial_share=0.5, seeds=(0, 1), points=4, per_prompt=3, guard_per_prompt=2)
LABELS = Labels("people", "toy", "PAIRS", "JUDGE", {"data": "d1", "judge": "j1", "base": "b1"})
PROMPTS = 4
COSTS = {
    "programs": {
        "update": {"call": {"sampling": 60.0, "training": 0.0}, "train_batch": {"sampling": 0.0, "training": 20.0}},
    },
    "train_batches": 2,
    "unet_forward": 1.0,
    "each": {},
}  # fmt: skip
DPO, SPO = (next(one for one in contestants.CONTESTANTS if one.name == name) for name in ("diffusion_dpo", "spo"))
SCORES = (
    "aesthetic",
    "accuracy/colour",
    "accuracy/shape",
    "accuracy/all",
    "out_of_range",
    "term/crisp",
    "layout/large",
)


@dataclasses.dataclass
class World:
    """Stand-ins for what trains and measures; a run's weights are its learning rate times its batches."""

    folder: object
    calls: list = dataclasses.field(default_factory=list)
    dies_at: int = 10**9
    broken: tuple = ()

    def trained(self, name, settings, facts):
        self._call(f"train {name}")
        if settings.optimizer.learning_rate in self.broken:
            raise UserError("loss is nan")
        batches = settings.max_batches
        rows = [{"step": 0}, *({"step": n, "train_batches": 1, "seconds/x": 2.0} for n in range(1, batches + 1))]
        run = types.SimpleNamespace(rate=settings.optimizer.learning_rate, seed=settings.seed)
        return Trained(run, list(range(1, batches + 1)), rows)

    def costs(self, settings):
        self._call("costs")
        return COSTS

    def point(self, run, step):
        self._call(f"point {step}")
        gain = 0.0 if run is None else run.folder.rate * step + 0.001 * run.folder.seed
        return made_point(gain, 0)

    def share(self, run, labels):
        return 0.5 + run.folder.rate

    def _call(self, what):
        self.calls.append(what)
        if len(self.calls) >= self.dies_at:
            raise Preempted("the machine goes away")

    def compare(self, made_plan=PLAN):
        tools = Tools(self.trained, self.costs, self.point, self.share)
        return Comparison(made_plan, stages.Stages(self.folder), tools, {"base": "b1"})


def made_point(gain, seed):
    """A measurement whose aesthetic is ``gain`` above the base's, whose standard deviation is 1."""
    rng = np.random.default_rng(seed)
    spread = np.resize([-1.0, 1.0], (PROMPTS, 3))
    scores = {name: np.full((PROMPTS, 3), 0.5) for name in SCORES}
    scores["aesthetic"] = spread + gain
    guard = {name: rng.normal(gain if name == "aesthetic" else 0, 0.01, (PROMPTS, 2)) for name in SCORES}
    return {
        "scores": {name: values.tolist() for name, values in scores.items()},
        "guard": {name: values.tolist() for name, values in guard.items()},
        "diversity": [0.2] * PROMPTS,
    }


def made_entry(name, gains, works, seeds=(0, 1)):
    runs = []
    for seed in seeds:
        points = [
            {
                "step": n,
                "work": {"sampling": work / 2, "training": work / 2},
                "seconds": work / 100,
                **made_point(gain, n),
            }
            for n, (gain, work) in enumerate(zip(gains, works, strict=True), 1)
        ]
        runs.append({"seed": seed, "batches": len(gains), "ended": "", "points": points})
    trials = [{"fields": {"optimizer.learning_rate": 1e-3, "dpo.beta": 500.0}, "share": 0.6}]
    return {
        "name": name, "title": name.upper(), "source": "judge", "labels": "people", "trials": trials,
        "chosen": trials[0]["fields"], "runs": runs,
    }  # fmt: skip


BASE = made_point(0.0, 0)


# Stages


def test_a_finished_stage_is_not_made_again(tmp_path):
    made = []
    for about in ({"lr": 1}, {"lr": 1}, {"lr": 2}):
        found = stages.Stages(tmp_path).made("trials", "a", about, lambda: made.append(0) or {"value": len(made)})
    assert len(made) == 2 and found == {"value": 2}
    assert stages.Stages(tmp_path).made("trials", "a", {"lr": 1}, pytest.fail) == {"value": 1}


def test_a_failed_stage_leaves_nothing_and_is_tried_again(tmp_path):
    kept = stages.Stages(tmp_path)

    def fail():
        raise ValueError("a fault\nof two lines")

    assert kept.attempted("a", lambda: kept.made("trials", "a", {}, fail)) is None
    assert kept.failures == {"a": "ValueError: a fault of two lines"} and not list(tmp_path.rglob("*.json"))
    assert kept.attempted("a", lambda: kept.made("trials", "a", {}, lambda: 1)) == 1 and not kept.failures


def test_what_is_preempted_does_not_count_as_failed(tmp_path):
    def preempted():
        raise Preempted("saved")

    with pytest.raises(Preempted):
        stages.Stages(tmp_path).attempted("a", preempted)


# The whole, with stand-ins


def test_a_comparison_continues_wherever_it_was_killed(tmp_path):
    whole = World(tmp_path / "whole")
    expected = whole.compare().entry(SPO, LABELS)
    for death in (1, 4, len(whole.calls) - 3):
        folder = tmp_path / f"killed{death}"
        with pytest.raises(Preempted):
            World(folder, dies_at=death).compare().entry(SPO, LABELS)
        again = World(folder)
        assert again.compare().entry(SPO, LABELS) == expected
    assert len(again.calls) < len(whole.calls)
    last = World(tmp_path / "whole")
    assert last.compare().entry(SPO, LABELS) == expected
    assert {call.split()[0] for call in last.calls} == {"train"}, "runs look by themselves whether they are finished"
    assert not any("trial" in call for call in last.calls)


def test_the_trial_with_the_most_votes_is_chosen_and_a_failed_one_does_not_end_the_command(tmp_path):
    rates = sorted({fields["optimizer.learning_rate"] for fields in SPO.trials()})
    entry = World(tmp_path / "a").compare().entry(SPO, LABELS)
    assert entry["chosen"]["optimizer.learning_rate"] == rates[-1]
    world = World(tmp_path / "b", broken=(rates[-1],))
    compared = world.compare()
    entry = compared.entry(SPO, LABELS)
    assert entry["chosen"]["optimizer.learning_rate"] == rates[-2]
    assert [trial["share"] is None for trial in entry["trials"]] == [False] * 6 + [True] * 3
    assert set(compared.stages.failures) == {f"spo-people-trial{number}" for number in (7, 8, 9)}
    assert World(tmp_path / "c", broken=tuple(rates)).compare().entry(SPO, LABELS) is None


def test_runs_are_as_long_as_the_budget_and_their_work_is_what_was_trained(tmp_path):
    entry = World(tmp_path).compare().entry(SPO, LABELS)
    run = entry["runs"][0]
    # A batch is 60 of sampling and, by the trials, one of two training batches of 20 each.
    assert run["batches"] == 48 and [point["step"] for point in run["points"]] == [3, 9, 24, 48]
    assert run["points"][-1]["work"] == {
        **dict.fromkeys(run["points"][-1]["work"], 0.0),
        "sampling": 2880.0,
        "training": 960.0,
    }
    assert run["points"][-1]["seconds"] == 96.0


def test_other_data_is_another_run(tmp_path):
    World(tmp_path).compare().entry(SPO, LABELS)
    again = World(tmp_path)
    again.compare().entry(SPO, LABELS._replace(facts={**LABELS.facts, "data": "d2"}))
    assert sum("trial" in call for call in again.calls) == 9


# Contestants


def test_every_contestant_has_as_many_trials():
    for contestant in contestants.CONTESTANTS:
        assert len(contestant.trials()) == 9 and len({str(trial) for trial in contestant.trials()}) == 9
    rates = [fields["optimizer.learning_rate"] for fields in SPO.trials()]
    assert rates == [*[1e-4] * 3, *[3e-4] * 3, *[9e-4] * 3]


@pytest.mark.parametrize(
    "contestant", [*contestants.CONTESTANTS, *contestants.ABLATIONS], ids=lambda contestant: contestant.name
)
def test_the_settings_of_every_contestant_are_those_of_its_method(contestant):
    about = contestants.source_fields(contestant, "PAIRS", "JUDGE")
    assert not any("{" in str(value) for value in about.values())
    fields = contestant.trials()[-1] if contestant.variants else {}
    settings = contestants.settings_of(contestant, fields, 7, 33, about)
    assert settings.seed == 7 and settings.lora.rank == contestants.RANK and settings.lora.scale == 1
    if contestant.source == "pairs":
        assert (settings.data_dir, settings.train_steps) == ("PAIRS", 33)
    else:
        assert settings.total_batches(46) == 33
        assert (settings.spm.model == "JUDGE") == (contestant.source == "judge")
    if contestant.source == "latent judge":
        assert settings.spo.reward == "lrm:JUDGE" and settings.spo.judged == "noisy"


def test_lines_of_all_contestants_can_be_told_apart(tmp_path):
    looks = [figures.look_of(one.source, number) for number, one in enumerate(contestants.CONTESTANTS)]
    assert len({str(look) for look in looks}) == len(contestants.CONTESTANTS)


def test_an_unknown_contestant_is_refused():
    with pytest.raises(UserError, match="no contestant 'sop'; expected some of diffusion_dpo, spo"):
        contestants.chosen(contestants.CONTESTANTS, ["sop"])


def test_equal_votes_choose_the_lower_learning_rate():
    trials = [{"fields": rate, "share": share} for rate, share in ((1, None), (2, 0.6), (3, 0.6), (4, 0.5))]
    assert tuning.best_trial(trials)["fields"] == 2
    assert tuning.best_trial(trials[:1]) is None


# Levels, the guard, and words


def line(*points):
    return [{"work": work, "aesthetic": {"mean": gain}} for work, gain in points]


def test_the_work_that_reaches_a_level():
    curve = line((100, 0.2), (400, 0.6), (1600, 0.4))
    assert results.work_to_reach(curve, 0.1) == pytest.approx(50)
    assert results.work_to_reach(curve, 0.4) == pytest.approx(200), "half of the way, in logarithms"
    assert results.work_to_reach(curve, 0.6) == pytest.approx(400)
    assert results.work_to_reach(curve, 0.61) is None


def test_the_guard_chooses_by_images_that_are_not_reported():
    entry = made_entry("spo", (0.2, 0.9, 0.5), (100, 200, 300))
    assert results.guarded_best(entry["runs"][0]["points"], BASE) == 1
    points = entry["runs"][0]["points"]
    points[0]["guard"], points[1]["guard"] = points[1]["guard"], points[0]["guard"]
    assert results.guarded_best(points, BASE) == 0


def test_people_vote_for_what_they_see_and_not_for_the_truth():
    """Of a point with a better aesthetic and one with more of every term, people vote for the second, the truth not."""
    points = made_entry("spo", (0.9, 0.2), (100, 200))["runs"][0]["points"]
    for name in points[1]["guard"]:
        if name.startswith("term/"):
            points[1]["guard"][name] = (np.asarray(points[1]["guard"][name]) + 1).tolist()
    assert results.voted_best(points, BASE, "people") == 1
    assert results.voted_best(points, BASE, "exact") == 0


def test_equal_images_share_the_votes():
    measured = {name: np.ravel(values) for name, values in BASE["guard"].items()}
    assert voting.truth_votes(measured, measured) == 0.5
    assert voting.people_vote(measured, measured) == pytest.approx(0.5, abs=0.2)  # 40 votes, each with noise of its own


def test_a_curve_has_the_points_that_all_runs_have():
    runs = made_entry("spo", (0.2, 0.4, 0.6), (100, 200, 300))["runs"]
    del runs[0]["points"][0]
    assert [row["work"] for row in results.curve(runs, BASE, ["aesthetic"])] == [200, 300]
    assert [row["aesthetic"]["mean"] for row in results.curve(runs, BASE, ["aesthetic"])] == pytest.approx([0.4, 0.6])


def test_gains_are_in_deviations_of_the_base():
    found = results.summarised(made_entry("spo", (0.2, 0.9, 0.5), (100, 200, 300)), BASE)
    assert found["best"]["aesthetic"]["mean"] == pytest.approx(0.9) and found["best"]["work"]["mean"] == 200
    assert found["final"]["aesthetic"] == {"mean": pytest.approx(0.5), "error": pytest.approx(0, abs=1e-9)}
    assert found["curve"][0]["layout"]["mean"] == 0 and found["best"]["accuracy/all"]["mean"] == 0.5


@pytest.mark.parametrize(
    "gains, works, expected",
    [
        ((0.5, 0.9), (100, 150), "**Target**, with SPO: met (the best level"),
        ((0.5, 0.9), (900, 1000), "Missed: the best level of DIFFUSION_DPO with at most a fifth of its work. Met: a"),
        ((0.1, 0.4), (100, 150), "Missed: the best level of DIFFUSION_DPO with at most a fifth of its work; a best"),
    ],
)  # fmt: skip
def test_the_target_is_told_whatever_it_is(gains, works, expected):
    entries = [made_entry("diffusion_dpo", (0.2, 0.5), (500, 2000)), made_entry("spo", gains, works)]
    assert expected in verdicts.sentences(entries, BASE)[-1]


@pytest.mark.parametrize("gain", [0.0, -0.3])
def test_a_rival_that_gains_nothing_sets_no_target(gain):
    entries = [made_entry("diffusion_dpo", (gain, gain), (500, 2000)), made_entry("spo", (0.5, 0.9), (100, 150))]
    assert "there is none, because DIFFUSION_DPO itself gains nothing" in verdicts.sentences(entries, BASE)[-1]


def test_a_difference_within_noise_is_told_as_none():
    entries = [made_entry("diffusion_dpo", (0.2, 0.5), (500, 2000)), made_entry("spo", (0.1, 0.5), (100, 150))]
    told = verdicts.sentences(entries, BASE)[0]
    assert "gains as much, within noise, as DIFFUSION_DPO" in told
    assert "reaches 90 % of the best level of DIFFUSION_DPO's curve with 1/" in told


def test_the_text_has_every_table(tmp_path):
    entries = [made_entry("diffusion_dpo", (0.2, 0.5), (500, 2000)), made_entry("spo", (0.6, 0.4), (200, 150_000))]
    found = {
        "base": BASE, "plan": dataclasses.asdict(PLAN), "held_out": PROMPTS, "date": "2026-01-02T03:04:05",
        "device": {"host": "a processor"}, "versions": {}, "failures": {"ddpo-people": "no trial succeeded"},
        "judges": {"people": {"work": 123_456.0, "model": "toy_people"}, "exact": {"work": None}},
        "latent_judges": {"people": {"work": 7_654.0, "model": "toy_people"}},
        "entries": {"people": entries, "exact": []},
    }  # fmt: skip
    write_json(tmp_path / "runs" / "spo-people-seed0" / "summary.json", {"wall_seconds": 3600.0})
    stages.Stages(tmp_path).made("points", "base", {}, lambda: BASE)
    text = documents.write(tmp_path, found)
    assert "1.0 hours of computing" in text
    assert "| SPO | best | 0.2 k | 0.0 | +0.60 ± 0.00 | +0.00 ± 0.00 | 0.500 ± 0.000 | 0.200 ± 0.000 |" in text
    assert "|  | final | 150 k |" in text and "| SPO | 0.1 k | 0.2 k | 50 % | 50 % |" in text
    assert "**lr 0.001, beta 500: 0.600**" in text and "- ddpo-people: no trial succeeded" in text
    assert "worth 123 k evaluations" in text and "which LPO listens to, is worth 7.7 k (toy_people)" in text
    assert read_json(tmp_path / "results.json")["entries"]["people"][1]["best"]["aesthetic"]["mean"] == pytest.approx(
        0.6
    )
    assert (tmp_path / "compare_methods_people.svg").read_bytes().startswith(b"<?xml")
    # Into the documents, twice, beside the ablations.
    docs = tmp_path / "docs"
    docs.mkdir()
    (begin, end), other = documents.marks(documents.RESULTS), "\n\n".join(documents.marks(documents.ABLATIONS))
    (docs / "results.md").write_text(f"before\n{begin}\nold\n{end}\n{other}\nafter\n")
    ablations = {**found, "entries": {"ablations": [made_entry("full", (0.6,), (200,))]}}
    assert "What SPO's parts are worth" in documents.write(tmp_path, ablations)
    for _ in range(2):
        documents.into_documents(tmp_path, docs, found)
    assert other in (docs / "results.md").read_text()
    document = (docs / "results.md").read_text()
    assert document.startswith("before\n") and document.endswith("after\n") and "\nold\n" not in document
    assert document.count("![") == 1 and (docs / "images" / "compare_methods_people.svg").exists()
    documents.into_documents(tmp_path, docs, ablations)
    assert (docs / "results.md").read_text().count("![") == 2
    for kind in (documents.RESULTS, documents.ABLATIONS):
        documents.check(ROOT / "docs", kind)
    (docs / "results.md").write_text("nothing")
    with pytest.raises(UserError, match="has no section between"):
        documents.into_documents(tmp_path, docs, found)


def test_grain_is_no_diversity():
    rng = np.random.default_rng(0)
    flat = np.zeros((6, 32, 32, 3), np.float32)
    grain = flat + rng.normal(0, 0.2, flat.shape).astype(np.float32)
    shifted = flat + np.linspace(-0.5, 0.5, 6, dtype=np.float32)[:, None, None, None]
    assert measuring.diversity(flat, 3) == [0.0, 0.0]
    assert max(measuring.diversity(grain, 3)) < 0.1 < min(measuring.diversity(shifted, 3))


def test_the_plan_says_how_long_it_takes():
    default = plan.Plan()
    text = plan.text_of(default, [("people", contestants.CONTESTANTS)], (10, 46), tune=True)
    assert "people: 81 trials and 27 runs of diffusion_dpo, spo, gradspo" in text and " h" in text
    assert "people: 27 runs of" in plan.text_of(default, [("people", contestants.CONTESTANTS)], (10, 46), tune=False)
    assert default.steps(plan.Length(160, 10)) == [10, 30, 60, 80, 160]
    assert math.isclose(default.hours(2, 0, (10, 46)), 2 * default.hours(1, 0, (10, 46)))


def test_ablations_take_the_settings_that_the_comparison_has_chosen():
    default, short = plan.Plan(), plan.ABLATIONS
    assert short.budget * short.trial_share == default.budget * default.trial_share and short.budget < default.budget
    assert (short.seeds, short.per_prompt) == (default.seeds, default.per_prompt)
    assert short.tuning_seed == default.tuning_seed


def test_a_run_is_as_long_as_its_budget_whatever_a_batch_costs():
    assert plan.length_of(80_000, 1000) == (80, 5) and plan.length_of(1, 1000) == (1, 1)
    assert plan.length_of(80_000, 3200) == (24, 2), "and no multiple of 16"
    few = plan.length_of(5_000, 1000)
    assert few == (5, 1) and plan.Plan().steps(few) == [1, 2, 5]


# The command


def _command(*flags):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "benchmarks.compare_methods", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_a_mistake_is_one_line(tmp_path):
    done = _command("--only=sop", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2 and done.stderr.startswith("error: --only=sop: no contestant 'sop'; expected some of")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_contestants_by_labels():
    groups = dict(groups_of(False, ["spo", "ddpo"], ["people", "exact"]))
    assert {labels: [one.name for one in group] for labels, group in groups.items()} == {
        "people": ["spo", "ddpo"],
        "exact": ["spo"],
    }
    assert [labels for labels, _ in groups_of(False, ["ddpo"], ["exact", "people"])] == ["people"]
    assert [labels for labels, _ in groups_of(True, [], ["people"])] == ["ablations"]
    with pytest.raises(UserError, match="--labels=good: expected some of people, exact"):
        groups_of(False, [], ["good"])
    assert judges_of(["people=runs/a/spm", "exact=train"]) == {"people": "runs/a/spm", "exact": "train"}
    for wrong in ("runs/a/spm", "good=toy", "people="):
        with pytest.raises(UserError, match="expected LABELS=MODEL with one of people, exact"):
            judges_of([wrong])


@pytest.mark.slow
def test_the_command_at_its_smallest(tmp_path):
    """Two methods on few pairs; the second start makes nothing again."""
    data = tmp_path / "data"
    made = [sys.executable, "-m", "spo_jax.build_toy.people", f"--out={data}", "--pairs=64", "--held-out-pairs=8"]
    subprocess.run([*made, f"--earlier={ASSETS / 'pipeline'}"], cwd=ROOT, check=True, timeout=600)
    flags = [f"--out={tmp_path / 'out'}", f"--data={data}", "--only=diffusion_dpo,spo", "--labels=people", "--notune"]
    flags += ["--budget=3000", "--seeds=1", "--points=1"]
    done = _command(*flags)
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_json(tmp_path / "out" / "results.json")
    assert [entry["name"] for entry in found["entries"]["people"]] == ["diffusion_dpo", "spo"] and not found["failures"]
    for entry in found["entries"]["people"]:
        assert 1000 < entry["final"]["work"]["mean"] < 6000 and math.isfinite(entry["final"]["aesthetic"]["mean"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[prct]*/*.json")}
    assert len(files) >= 5
    again = _command(*flags)
    assert again.returncode == 0 and "batch/s" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[prct]*/*.json")} == files
