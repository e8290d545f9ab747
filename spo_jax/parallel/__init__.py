"""Devices and processes: the mesh, what lies where on it, and the notice that a machine is about to go."""
