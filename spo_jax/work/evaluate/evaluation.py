"""The work of `spo_jax.evaluate`: draws what is missing, scores what is not scored, and writes what was found."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.memory import explaining_memory
from spo_jax.core.progress import stage
from spo_jax.core.run_files import START, run_of
from spo_jax.core.signs import SIGN_MEANINGS, image_signs
from spo_jax.core.typing import Float
from spo_jax.methods import read_settings
from spo_jax.methods.common.judged import is_judge
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.parallel.mesh import make_mesh
from spo_jax.rewards.common import total
from spo_jax.run.lock import RunLock
from spo_jax.run.versions import versions
from spo_jax.work.evaluate.compare import compare
from spo_jax.work.evaluate.digests import Digests
from spo_jax.work.evaluate.drawing import Painter, memory_advice
from spo_jax.work.evaluate.judges import Judge, read_judges, with_total
from spo_jax.work.evaluate.layouts import left_behind, write_layout
from spo_jax.work.evaluate.lineup import Entrant, Lineup, make_lineup
from spo_jax.work.evaluate.outputs import write_results
from spo_jax.work.evaluate.request import Request
from spo_jax.work.evaluate.result import Evaluation, ImagePath
from spo_jax.work.evaluate.scoring import DIVERSITY, Scorer, to_float
from spo_jax.work.evaluate.store import Store, image_key, read_pixels
from spo_jax.work.evaluate.terminal import text_table

_DIGESTS = "digests.json"
# Of what was rounded to 8 bits, nobody knows what was beyond the range.
_LOST = ("out_of_range",)
_DIVERSITY = "mean distance (1 - cosine of features) between the images of one prompt, 0 to 2"

Values = dict[str, dict[str, Float[np.ndarray, "prompts images"]]]


def evaluate(request: Request) -> tuple[Evaluation, str, list[Path]]:
    """Evaluates, after `spo_jax.evaluate.evaluate` has checked what it can without jax.

    Returns:
      What was found, a table of it for the terminal, and the files that show it.

    Raises:
      UserError: as `spo_jax.evaluate.evaluate`.
    """
    advice = functools.partial(memory_advice, request.batch, request.dtype)
    with RunLock(request.out) as lock, explaining_memory(advice):
        store = Store(request.out, request.prompts)
        mesh = make_mesh()
        digests = Digests(request.out / _DIGESTS)
        with jax.set_mesh(mesh):
            lineup = make_lineup(request, digests)
            judges = read_judges(request, lineup, mesh)
            store.begin()
            digests.save()
            Painter(request, lineup, store, lock, mesh, digests).draw()
            evaluation = _measure(request, lineup, judges, store, lock, mesh)
        comparison = compare(evaluation)
        files = write_results(comparison, request.out)
        for layout in request.layouts:
            with stage(f"writing the layout {layout}"):
                files += [laid_out.folder for laid_out in write_layout(evaluation, layout, request.out)]
        for layout in left_behind(request.layouts, request.out):
            logging.warning(
                "%s is as an earlier evaluation left it: --layout=%s lays these images out",
                request.out / "layouts" / layout,
                layout,
            )
    return evaluation, text_table(comparison), files


def _measure(
    request: Request, lineup: Lineup, judges: Sequence[Judge], store: Store, lock: RunLock, mesh: Any
) -> Evaluation:
    """Scores the images, and puts everything together."""
    paths = {entrant.entry.name: _paths(request, store, entrant) for entrant in lineup.entrants}
    files = {name: [path(*place) for place in request.places] for name, path in paths.items()}
    texts = [request.prompts[prompt] for prompt, _ in request.places]
    # Threads, because reading and hashing release Python's lock, and a finished evaluation may have 50 GB of images.
    with stage("looking at the images"), ThreadPoolExecutor() as threads:
        keys = {name: list(threads.map(image_key, listed, texts)) for name, listed in files.items()}
        signs = {entrant.entry.name: _signs(request, store, entrant, files) for entrant in lineup.entrants}
    scores = Scorer(request, lineup.kind, store, lock, mesh, files, keys).measure(judges)
    meanings = with_total(scores, judges, request.weights)
    for judge in judges:
        meanings |= judge.meanings
    # A sign was measured before values were rounded: a reward's score of the same name is of the rounded ones.
    scores = {
        name: {score: array for score, array in values.items() if score not in SIGN_MEANINGS} | signs[name]
        for name, values in scores.items()
    }
    return Evaluation(
        protocol=dataclasses.asdict(request.protocol),
        overridden=request.overridden,
        prompts=request.prompts,
        groups=request.groups,
        contestants=[entrant.contestant for entrant in lineup.entrants],
        scores=scores,
        meanings=meanings | dict(SIGN_MEANINGS) | {DIVERSITY: _DIVERSITY},
        lower_is_better=[name for judge in judges for name in judge.lower_is_better if name not in SIGN_MEANINGS],
        signs=[*SIGN_MEANINGS, DIVERSITY, *(name for judge in judges for name in judge.signs)],
        trained_on=_trained_on(lineup, judges, bool(request.weights)),
        images=paths,
        about=_about(request, lineup, mesh),
        metadata=request.metadata,
    )


def _paths(request: Request, store: Store, entrant: Entrant) -> ImagePath:
    """Returns the function from prompt and image to the file of a contestant's image."""
    name = entrant.entry.name
    if entrant.recipe is None:
        return lambda prompt, image: request.images[name][prompt][image]
    return functools.partial(store.image_file, name, entrant.recipe)


