"""advbench: 520 harmful behaviours, raw and prefilled. Nothing of them is in this repository."""
