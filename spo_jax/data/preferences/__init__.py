"""Preference pairs: the prepared format, the command's writer and checks, and loading."""
