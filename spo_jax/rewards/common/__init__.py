"""What several rewards share; rewards themselves do not see each other."""
