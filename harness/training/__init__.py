"""The train stage, and the one trainer that all methods share."""
