"""Uploads a folder to the hub as a model's repository."""

import re
from collections.abc import Sequence
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,94}[\w]|[A-Za-z0-9]", re.ASCII)


def check_upload(repo: str) -> None:
    """Refuses an upload that cannot succeed, before anything is made for it; the network is not used.

    Raises:
      UserError: the name is none that the hub allows, there is no token, or ``HF_HUB_OFFLINE`` is set.
    """
    owner, _, name = repo.partition("/")
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)) or name.endswith(".git"):
        raise UserError(
            f"--push-to={repo}: expected USER/NAME, both of letters, digits and single -, _ or . between them"
        )
    from huggingface_hub import constants, get_token  # reads its environment on import

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push-to={repo}: HF_HUB_OFFLINE is set, so nothing is uploaded: unset it")
    if not get_token():
        raise UserError(
            f"--push-to={repo}: no token for the hub: log in with `hf auth login`, or set HF_TOKEN; it needs the right "
            "to write"
        )


def upload(folder: Path, repo: str, names: Sequence[str], message: str, private: bool = False) -> str:
    """Uploads files of a folder in one commit, to a repository that is made if it is not there.

    Args:
      folder: the folder, which stays as it is.
      repo: ``user/name``.
      names: the files to upload, relative to the folder.
      message: message of the commit.
      private: whether others must not see the repository.

    Returns:
      The address of the repository.

    Raises:
      UserError: the repository cannot be made or written; or it is there and everybody sees it, although ``private`` is
        set. The folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    # The client's own error derives from the error of its HTTP library, which may be requests, httpx or httpx2.
    errors = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        with stage(f"uploading {len(names)} files to {repo}"):
            address = api.create_repo(repo, private=private or None, exist_ok=True)
            if private and not api.model_info(repo).private:
                raise UserError(
                    f"--private: {repo} is there already, and everybody sees it: make it private in its settings on "
                    f"the hub, or choose another name; nothing was uploaded, and {folder} stays"
                )
            api.upload_folder(
                repo_id=repo, folder_path=folder, allow_patterns=_literally(names), commit_message=message
            )
    except errors as error:
        raise UserError(f"cannot upload to {repo}: {_reason(error)}; {folder} is complete and stays") from error
    return str(address)


def _literally(names: Sequence[str]) -> list[str]:
    """Escapes what the client would take for patterns."""
    return [re.sub(r"([*?\[])", r"[\1]", name) for name in names]


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not accept the token: log in again with `hf auth login`, or set another HF_TOKEN"
    if status == 403:
        return (
            "the token has no right to write there: take one with the role write, of that user or of a member of that "
            "organisation"
        )
    lines = " ".join(str(error).split()) or type(error).__name__
    if status is None and not isinstance(error, ValueError):
        return f"the hub cannot be reached ({lines}): check the network"
    return f"the hub refuses it ({lines})"
