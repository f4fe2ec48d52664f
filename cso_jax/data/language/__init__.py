"""Task sentences as vectors: MiniLM and CLIP text models without PyTorch."""
