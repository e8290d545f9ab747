"""What a run prints of its scores."""

from spo_jax.work.train import _print_scores


def test_a_total_of_almost_nothing_has_no_sign(capsys, tmp_path):
    """The mean of normalised scores is 0 up to rounding, on either side."""
    total = {"before": -1e-17, "after": -0.00126, "change": -0.00126, "change_se": 0.01}
    _print_scores({"scores": {"total": total}, "verdict": "No change.", "wall_seconds": 1.0}, tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("total")]
    assert line.split() == ["total", "0.0000", "->", "-0.0013", "change", "-0.0013", "±", "0.0100"]
