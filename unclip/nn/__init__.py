"""Network parts: embeddings of numbers, the causal transformer of the prior, the U-Net of decoder and upsampler."""