def _signs(
    request: Request, store: Store, entrant: Entrant, files: Mapping[str, Sequence[Path]]
) -> dict[str, Float[np.ndarray, "prompts images"]]:
    """Returns the signs of a contestant's images, as they were measured when these were drawn."""
    name = entrant.entry.name
    if entrant.recipe is not None:
        found = [store.signs(name, entrant.recipe, *place) for place in request.places]
    else:
        found = [_signs_of_file(file) for file in files[name]]
    shape = (len(request.prompts), request.protocol.images_per_prompt)
    known = [sign for sign in SIGN_MEANINGS if all(sign in values for values in found)]
    return {sign: np.array([values[sign] for values in found]).reshape(shape) for sign in known}


def _signs_of_file(file: Path) -> dict[str, float]:
    """Measures the signs of an image that was made elsewhere, without those that its 8 bits do not show."""
    values = image_signs(to_float(read_pixels(file))[None])
    return {sign: float(value[0]) for sign, value in values.items() if sign not in _LOST}


def _trained_on(lineup: Lineup, judges: Sequence[Judge], weighted: bool) -> dict[str, str]:
    """Returns, by name of the contestant, the scores of the judge that its run was to please, where that is known.

    A judge may be a sum of several. The total, if it is ``weighted``, holds what its terms were trained on.
    """
    found = {}
    for entrant in lineup.entrants:
        if entrant.lora is None:
            continue
        run, _ = run_of(Path(entrant.entry.source))
        file = (run if run.is_dir() else run.parent) / START
        if not file.is_file():
            continue
        try:
            settings = read_settings(read_json_object(file).get("settings"))
        except UserError as error:  # of another version, for example; the images are what they are
            logging.warning("%s: not known what %s was trained on: %s", file, entrant.entry.name, error)
            continue
        if not isinstance(settings, AdapterSettings):
            continue
        pleased = [judge for judge in judges if is_judge(judge.spec, settings)]
        if pleased:
            names = [next(iter(judge.meanings)) for judge in pleased] + ([total.NAME] if weighted else [])
            found[entrant.entry.name] = ",".join(names)
    return found


def _about(request: Request, lineup: Lineup, mesh: Any) -> dict[str, Any]:
    """Returns the facts for the record."""
    return {
        "command": request.command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": request.model,
        "kind": lineup.kind,
        "size": f"{lineup.size[0]}x{lineup.size[1]}",
        "dtype": request.dtype,
        "seed": request.protocol.seed,
        "rewards": ", ".join(request.rewards),
        "scored": "rewards see the saved 8-bit images; signs were measured before values were rounded and clipped",
        **versions(mesh),
    }
