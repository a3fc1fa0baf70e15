"""What computes SAM's image encoder when answers are given: torch, or another runtime in its place."""
