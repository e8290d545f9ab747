"""Parts of a run that do not depend on the method: its folder, loop, checkpoints, curves and report."""
