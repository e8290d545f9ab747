"""SPO itself: resampler, pairs, objective, and one training epoch's two steps."""
