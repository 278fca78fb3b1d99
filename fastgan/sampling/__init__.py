"""Images from a generator: its input, its batches, and pictures of them on disk."""
