"""Protocols are read strictly, and their prompts are theirs."""

import json

import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.protocol import FOLDER, load_protocol, load_protocol_prompts, protocol_names

OWN = {"about": "Ours.", "source": "us", "prompts": "list.json"}


@pytest.mark.parametrize("name", protocol_names())
def test_every_protocol_says_what_it_is_and_where_its_prompts_are(name):
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.about.endswith(".")
    assert protocol.fetch or protocol.prompts.startswith("toy:")
    assert name == "toy" or (protocol.verified and protocol.unverified)
    assert json.loads((FOLDER / f"{name}.json").read_text())["prompts"] == protocol.prompts


def test_guidance_is_that_of_the_contestant():
    lpo = load_protocol("lpo")
    assert [lpo.guidance_for("sd", name) for name in ("base", "DPO", "spo", "lpo")] == [7.5, 7.5, 5, 5]
    assert [lpo.guidance_for("sdxl", name) for name in ("base", "dpo", "lpo")] == [5, 5, 5]
    assert [load_protocol("parti").guidance_for(kind, "base") for kind in ("sd", "sdxl")] == [7.5, 5]


def test_a_file_of_ones_own_is_a_protocol(tmp_path):
    (tmp_path / "ours.json").write_text(json.dumps(OWN | {"steps": 7, "guidance": 3, "size": 256, "notes": ["a"]}))
    protocol = load_protocol(tmp_path / "ours.json")
    assert (protocol.name, protocol.steps, protocol.guidance, protocol.size) == ("ours", 7, 3.0, 256)
    assert protocol.notes == ("a",) and protocol.statistic == "mean"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stepps": 3}, "ours.json: stepps is not a field of Protocol: did you mean steps?"),
        ({"name": "x"}, "ours.json: name is not a field: a protocol has the name of its file"),
        ({"about": None}, "ours.json: about = None: expected str"),
        ({"about": " "}, "ours.json: about = ' ': expected a line of text"),
        ({"steps": 2.5}, "ours.json: steps = 2.5: expected int"),
        ({"steps": 0}, "ours.json: steps = 0: expected a number from 1 to 1000"),
        ({"size": 0}, "ours.json: size = 0: expected a number from 1 to 8192"),
        ({"images_per_prompt": 0}, "ours.json: images_per_prompt = 0: expected"),
        ({"solver": "dpm"}, "ours.json: solver = 'dpm': expected 'ddim' or 'euler' or 'dpm\\+\\+'"),
        ({"statistic": "mode"}, "ours.json: statistic = 'mode': expected 'mean' or 'median'"),
        ({"seed_rule": "none"}, "ours.json: seed_rule = 'none': expected 'per_image' or 'same'"),
        ({"guidance_of": [7.5]}, "ours.json: guidance_of = .7.5.: expected an object such as"),
        ({"guidance_of": {"sd": 7.5}}, "ours.json: guidance_of = .*: expected an object such as"),
        ({"guidance_of": {"sd15": {}}}, "ours.json: guidance_of.sd15 is not a kind of model: expected sd or sdxl"),
        ({"guidance_of": {"sd": {"base": "7"}}}, "ours.json: guidance_of.sd.base = '7': expected a number from"),
        ({"fetch": "owner/name"}, "ours.json: fetch = 'owner/name': expected an object with sources"),
        ({"fetch": {"sources": {}}}, "ours.json: fetch.sources = {}: expected an object"),
        ({"fetch": {"sources": {"": "a"}, "spilt": "b"}}, "ours.json: fetch.spilt is not a field of Fetch: did you"),
    ],
)
def test_what_a_protocol_cannot_be_is_refused(tmp_path, fields, message):
    (tmp_path / "ours.json").write_text(json.dumps(OWN | fields))
    with pytest.raises(UserError, match=message):
        load_protocol(tmp_path / "ours.json")


def test_names_and_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--protocol=sop: expected .*, spo, toy, or a .json file \(did you mean spo"):
        load_protocol("sop")
    with pytest.raises(UserError, match="none.json: there is no such file"):
        load_protocol(tmp_path / "none.json")
    (tmp_path / "spo.json").write_text(json.dumps(OWN))
    with pytest.raises(UserError, match="spo.json has the name of a protocol of the package"):
        load_protocol(tmp_path / "spo.json")
    (tmp_path / "ours.json").write_text('{"about": "Ours."}')
    with pytest.raises(UserError, match="ours.json: source, prompts is missing"):
        load_protocol(tmp_path / "ours.json")


def test_prompts_keep_their_groups(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([{"prompt": "a", "group": "photo"}, "b"]))
    (tmp_path / "ours.json").write_text(json.dumps(OWN | {"prompts": str(tmp_path / "list.json"), "count": 2}))
    protocol = load_protocol(tmp_path / "ours.json")
    assert load_protocol_prompts(protocol) == (["a", "b"], ["photo", ""])
    assert load_protocol_prompts(protocol, "toy:held_out") == load_protocol_prompts(load_protocol("toy"))


def test_missing_prompts_and_another_number_of_them_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spo = load_protocol("spo")
    command = "python -m spo_jax.prepare --dataset=prompts --protocol=spo --data-dir=data/prompts, or name a list with"
    with pytest.raises(UserError, match=f"fetch them with {command}"):
        load_protocol_prompts(spo)
    (tmp_path / "data" / "prompts").mkdir(parents=True)
    (tmp_path / spo.prompts).write_text('["a", "b"]')
    with pytest.raises(UserError, match="has 2 prompts, and protocol spo has 500: .*--prompts=data/prompts/valid"):
        load_protocol_prompts(spo)
    assert load_protocol_prompts(spo, spo.prompts) == (["a", "b"], ["", ""])
