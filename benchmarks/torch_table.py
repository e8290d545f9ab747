"""The table of `benchmarks.against_torch`, from its results files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

JUDGES = {
    "vae": "SPO, autoencoder",
    "tiny": "SPO, distilled decoder",
    "none": "LPO, nothing decoded",
}
TITLE = """# Ours against a loop in PyTorch

Written by `python -m benchmarks.against_torch --size=SIZE --decoder=vae,tiny,none`. Every row is beside its own loop in
PyTorch, and rows of one size and day took turns, batch by batch. Ratios above 1 are better for ours. Trajectories count
rollout and update, and a judge of random weights makes every pair a valid one. The last columns of numbers compare with
SPO that decodes by the autoencoder: trajectories and rollouts as a factor, memory as a share."""
COLUMNS = (
    "size", "method and decoder", "trajectories per s, ours", "PyTorch", "ratio", "rollout", "update, per pair",
    "memory, ours", "PyTorch", "trajectories of SPO", "rollouts of SPO", "memory of SPO", "valid pairs", "measured",
)  # fmt: skip


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Reads the results files of this script in a folder, those that were measured together next to each other."""
    files = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("against_torch-*.json"))]
    order = list(JUDGES)
    return sorted(files, key=lambda found: (found["size"], found["device"]["kind"], order.index(found["decoder"])))


def table(found: Sequence[dict[str, Any]]) -> str:
    """Formats results as a Markdown document; what was measured beside the exact decoder is compared with it.

    Args:
      found: contents of results files.
    """
    lines = [TITLE, "", "| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    exact = {(one["size"], one["device"]["kind"], one["date"][:10]): one for one in found if one["decoder"] == "vae"}
    for one in found:
        beside = exact.get((one["size"], one["device"]["kind"], one["date"][:10]))
        together = beside is not None and one["decoder"] in beside.get("measured_beside", ())
        lines.append("| " + " | ".join(_cells(one, beside if together else None)) + " |")
    return "\n".join(lines) + "\n"


def _cells(one: dict[str, Any], exact: dict[str, Any] | None) -> list[str]:
    ours, theirs, ratios = (one["results"][name] for name in ("ours", "theirs", "ratios"))
    compared = ["–", "–", "–"]
    if exact is not None:
        base = exact["results"]["ours"]
        compared = [
            f"{ours['trajectories_per_second'] / base['trajectories_per_second']:.2f}",
            f"{base['seconds_rollout'] / ours['seconds_rollout']:.2f}",
            f"{ours['peak_memory_bytes'] / base['peak_memory_bytes']:.0%}",
        ]
    versions = {**one["versions"], **one["sides"]["theirs"]["versions"]}
    return [
        one["size"],
        JUDGES[one["decoder"]],
        f"{ours['trajectories_per_second']:.3g}",
        f"{theirs['trajectories_per_second']:.3g}",
        f"{ratios['trajectories_per_second']:.2f}",
        f"{ratios['rollout_speed']:.2f}",
        f"{ratios['update_speed_per_pair']:.2f}" if ratios["update_speed_per_pair"] else "–",
        f"{ours['peak_memory_bytes'] / 2**30:.2f} GiB",
        f"{theirs['peak_memory_bytes'] / 2**30:.2f} GiB",
        *compared,
        f"{ours['valid_pairs']:.0f}",
        f"{one['date'][:10]}, {one['device']['kind']}, {one['threads']} cores, jax {versions['jax']}, "
        f"torch {versions['torch']}",
    ]
