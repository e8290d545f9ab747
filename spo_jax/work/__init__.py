"""The work of the commands, in a file for each: what comes after flags and cheap checks, and needs jax and networks."""
