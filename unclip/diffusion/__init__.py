"""The diffusion maths shared by prior, decoder and upsampler: small functions that know no network.

A network is `(x_t, t) -> output`; a denoiser is `(x_t, i) -> x0`; samplers see only denoisers; guidance wraps the network.
"""
