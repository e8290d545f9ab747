"""What every run needs and no method knows: its folder, loop, checkpoints, curves and report."""
