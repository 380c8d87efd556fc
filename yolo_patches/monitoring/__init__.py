"""What is measured of a training while it runs: plain Python and torch, no upstream."""
