"""The faults, by what they happen to."""
