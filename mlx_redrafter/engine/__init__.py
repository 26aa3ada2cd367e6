"""One step of decoding, for one sequence and for many."""
