"""Figures as SVG, PDF and PNG, the same bytes for the same values."""
