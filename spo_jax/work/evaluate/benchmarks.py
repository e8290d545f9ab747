"""How other benchmarks want their images: names of files, what lies beside them, and their own command.

What each of them reads was taken from its public code; `docs/other_benchmarks.md` names the files.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from spo_jax.core.words import excerpt, listed

_LONGEST = 255  # bytes of a file name


class Drawn(NamedTuple):
    """What a layout is made from: prompts, their groups and metadata, and images of each prompt."""

    prompts: Sequence[str]
    groups: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    images: int


class Layout(NamedTuple):
    """A layout.

    Attributes:
      problem: says what a list of prompts lacks, or returns an empty string.
      files: yields the name of each image's file, with the numbers of its prompt and image.
      texts: yields names and contents of text files.
      home: the benchmark's repository.
      command: the command to run there next, in which {folder} is the folder; a line for each kind of prompts, if the
        benchmark scores several differently. Commands of several contestants follow each other in one script.
    """

    problem: Callable[[Drawn], str]
    files: Callable[[Drawn], Iterator[tuple[str, int, int]]]
    texts: Callable[[Drawn], Iterator[tuple[str, str]]]
    home: str
    command: str


def _all(drawn: Drawn) -> Iterator[tuple[int, int]]:
    return ((prompt, image) for prompt in range(len(drawn.prompts)) for image in range(drawn.images))


def _no_texts(drawn: Drawn) -> Iterator[tuple[str, str]]:
    del drawn
    return iter(())


# GenEval: a folder for each prompt, which holds its line of evaluation_metadata.jsonl.


def _geneval_problem(drawn: Drawn) -> str:
    if len(drawn.metadata) < len(drawn.prompts) or not all(
        {"tag", "include"} <= entry.keys() for entry in drawn.metadata
    ):
        return (
            "the prompts have no tag and include: expected the lines of GenEval's prompts/evaluation_metadata.jsonl, "
            "given with --prompts"
        )
    return ""


def _geneval_files(drawn: Drawn) -> Iterator[tuple[str, int, int]]:
    return ((f"{prompt:05d}/samples/{image:04d}.png", prompt, image) for prompt, image in _all(drawn))


def _geneval_texts(drawn: Drawn) -> Iterator[tuple[str, str]]:
    for number, prompt in enumerate(drawn.prompts):
        entry = {**drawn.metadata[number], "prompt": prompt}
        yield f"{number:05d}/metadata.jsonl", json.dumps(entry, ensure_ascii=False) + "\n"


# T2I-CompBench: the prompt is read from the name of the file, up to the first underscore.


def _compbench_problem(drawn: Drawn) -> str:
    for number, prompt in enumerate(drawn.prompts, 1):
        if set("/_\0") & set(prompt) or len(f"{prompt}_000000.png".encode()) > _LONGEST:
            return (
                f"prompt {number}, {excerpt(prompt)}, cannot be part of a file's name: expected one without / and _, "
                f"and of at most {_LONGEST - len('_000000.png')} bytes, as T2I-CompBench's own are"
            )
    return ""


def _compbench_files(drawn: Drawn) -> Iterator[tuple[str, int, int]]:
    for number, (prompt, image) in enumerate(_all(drawn)):
        yield f"samples/{drawn.prompts[prompt]}_{number:06d}.png", prompt, image


# UniGenBench: the number of the prompt in its CSV file, and four images of each.


def _unigenbench_problem(drawn: Drawn) -> str:
    if drawn.images not in (0, 4):
        return f"the benchmark scores four images of each prompt, and there are {drawn.images}: --images-per-prompt=4"
    indices = [_index(drawn, number) for number in range(len(drawn.prompts))]
    if any(not index.isdecimal() for index in indices) or len(set(indices)) < len(indices):
        return "the column index of the prompts does not number them: expected that of data/test_prompts_en.csv"
    return ""


def _index(drawn: Drawn, number: int) -> str:
    entry = drawn.metadata[number] if number < len(drawn.metadata) else {}
    return str(entry.get("index", number)).strip()


def _unigenbench_files(drawn: Drawn) -> Iterator[tuple[str, int, int]]:
    return ((f"{_index(drawn, prompt)}_{image}.png", prompt, image) for prompt, image in _all(drawn))


# HPSv2: a folder for each style, and one JPEG of each of its prompts.

_STYLES = ("anime", "concept-art", "paintings", "photo")


def _hpsv2_problem(drawn: Drawn) -> str:
    strange = sorted(set(drawn.groups) - set(_STYLES))
    if strange:
        found = excerpt(listed([group or "none" for group in strange]))
        return f"the prompts have the groups {found}: expected those of hpsv2-bench, {listed(_STYLES)}"
    return ""


def _hpsv2_files(drawn: Drawn) -> Iterator[tuple[str, int, int]]:
    seen: dict[str, int] = dict.fromkeys(_STYLES, 0)
    for prompt, group in enumerate(drawn.groups):
        yield f"{group}/{seen[group]:05d}.jpg", prompt, 0
        seen[group] += 1


LAYOUTS: Mapping[str, Layout] = {
    "geneval": Layout(
        _geneval_problem,
        _geneval_files,
        _geneval_texts,
        "https://github.com/djghosh13/geneval",
        "python evaluation/evaluate_images.py {folder} --outfile results.jsonl --model-path OBJECT_DETECTOR_FOLDER "
        "&& python evaluation/summary_scores.py results.jsonl",
    ),
    "t2i_compbench": Layout(
        _compbench_problem,
        _compbench_files,
        _no_texts,
        "https://github.com/Karine-Huang/T2I-CompBench",
        "(cd BLIPvqa_eval && python BLIP_vqa.py --out_dir={folder})  # prompts of colour, shape and texture\n"
        "(cd UniDet_eval && python 2D_spatial_eval.py --outpath={folder})  # of spatial relations\n"
        "(cd CLIPScore_eval && python CLIP_similarity.py --outpath={folder})  # of non-spatial relations",
    ),
    "unigenbench": Layout(
        _unigenbench_problem,
        _unigenbench_files,
        _no_texts,
        "https://github.com/CodeGoat24/UniGenBench",
        "python eval/qwenvl_72b_en_eval.py --data_path {folder} --api_url http://HOST:8080 "
        "--csv_file data/test_prompts_en.csv",
    ),
    "hpsv2": Layout(
        _hpsv2_problem,
        _hpsv2_files,
        _no_texts,
        "https://github.com/tgxs002/HPSv2",
        "python -c \"import sys, hpsv2; hpsv2.evaluate(sys.argv[1], hps_version='v2.1')\" {folder}",
    ),
}
