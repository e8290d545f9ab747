"""Experiments as data: each module opens with its command, hardware, hours and the number to expect."""
