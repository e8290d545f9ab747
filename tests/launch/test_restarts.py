"""The launch scripts restart a run when they should, with stand-ins for the programs that they call.

A run that was preempted has to be restarted. A run that cannot work, or that is still saving, must not be.
"""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
POD = ("--zone=z-1", "--nfs=10.0.0.2:/share", "--out=/mnt/spo_jax/run")


def _statuses(play: SimpleNamespace, *statuses: int) -> str:
    """Returns a line of bash that ends with the first status, at the next start with the second, and so on."""
    file = play.folder / "statuses"
    file.write_text("".join(f"{status}\n" for status in statuses))
    return f'status=$(head -n1 "{file}"); sed -i 1d "{file}"; exit "$status"'


@pytest.mark.parametrize(
    "statuses, starts", [((75, 75, 0), 3), ((0,), 1), ((1, 0), 1), ((2, 0), 1), ((130, 0), 1), ((137, 0), 1)]
)
def test_gpu_node_restarts_training_only_after_status_75(statuses, starts, play):
    play.stand_in("nvidia-smi", "echo GPU 0")
    play.fake_python(_statuses(play, *statuses))
    done = play.run("gpu_node.sh", "--out=runs/a", "--no-install")
    assert done.returncode == statuses[starts - 1], done.stderr
    train = "python -m spo_jax.train --config=configs/sd15.py --out=runs/a --auto-resume"
    assert [call for call in play.calls() if call.startswith("python")] == [train] * starts


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_gpu_node_passes_a_signal_on_and_waits_for_the_save(sent, play, checkout):
    play.stand_in("nvidia-smi", "echo GPU 0")
    ready = play.folder / "ready"
    saved = play.folder / "saved"
    # The save takes a while. In that time the script must not exit or start anything.
    train = f"trap 'sleep 0.5; touch {saved}; exit 75' TERM; touch {ready}; for i in {{1..2400}}; do sleep 0.05; done"
    play.fake_python(train)
    # bash cannot trap a signal that was ignored when it started, as SIGINT is if the tests run in the background.
    heed = f"import os, signal, sys; signal.signal({sent:d}, signal.SIG_DFL); os.execvp('bash', sys.argv[1:])"
    line = [sys.executable, "-c", heed, "bash", "launch/gpu_node.sh", "--out=runs/a", "--no-install"]
    with subprocess.Popen(line, cwd=checkout, env=play.environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 75, errors
    assert saved.exists()
    assert sum(call.startswith("python -m") for call in play.calls()) == 1


def test_gpu_node_refuses_a_machine_without_a_gpu(play):
    play.stand_in("nvidia-smi", "exit 0")
    done = play.run("gpu_node.sh", "--out=runs/a", "--no-install")
    assert (done.returncode, done.stderr) == (2, "error: nvidia-smi lists no GPU\n")


def _slurm_job(play: SimpleNamespace, checkout: Path, status: int, **more: str) -> subprocess.CompletedProcess:
    """Runs the batch script as Slurm does: a copy in another folder, which starts in the folder of the submission."""
    play.stand_in("srun", f"exit {status}")
    play.stand_in("scontrol", "exit 0")
    spool = play.folder / "spool" / "job7"
    spool.mkdir(parents=True)
    shutil.copy(checkout / "launch" / "slurm.sbatch", spool / "slurm_script")
    variables = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(checkout), "SLURM_CPUS_PER_TASK": "6", **more}
    arguments = ["--out=runs/a", f"--python={sys.executable}"]
    line = ["bash", str(spool / "slurm_script"), *arguments]
    return subprocess.run(line, cwd="/", env=play.environment | variables, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "status, requeued",
    [(75, True), (143, True), (0, False), (1, False), (2, False), (130, False), (137, False)],
)
def test_a_slurm_job_requeues_itself_only_after_sigterm(status, requeued, play, checkout):
    done = _slurm_job(play, checkout, status)
    assert done.returncode == status, done.stderr
    srun, *after = play.calls()
    assert srun == (
        f"srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task=6 {sys.executable} -m spo_jax.train "
        "--config=configs/sd15.py --out=runs/a --auto-resume --multihost"
    )
    assert after == (["scontrol requeue 7"] if requeued else [])


