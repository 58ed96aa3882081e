"""Recovery: what a crash left pending is taken over and replayed exactly."""
