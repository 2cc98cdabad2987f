"""The embedded mini world: a generated language, small versions of the paper's tasks, and a base model with
shallow safety.

A miniature to see, test and develop with, never evidence about real models. Read `grammar` (the language
and the exact recogniser of answers), then `data` (the rows of each task), then `examples` and
`build` (what the shipped base model learns from, and how it is made from nothing).
"""

from importlib.resources import files
from pathlib import Path


def seed_model_path() -> Path:
    """The folder of the shipped base model (a Hugging Face checkpoint: safetensors, tokenizer, chat
    template).
    """
    return Path(str(files(__name__).joinpath("seed_model")))
