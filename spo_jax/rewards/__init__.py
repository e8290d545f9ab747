"""Ground truths and scores that pictures are judged by; no training code reads them but to label pairs."""
