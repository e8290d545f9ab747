"""Where benchmarks write to."""

RESULTS = "runs/benchmarks"  # benchmarks/results holds the files that the documents quote