def test_a_slurm_job_needs_one_task_per_gpu(play, checkout):
    done = _slurm_job(play, checkout, 0, SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 2
    assert "give sbatch --ntasks-per-node=4 --gpus-per-node=4" in done.stderr
    assert play.calls() == []


def test_slurm_signals_the_tasks_and_not_the_shell():
    """``--signal=B:…`` would signal only the batch shell, which waits for srun and would ignore the signal."""
    options = dict(
        re.findall(r"^#SBATCH --([\w-]+)=?(\S*)", (ROOT / "launch" / "slurm.sbatch").read_text(encoding="utf-8"), re.M)
    )
    assert options["signal"] == "TERM@120"
    assert "requeue" in options and options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert 40 % (int(options["nodes"]) * int(options["gpus-per-node"])) == 0  # the published batch


# A cloud with one pod. Its state is in files: pod, unit (the run on worker 0), installed, broken (the next installation
# fails) and plot (what happens each time the script looks).
CLOUD = """
import pathlib, sys
here = pathlib.Path(sys.argv[1])
words = sys.argv[2:]
read = lambda name: (here / name).read_text() if (here / name).exists() else ""
command = next((word for word in words if word.startswith("--command=")), "")
if "describe" in words:
    if not read("pod"):
        sys.exit("ERROR: NOT_FOUND: no such resource")
    if read("pod") == "UNREACHABLE":
        (here / "pod").write_text("ACTIVE")
        sys.exit("ERROR: connection reset")
    print(read("pod"))
elif "create" in words:
    (here / "pod").write_text("ACTIVE")
elif "delete" in words:
    for name in ("pod", "unit", "installed"):
        (here / name).unlink(missing_ok=True)
elif "uv pip install" in command and read("broken"):
    (here / "broken").unlink()
    sys.exit(1)
elif "touch spo_jax/.installed" in command:
    (here / "installed").write_text("yes")
elif "systemd-run" in command:
    (here / "unit").write_text("active running 0")
elif "systemctl show" in command:
    events = read("plot").split(",") if read("unit") else [""]
    (here / "plot").write_text(",".join(events[1:])) if read("unit") else None
    if events[0] == "preempted":
        (here / "pod").write_text("SUSPENDED")
    elif events[0]:
        (here / "unit").write_text(events[0])
    state, sub, status = (read("unit") or "inactive dead 0").split()
    print(f"ExecMainStatus={status}\\nActiveState={state}\\nSubState={sub}")
    print("Installed=yes" * bool(read("installed")))
"""
# Steps of the script, and text by which their calls of gcloud are recognised.
STEPS = {
    "create": " create ",
    "delete": " delete ",
    "install": "uv pip install",
    "train": "systemd-run",
    "log": "journalctl",
}


def _watch(play: SimpleNamespace, pod: str, *plot: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs ``watch`` on a pod in this state, and returns the finished process and the steps that it took."""
    (play.folder / "cloud.py").write_text(CLOUD)
    (play.folder / "plot").write_text(",".join(plot))
    if pod:
        (play.folder / "pod").write_text(pod)
    play.stand_in("gcloud", f'exec "{sys.executable}" "{play.folder}/cloud.py" "{play.folder}" "$@"')
    play.stand_in("tar", "exit 0")
    done = play.run("tpu_pod.sh", "watch", *POD, "--poll=0", "--retries=2")
    called = [next((step for step, mark in STEPS.items() if mark in call), None) for call in play.calls()]
    return done, [step for step in called if step]


def test_a_preempted_pod_is_replaced_and_the_run_resumes(play):
    done, steps = _watch(play, "ACTIVE", "active running 0", "preempted", "active running 0", "active exited 0")
    assert done.returncode == 0, done.stderr
    assert steps == ["install", "train", "delete", "create", "install", "train"]
    assert "the run is done" in done.stderr


def test_an_active_run_is_left_alone(play):
    (play.folder / "unit").write_text("active running 0")
    done, steps = _watch(play, "ACTIVE", "activating auto-restart 75", "active running 0", "active exited 0")
    assert (done.returncode, steps) == (0, [])


def test_an_installation_that_failed_on_a_worker_is_repeated(play):
    (play.folder / "broken").write_text("yes")
    done, steps = _watch(play, "ACTIVE", "active exited 0")
    assert (done.returncode, steps) == (0, ["install", "install", "train"])


def test_a_run_with_a_users_mistake_is_not_restarted(play):
    done, steps = _watch(play, "ACTIVE", "failed failed 2")
    assert (done.returncode, steps) == (2, ["install", "train", "log"])


def test_a_run_that_a_person_interrupted_is_not_restarted(play):
    done, steps = _watch(play, "ACTIVE", "failed failed 130")
    assert (done.returncode, steps) == (130, ["install", "train", "log"])


def test_a_run_that_keeps_failing_is_abandoned(play):
    done, steps = _watch(play, "ACTIVE", *["failed failed 1"] * 3)
    assert (done.returncode, steps) == (1, ["install", "train", "log", "train", "log", "train", "log"])


@pytest.mark.parametrize("pod, status, message", [("", 1, "create it first"), ("FAILED", 1, "pod spo-jax: FAILED")])
def test_watch_creates_no_pod_that_the_user_did_not_request(pod, status, message, play):
    done, steps = _watch(play, pod)
    assert (done.returncode, steps) == (status, [])
    assert message in done.stderr


def test_a_cloud_that_does_not_answer_is_queried_again(play):
    (play.folder / "unit").write_text("active running 0")
    done, steps = _watch(play, "UNREACHABLE", "active exited 0")
    assert (done.returncode, steps) == (0, [])
    assert "connection reset" in done.stderr


@pytest.mark.parametrize(
    "mounted, mount_status, expected",
    [
        (False, 0, ["apt-get", "apt-get", "mkdir", "mount", "install", "systemctl", "systemctl", "systemd-run"]),
        (True, 0, ["install", "systemctl", "systemctl", "systemd-run"]),
        (False, 32, ["apt-get", "apt-get", "mkdir", "mount"]),  # no run is better than one on the worker's own disk
    ],
)
def test_a_worker_starts_the_run_only_on_the_share(mounted, mount_status, expected, play):
    """Runs the command that ``train`` sends to the workers on a stand-in for one."""
    printed = play.run("tpu_pod.sh", "train", *POD, "--dry-run").stdout
    (sent,) = (word for word in shlex.split(printed) if word.startswith("--command="))
    play.stand_in("mountpoint", f"exit {0 if mounted else 1}")
    # systemctl fails, as it does if there is no such unit.
    play.stand_in("sudo", f"case $1 in mount) exit {mount_status} ;; systemctl) exit 5 ;; esac")
    line = ["bash", "-c", sent.removeprefix("--command=")]
    done = subprocess.run(line, env=play.environment | {"USER": "me"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == mount_status, done.stderr
    calls = [call for call in play.calls() if call.startswith("sudo")]
    assert [call.split()[1] for call in calls] == expected
    if expected[-1] == "systemd-run":
        python = f"{play.folder}/spo_jax/.venv/bin/python -m spo_jax.train"
        assert calls[-1].endswith(f"{python} --config=configs/sd15.py --out=/mnt/spo_jax/run --auto-resume --multihost")
        assert "--uid=me" in calls[-1] and "--property=RestartForceExitStatus=75" in calls[-1]
