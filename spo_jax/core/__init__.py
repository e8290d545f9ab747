"""What every other module may use: errors, files, trees, images and the axis glossary."""
