"""The files of LAION's aesthetic predictor: where its head and its CLIP lie."""

from spo_jax.core.errors import UserError
from spo_jax.nn.clip_config import CLIP_L
from spo_jax.rewards.common.clip_files import PublishedCLIP
from spo_jax.rewards.common.preference_files import local_model
from spo_jax.weights import store
from spo_jax.weights.messages import shorten

HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"  # the copy on the hub from which TRL reads it
CLIP = PublishedCLIP("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14", CLIP_L)


def find_files(source: str) -> tuple[str, str]:
    """Returns the sources of head and CLIP.

    Args:
      source: a folder with the head and, in its ``clip/``, the CLIP; or the head, a local file or one of a hub
        repository; empty for the published one. A head without a folder ``clip`` beside it gets the published CLIP.

    Raises:
      UserError: there is no such file or folder, or not one head in the folder.
    """
    source = source or HEAD
    path = local_model(source)
    if path is None:
        if source.count("/") < 2:
            raise UserError(f"{source}: expected a file, the head of the aesthetic predictor: OWNER/NAME/FILE")
        return source, CLIP.model
    if path.is_dir():
        suffixes = (".safetensors", *store.TORCH_SUFFIXES)
        heads = sorted(entry for entry in path.iterdir() if entry.suffix in suffixes and entry.is_file())
        if len(heads) != 1:
            found = shorten([head.name for head in heads]) or "none"
            raise UserError(f"{path}: expected one file with the head of the aesthetic predictor, found {found}")
        path = heads[0]
    store.check_suffix(path)
    clip = path.parent / "clip"
    return str(path), str(clip) if clip.is_dir() else CLIP.model
