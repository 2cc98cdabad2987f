"""The alignment stage: a model made safe on the user's own data, before anything is fine-tuned."""
