"""Priors: from a caption to CLIP image embeddings. All answer to one signature: condition in, (B, n, E) raw embeddings out."""
