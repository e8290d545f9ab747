"""Training of step-aware preference models, the judges of SPO."""
