"""Rewards that are one file of a repository on the hub: where the file is, and what is fetched with it; no jax here."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.rewards.common.preference_files import local_model
from spo_jax.weights import hub, store
from spo_jax.weights.kinds import describe


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file of weights as its authors publish it.

    Attributes:
      repository: id on the hub.
      name: name of the file.
      what: what it holds, for messages, such as ``HPS v2``.
      beside: names of small files that are fetched with it where a repository has them.
    """

    repository: str
    name: str
    what: str
    beside: tuple[str, ...] = ()


def local_file(source: str, published: PublishedFile) -> Path | None:
    """Returns the file of a source that is here; None for what has to be on the hub.

    Args:
      source: folder, file, hub id, or one file of a hub repository; empty for the published one.
      published: the published file, whose name is looked for in a folder.

    Raises:
      UserError: there is no such path, or it is something else.
    """
    path = local_model(source or published.repository)
    if path is None:
        return None
    if path.is_dir():
        if not (path / published.name).is_file():
            raise UserError(f"{path} is {describe(path)}: expected a folder with {published.name}")
        path = path / published.name
    store.check_suffix(path)
    return path


def find_file(source: str, published: PublishedFile) -> Path:
    """Returns the file of a source, fetched if it is on the hub.

    Args:
      source: as in `local_file`.
      published: as in `local_file`.

    Raises:
      UserError: the file is missing, or something else.
    """
    path = local_file(source, published)
    if path is not None:
        return path
    owner, name, *file = (source or published.repository).split("/")
    wanted = file[0] if file else published.name
    folder = hub.resolve(f"{owner}/{name}", allow_patterns=(wanted, *published.beside))
    if not (folder / wanted).is_file():
        raise UserError(f"{owner}/{name} on the hub has no file {wanted}: expected the weights of {published.what}")
    return folder / wanted


def fetch_tokenizer(model: Path, repository: str, patterns: Sequence[str], expected: str) -> Path:
    """Fetches the published tokenizer of a model that has none beside it.

    Args:
      model: folder or file of the model.
      repository: hub id of the tokenizer.
      patterns: patterns of its files.
      expected: which files would be a tokenizer beside the model, for the message.

    Raises:
      UserError: it is not on the hub either, or cannot be fetched.
    """
    try:
        return hub.resolve(repository, allow_patterns=patterns)
    except UserError as error:
        where = f"{model} has" if model.is_dir() else f"beside {model} is"
        raise UserError(f"{where} no tokenizer ({expected}), so the published one is fetched: {error}") from error
