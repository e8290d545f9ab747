"""Folders as other benchmarks read them: names, metadata, and what is refused before anything is drawn."""

import dataclasses
import json
import re
import subprocess

import pytest
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.work.evaluate.layouts import check_layout, left_behind, read_metadata, write_layout
from tests.work.evaluate.made_up import made_up

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"},
]


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def geneval(tmp_path, images=4):
    source = tmp_path / "evaluation_metadata.jsonl"
    source.write_text("".join(json.dumps(entry) + "\n" for entry in GENEVAL))
    prompts = [entry["prompt"] for entry in GENEVAL]
    evaluation = made_up(tmp_path, prompts=2, images=images)
    return dataclasses.replace(evaluation, prompts=prompts, metadata=read_metadata(source))


def test_geneval_finds_a_folder_for_each_prompt_with_its_line(tmp_path):
    laid_out = write_layout(geneval(tmp_path), "geneval", tmp_path)
    base = laid_out[0]
    assert base.contestant == "base" and base.folder == tmp_path / "layouts" / "geneval" / "base"
    names = [f"{prompt:05d}/samples/{image:04d}.png" for prompt in range(2) for image in range(4)]
    assert files_below(base.folder) == sorted([*names, "00000/metadata.jsonl", "00001/metadata.jsonl"])
    assert json.loads((base.folder / "00001" / "metadata.jsonl").read_text()) == GENEVAL[1]
    original = tmp_path / "images" / "base" / "00001_2.png"
    assert (base.folder / "00001" / "samples" / "0002.png").read_bytes() == original.read_bytes()
    commands = (tmp_path / "layouts" / "geneval" / "commands.txt").read_text()
    assert commands.count("\n") == 6 and base.command in commands and "github.com/djghosh13/geneval" in commands
    assert str(base.folder) in base.command and "evaluate_images.py" in base.command
    assert [each.contestant for each in laid_out] == ["base", "spo@0.5", "spo@1", "spo@2", "theirs"]


def test_compbench_finds_the_prompt_in_the_name_of_the_file(tmp_path):
    folder = write_layout(made_up(tmp_path, prompts=2), "t2i_compbench", tmp_path)[0].folder
    names = files_below(folder)
    assert names[0] == "samples/a panda number 0_000000.png" and names[-1] == "samples/a panda number 1_000003.png"
    # As BLIP_vqa.py reads them.
    names = [name.removeprefix("samples/") for name in names]
    assert sorted(names, key=lambda name: int(name.split("_")[-1].split(".")[0])) == names
    assert {name.split("_")[0] for name in names} == {"a panda number 0", "a panda number 1"}


def test_the_commands_of_all_contestants_run_as_one_script(tmp_path):
    """A shell that has gone into a folder for one contestant has to come back for the next."""
    laid_out = write_layout(made_up(tmp_path, prompts=2), "t2i_compbench", tmp_path)
    scripts = ("BLIPvqa_eval/BLIP_vqa.py", "UniDet_eval/2D_spatial_eval.py", "CLIPScore_eval/CLIP_similarity.py")
    for script in scripts:
        (tmp_path / "clone" / script).parent.mkdir(parents=True)
        (tmp_path / "clone" / script).write_text(f"import sys; print({script!r}, sys.argv[1].partition('=')[2])")
    commands = tmp_path / "layouts" / "t2i_compbench" / "commands.txt"
    run = subprocess.run(["bash", "-e", commands], cwd=tmp_path / "clone", capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"{script} {each.folder}" for each in laid_out for script in scripts]


def test_a_layout_that_an_earlier_evaluation_left_is_known(tmp_path):
    assert left_behind([], tmp_path) == []
    write_layout(made_up(tmp_path, prompts=1), "t2i_compbench", tmp_path)
    assert left_behind(["geneval"], tmp_path) == ["t2i_compbench"] and left_behind(["t2i_compbench"], tmp_path) == []


def test_unigenbench_finds_the_number_of_the_prompt_in_its_table(tmp_path):
    source = tmp_path / "prompts.csv"
    source.write_text('index,prompt,sub_dims_en\n7,"a cat, asleep","{""a"": 1}"\n12,a dog,{}\n')
    metadata = read_metadata(source)
    assert metadata[0]["sub_dims_en"] == '{"a": 1}'
    evaluation = dataclasses.replace(made_up(tmp_path, prompts=2, images=4), metadata=metadata)
    folder = write_layout(evaluation, "unigenbench", tmp_path)[0].folder
    assert files_below(folder) == sorted(f"{index}_{image}.png" for index in (7, 12) for image in range(4))
    plain = dataclasses.replace(evaluation, metadata=())
    assert "0_0.png" in files_below(write_layout(plain, "unigenbench", tmp_path)[0].folder)


def test_hpsv2_finds_jpegs_in_folders_of_styles(tmp_path):
    evaluation = made_up(tmp_path, prompts=4, groups=["photo", "anime", "photo", "photo"])
    folder = write_layout(evaluation, "hpsv2", tmp_path)[0].folder
    assert files_below(folder) == ["anime/00000.jpg", "photo/00000.jpg", "photo/00001.jpg", "photo/00002.jpg"]
    with Image.open(folder / "photo" / "00002.jpg") as image:
        assert image.format == "JPEG" and image.size == (16, 16)


def test_nothing_of_an_earlier_layout_is_left(tmp_path):
    write_layout(made_up(tmp_path, prompts=3), "t2i_compbench", tmp_path)
    folder = write_layout(made_up(tmp_path, prompts=1), "t2i_compbench", tmp_path)[0].folder
    assert len(files_below(folder)) == 2
    assert len(list((tmp_path / "images" / "base").iterdir())) == 6  # links were removed, and no image


def test_what_cannot_be_removed_is_named(tmp_path):
    """Images that stay in the folder would be scored with the others."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "stale.png").touch()
    folder = tmp_path / "layouts" / "geneval" / "base"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"cannot remove {folder}, whose images would be scored too: .*; remove it"):
        write_layout(geneval(tmp_path), "geneval", tmp_path)


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("geneva", {}, "--layout=geneva: expected geneval, t2i_compbench, unigenbench, hpsv2"),
        ("geneval", {}, "the prompts have no tag and include"),
        ("t2i_compbench", {"prompts": ["and/or"]}, "prompt 1, 'and/or', cannot be part of a file's name"),
        ("t2i_compbench", {"prompts": ["x" * 246]}, "of at most 244 bytes"),
        ("unigenbench", {}, "and there are 2: --images-per-prompt=4"),
        ("unigenbench", {"images_per_prompt": 4, "metadata": [{"index": "../x"}]}, "does not number them"),
        ("hpsv2", {"groups": ["anime", ""]}, "the prompts have the groups 'none'"),
    ],
)
def test_prompts_of_another_benchmark_are_refused(layout, changes, message):
    given = {"metadata": [], "prompts": ["a cat"], "groups": [""], "images_per_prompt": 2} | changes
    with pytest.raises(UserError, match=re.escape(message)):
        check_layout(layout, **given)


def test_an_image_that_is_missing_is_named(tmp_path):
    evaluation = made_up(tmp_path, prompts=2)
    (tmp_path / "images" / "base" / "00001_0.png").unlink()
    with pytest.raises(UserError, match="00001_0.png: there is no such image"):
        write_layout(evaluation, "t2i_compbench", tmp_path)


def test_lists_of_nothing_but_prompts_have_no_metadata(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    assert read_metadata(tmp_path / "prompts.txt") == [] and read_metadata("toy:held_out") == []
    with pytest.raises(UserError, match="cannot read prompts from"):
        read_metadata(tmp_path / "none.txt")
