"""The GKE manifest: it starts again what should be, its numbers agree, and its files outlive a pod.

Fear: what Kubernetes accepts and only shows after the nodes have been paid for.
"""

import math
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_manifest_runs_python_itself(manifest):
    """A shell in between would keep SIGTERM to itself."""
    command = manifest.container["command"]
    assert command[:3] == ["python", "-m", "spo_jax.train"]
    assert {"--multihost", "--auto-resume"} <= set(command)
    assert (ROOT / next(flag for flag in command if flag.startswith("--config=")).split("=")[1]).is_file()


def test_the_manifest_starts_again_whatever_ended_but_mistakes(manifest):
    jobset, job = manifest.jobset, manifest.job
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # So that any other status, and a node that is gone, fails the job at once and is the JobSet's to start again.
    assert job["backoffLimit"] == 0 and manifest.pod["restartPolicy"] == "Never"
    (pods,) = job["podFailurePolicy"]["rules"]
    assert pods["action"] == "FailJob"
    expected = {"containerName": manifest.container["name"], "operator": "In", "values": [2]}
    assert pods["onExitCodes"] == expected


def test_the_manifests_numbers_agree(manifest):
    job, pod = manifest.job, manifest.pod
    chips = math.prod(int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * manifest.container["resources"]["limits"]["google.com/tpu"] == chips
    assert 40 % chips == 0  # the published batch


def test_the_manifest_keeps_its_files_on_the_shared_volume(manifest):
    pod, container = manifest.pod, manifest.container
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
    values = {item["name"]: item["value"] for item in container["env"]}
    folders = [values["RUN"], values["HF_HOME"], values["JAX_COMPILATION_CACHE_DIR"].replace("$(RUN)", values["RUN"])]
    folders += [flag.split("=")[1] for flag in container["command"] if "prompts=" in flag]
    assert len(folders) == 5
    assert all(folder.startswith(f"{mount['mountPath']}/") for folder in folders)
    assert "--out=$(RUN)" in container["command"]
