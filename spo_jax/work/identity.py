"""What decides on the scores of a reward besides image and prompt, so that kept scores are not taken for other ones."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import jax

from spo_jax.rewards import parse_spec
from spo_jax.rewards.base import Context, Reward
from spo_jax.rewards.sum import read_terms
from spo_jax.run.versions import library_versions
from spo_jax.weights.digest import weights_digest
from spo_jax.work.evaluate.lineup import LIBRARIES


def reward_identity(spec: str, reward: Reward, field: str) -> dict[str, Any]:
    """Returns everything that decides on a reward's scores besides image and prompt, as JSON.

    Args:
      spec: its name.
      reward: the reward.
      field: flag that names it, for messages.
    """
    params = getattr(reward, "params", {})
    describe = getattr(reward, "describe", dict)
    versions = library_versions()
    return {
        "spec": spec,
        "weights": weights_digest(params) if params else "",
        "read": dict(describe()),  # config and tokenizer, without which the same weights give other scores
        "version": getattr(reward, "version", ""),
        "code": _code_digest(spec, field),
        "platform": jax.default_backend(),  # as for images, see `spo_jax.work.evaluate.lineup`
        "versions": {name: versions[name] for name in LIBRARIES},
    }


def _code_digest(spec: str, field: str) -> str:
    """Returns digests of the files of a user's own rewards, which have no version as ours have; empty for ours.

    Those of a sum's terms are its own.
    """
    parsed = parse_spec(spec)
    if parsed.name == "sum":
        terms = read_terms(parsed.source, Context(field=field))
        return " ".join(digest for _, term in terms if (digest := _code_digest(term, field)))
    file = getattr(sys.modules.get(parsed.name), "__file__", None) if "." in parsed.name else None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
