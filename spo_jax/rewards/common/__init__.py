"""Code that several rewards share; rewards themselves do not import each other."""
