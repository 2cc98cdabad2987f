"""What the tests of the trainer share."""

from training_fixtures import (  # noqa: F401
    _one_thread,
    answer_logp,
    encoded,
    make_model,
    texts,
    tokenizer,
    train,
    weights,
)
