"""A guard against reward hacking while training: looks at a few images, a rule, and what follows from it.

A look draws the same few images anew and scores them by what the run learns from and by what it does not. The rule
compares each look with the best one so far; `spo_jax.run.guard.rule` states it, and `benchmarks.guard` measures how
often it gives a false alarm. Nothing here knows a method: the run hands over a function that draws and scores.
"""
