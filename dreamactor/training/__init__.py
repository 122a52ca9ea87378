"""Training of every stage: time-boxed, resumable, on one GPU or many."""
