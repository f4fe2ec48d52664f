"""Episodes on disk, chunk windows, and batches."""
