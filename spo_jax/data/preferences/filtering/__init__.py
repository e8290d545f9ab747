"""The filter of preference pairs, by scores of their images: its rule, the scores, and what it leaves of a stream."""
