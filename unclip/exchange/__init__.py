"""Trained models to and from other software: component folders of diffusers, and the checkpoints of Karlo.

Nothing of that software is imported: what is shared is names, shapes and the order of rows, which the links say.
"""
