"""Devices and processes: the mesh, the layout of arrays on it, and the notice that a machine is taken away."""
