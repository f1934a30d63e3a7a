"""Training: one engine for CLIP, prior, decoder and upsampler, and the stage of each."""
