"""hexphi: 330 harmful requests in 11 categories, raw and prefilled. Nothing of them is in this repository."""
