"""The GKE manifest restarts the right failures, its numbers agree, and its files outlive a pod.

These tests look for mistakes that Kubernetes accepts and that would show only after the nodes have been paid for.
"""

import math
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_manifest_runs_python_itself(manifest):
    """A shell in between would not pass SIGTERM on."""
    command = manifest.container["command"]
    assert command[:3] == ["python", "-m", "spo_jax.train"]
    assert {"--multihost", "--auto-resume"} <= set(command)
    assert (ROOT / next(flag for flag in command if flag.startswith("--config=")).split("=")[1]).is_file()


def test_the_manifest_restarts_everything_except_mistakes(manifest):
    jobset = manifest.jobset
    job = manifest.job
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # With these, any other status and the loss of a node fail the job at once, and the JobSet restarts it.
    assert job["backoffLimit"] == 0 and manifest.pod["restartPolicy"] == "Never"
    (pods,) = job["podFailurePolicy"]["rules"]
    assert pods["action"] == "FailJob"
    expected = {"containerName": manifest.container["name"], "operator": "In", "values": [2, 130]}
    assert pods["onExitCodes"] == expected


def test_the_numbers_in_the_manifest_agree(manifest):
    job = manifest.job
    pod = manifest.pod
    chips = math.prod(int(side) for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * manifest.container["resources"]["limits"]["google.com/tpu"] == chips
    assert 40 % chips == 0  # the published batch


def test_the_manifest_keeps_its_files_on_the_shared_volume(manifest):
    container = manifest.container
    (mount,) = container["volumeMounts"]
    (volume,) = manifest.pod["volumes"]
    assert mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
    values = {item["name"]: item["value"] for item in container["env"]}
    folders = [values["RUN"], values["HF_HOME"], values["JAX_COMPILATION_CACHE_DIR"].replace("$(RUN)", values["RUN"])]
    folders += [flag.split("=")[1] for flag in container["command"] if "prompts=" in flag]
    assert len(folders) == 5
    assert all(folder.startswith(f"{mount['mountPath']}/") for folder in folders)
    assert "--out=$(RUN)" in container["command"]
