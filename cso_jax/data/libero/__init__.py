"""LIBERO's official demonstration files: what they hold, where they come from."""
