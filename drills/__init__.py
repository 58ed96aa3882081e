"""Drills: real servers under real faults, under load, checked against every acknowledged write."""
