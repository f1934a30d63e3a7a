"""Data sets made here: `shapes` (scenes whose truth is known, with their judge) and `emoji` (glyphs of an installed font)."""
