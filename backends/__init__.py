"""Fine-tuning methods, one file each, and the one trainer that they share."""
