"""What several methods share; methods themselves do not see each other."""
