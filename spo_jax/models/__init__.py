"""Model families; a family is a folder, and `open_pipeline` asks each whether a model is its own."""
