"""Where preference pairs come from; every module here is a source, found by its name."""
