"""Utilities that every other module may use: errors, files, configs, trees, images and the axis glossary."""
