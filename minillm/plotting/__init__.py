"""Figures: plain records go in, a PNG file comes out. matplotlib is loaded by the first drawing, not by an import."""
