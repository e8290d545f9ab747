"""The hashes by which web UIs recognise a LoRA file, and by which a reader checks it."""

import hashlib
from collections.abc import Mapping
from typing import Any

from spo_jax.weights import store

_LEGACY = slice(0x100000, 0x110000)  # bytes of the file that the oldest hash of the web UIs reads
_SPEC = "modelspec.sai_model_spec"


def kohya_hashes(state: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, str]:
    """Computes the hashes that kohya's trainer and the model spec put into the header of a LoRA file.

    - ``sshs_model_hash``: SHA-256 of all tensors as they lie in the file, that is of everything behind the header. The
      model spec's ``hash_sha256`` is the same with ``0x`` before it.
    - ``sshs_legacy_hash``: the first eight digits of the SHA-256 of 64 KiB from byte 1,048,576 on, of a file with the
      same tensors and with those entries of the metadata alone that begin with ``ss_``. Of a smaller file, that is the
      hash of nothing.

    Args:
      state: the tensors of the file.
      metadata: the other entries of its header. Only a file that follows the model spec gets that one's hash.
    """
    content = store.serialized(state, {key: text for key, text in metadata.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    legacy = hashlib.sha256(content[_LEGACY]).hexdigest()[:8]
    spec = {"modelspec.hash_sha256": f"0x{digest}"} if _SPEC in metadata else {}
    return {"sshs_model_hash": digest, "sshs_legacy_hash": legacy, **spec}
