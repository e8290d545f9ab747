"""Experiments as data: each module states its command, the hardware and hours it takes, and the number to expect."""
