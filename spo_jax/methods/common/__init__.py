"""Parts that several methods share; the methods themselves do not import each other."""
