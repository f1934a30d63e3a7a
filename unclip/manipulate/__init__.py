"""What can be done with a picture once it is an image embedding and a noise (paper, section 3): one file a command."""
