"""unCLIP (DALL-E 2, arXiv 2204.06125): from a list of image links and captions to a text-to-image model, in stages."""
