"""The decisions: no clock, no I/O."""
