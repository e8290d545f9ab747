"""What is said of a run that does not exist."""

from spo_jax.core.run_files import START, no_such_run


def test_runs_beside_a_folder_that_does_not_exist_are_named(tmp_path):
    assert no_such_run(tmp_path / "toy").endswith(f"(no such file or folder; there are no runs in {tmp_path})")
    for name in ("toy", "sd15", "a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / START).touch()
    (tmp_path / "nope").mkdir()  # no run
    assert no_such_run(tmp_path / "toi").endswith(f"; did you mean {tmp_path / 'toy'}?)")
    assert no_such_run(tmp_path / "nope2").endswith(f"; {tmp_path} has a, b, c, d, sd15 and others)")
    assert no_such_run(tmp_path / "absent" / "toy").endswith(f"; there are no runs in {tmp_path}/absent)")
