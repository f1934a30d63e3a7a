"""The diffusion maths shared by prior, decoder and upsampler: small functions that know no network.

A network is `(x_t, t) -> output`; a denoiser is `(x_t, i) -> x0, and the log-variance where that is learned`; samplers see
only denoisers; guidance wraps the network. Where the variance is learned, an output has twice the channels of x: first
what says x0 (its mean half), then what says the variance.
"""
