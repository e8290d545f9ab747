"""Resolves a local path or a hub id to a local folder, and downloads only the files that will be read."""

import difflib
import functools
import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from absl import logging

from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.weights import store
from spo_jax.weights.messages import shorten

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = (".json", ".txt")
# Folders of commands' results; no owner on the hub has such a name.
_OUTPUTS = ("runs", "samples", "exports", "evaluations")


def resolve(
    path_or_id: str | os.PathLike,
    revision: str | None = None,
    components: Sequence[str] | None = None,
    variant: str | None = None,
    allow_patterns: Sequence[str] | None = None,
    repo_type: str = "model",
    select: Callable[[Sequence[str]], list[str]] | None = None,
    kept: Sequence[str] = (),
) -> Path:
    """Returns a local folder with the files of a model or a dataset.

    Args:
      path_or_id: an existing file or folder, which is returned unchanged, or ``owner/name`` on the hub.
      revision: branch, tag or commit on the hub; None means the main branch.
      components: sub-folders to fetch in addition to the top folder, for example ``("unet", "vae")``; None fetches all.
        From each folder come its JSON and text files, and only those weights that `store.read_state` would read.
      variant: for example ``fp16`` (see `store.choose_weights`).
      allow_patterns: fetches instead exactly the files that match one of these, for example ``("*.bin",)``.
      repo_type: ``model`` or ``dataset``; the latter requires ``allow_patterns``.
      select: chooses instead the files to fetch among the names of all files; it may raise a `UserError`.
      kept: patterns of files that, without network, have to have been fetched earlier, if the repository has them. They
        are needed with ``select``, which then cannot be called.

    Raises:
      UserError: the path does not exist, and the repository or revision does not exist or is not accessible; or there
        is no network, or ``HF_HUB_OFFLINE`` is set, and the files were not fetched earlier.
    """
    path = local(path_or_id)
    if path is not None:
        return path
    name = str(path_or_id)
    if select is None:
        select = functools.partial(_select_model, name, components, variant)
        small = _small_patterns(components)
    else:
        small = list(kept)
    try:
        return _fetch(name, revision, select, small, allow_patterns, repo_type)
    except UserError as error:
        if not Path(name).parent.is_dir():
            raise
        raise UserError(f"no such file or folder: {name}{_near(Path(name))}; nor is it on the hub: {error}") from error


def local(path_or_id: str | os.PathLike) -> Path | None:
    """Returns the path of an existing file or folder; None for what has to be an id on the hub.

    Raises:
      UserError: there is no such path, and it cannot be an id on the hub either.
    """
    path = local_path(path_or_id)
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(str(path_or_id)):
        raise UserError(f"no such file or folder: {path_or_id}{_near(path)} (an id on the hub has the form owner/name)")
    if path.parts[0] in _OUTPUTS or path.suffix in (".safetensors", *store.TORCH_SUFFIXES):
        raise UserError(f"no such file or folder: {path_or_id}{_near(path)}")
    return None


def _near(path: Path) -> str:
    """Suggests a name beside a path that does not exist."""
    try:
        beside = os.listdir(path.parent)
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, 1, 0.7)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def select_files(
    names: Sequence[str], components: Sequence[str] | None = None, variant: str | None = None
) -> list[str]:
    """Selects the files of a repository to fetch; see `resolve`.

    Args:
      names: all files of the repository, with ``/`` between folder and name.
      components: sub-folders to select in addition to the top folder; None selects all.
      variant: see `store.choose_weights`.
    """
    # Group the names by folder.
    folders: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        folders.setdefault("" if str(path.parent) == "." else str(path.parent), []).append(path.name)
    # Choose in each folder.
    selected: set[str] = set()
    for folder, files in folders.items():
        if folder and components is not None and folder not in components:
            continue
        chosen = [name for name in files if name.endswith(_SMALL_FILES)]
        for kind in ("diffusers", "transformers"):
            choice = store.choose_weights(files, kind, variant)
            chosen += store.files_of_choice(choice[0], files) if choice else []
        selected |= {f"{folder}/{name}" if folder else name for name in chosen}
    return sorted(selected)


def _fetch(
    repo_id: str,
    revision: str | None,
    select: Callable[[Sequence[str]], list[str]],
    small: Sequence[str],
    allow_patterns: Sequence[str] | None,
    repo_type: str,
) -> Path:
    # Imported here because the client reads its environment on import, and the import takes a second.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    # The client's own error derives from the error of its HTTP library, which may be requests, httpx or httpx2.
    errors = (OSError, ValueError, *HfHubHTTPError.__bases__)
    patterns = list(allow_patterns) if allow_patterns is not None else None
    # First, fetch from the hub.
    try:
        if patterns is None and not constants.HF_HUB_OFFLINE:
            patterns = _remote_patterns(repo_id, revision, select)
        if not constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(repo_id, repo_type=repo_type, revision=revision, allow_patterns=patterns))
    except RevisionNotFoundError as error:
        raise UserError(_explain(repo_id, revision, error)) from error
    except errors as error:
        failure: Exception | None = error
    else:
        failure = None
    # Offline, on purpose or not: use the files that were fetched earlier if they are complete.
    if patterns is None:
        patterns = small
    try:
        folder = snapshot_download(
            repo_id, repo_type=repo_type, revision=revision, allow_patterns=patterns, local_files_only=True
        )
    except errors:
        raise UserError(_explain(repo_id, revision, failure)) from failure
    logging.warning("using the files of %s that were fetched earlier: %s", repo_id, failure or "offline")
    return Path(folder)


def _remote_patterns(
    repo_id: str, revision: str | None, select: Callable[[Sequence[str]], list[str]]
) -> list[str]:  # fmt: skip
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo_id, revision=revision)
    names = [entry.rfilename for entry in info.siblings or ()]
    selected = select(names)
    logging.info("%s is at commit %s; %d of its %d files are needed", repo_id, info.sha, len(selected), len(names))
    # The client treats these as glob patterns, in which a bracket in a file name would start a set of characters.
    return [glob.escape(name) for name in selected]


def _select_model(
    repo_id: str, components: Sequence[str] | None, variant: str | None, names: Sequence[str]
) -> list[str]:  # fmt: skip
    selected = select_files(names, components, variant)
    if not selected:
        raise UserError(f"{repo_id} on the hub holds no model: found {shorten(names) or 'no files'}")
    return selected


def _small_patterns(components: Sequence[str] | None) -> list[str]:
    # Without the list of the repository's files it is unknown which weights are needed; the readers will notice missing
    # ones. The small files are known, and from them the client sees whether these components were fetched earlier.
    if components is None:
        return [f"*{suffix}" for suffix in _SMALL_FILES]
    return ["model_index.json", "config.json", *(f"{c}/*{suffix}" for c in components for suffix in _SMALL_FILES)]


def _explain(repo_id: str, revision: str | None, error: Exception | None) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: accept its terms on its page on the hub, then log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the hub: expected a branch, tag or commit of it"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo_id} is neither a local path nor a repository on the hub (a private one needs `hf auth login`)"
    if error is None:
        return f"HF_HUB_OFFLINE is set and {repo_id} was not fetched completely before: unset it once to fetch the rest"
    lines = str(error).strip().splitlines() or [""]
    reason = f"{type(error).__name__}: {lines[0]}"
    return (
        f"cannot fetch {repo_id} from the hub, and it was not fetched completely before: {reason}; there is no file or "
        "folder of this name here either: check the path, or check the network"
    )
