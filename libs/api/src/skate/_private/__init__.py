"""Where Ray's programs look for what is not public."""
