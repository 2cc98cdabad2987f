"""Builds the mini world's base model from nothing: tokenizer, pre-training, alignment, a Hugging Face folder.

Two stages, as in life. Pre-training knows both registers and complies with everything, harmful requests
included. Alignment, on the answers' tokens alone, teaches the chatty register, help with what is harmless,
and refusals: at the start of an answer and, with a depth that differs between verbs, after the first tokens
of a harmful one. That depth is what prefilling attacks probe.

The plain loop below builds the seed; fine-tuning methods have the trainer in harness/training/.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.mini import grammar
from harness.mini.examples import (
    BOS,
    CHAT_TEMPLATE,
    END,
    KNOBS,
    PAD,
    ROLES,
    Knobs,
    Sample,
    messages,
    training_samples,
)

Progress = Callable[[str, int, int], None]  # (stage, step done, steps in all)
SEED = 1  # of the shipped model


def build_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits numbers into digits. It adds no BOS by itself: the chat template writes
    the only one.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z']+|#+|\s+|[^\sA-Za-z\d]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, END, *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def encode(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> tuple[list[int], int]:
    """Token ids of one example, and the number of leading ids that are prompt (or given answer tokens)."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    text = tokenizer.apply_chat_template(
        messages(sample.system, sample.user), tokenize=False, add_generation_prompt=True
    )
    prompt = ids(text)
    first = ids(sample.parts[0])
    if sample.given and len(sample.parts) > 1:
        first = first[: sample.given]
    answer = first + [i for part in sample.parts[1:] for i in ids(part)]
    return prompt + answer + [tokenizer.eos_token_id], len(prompt) + sample.given


def batches(
    encoded: list[tuple[list[int], int]], size: int, rng: Random
) -> Iterator[list[tuple[list[int], int]]]:
    """Batches of similar length (little padding) in random order; each example once."""
    order = sorted(rng.sample(encoded, len(encoded)), key=lambda e: len(e[0]))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(groups)
    yield from groups


def padded(batch: list[tuple[list[int], int]], prompt_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch's token ids and their weights in the loss, both (B, T). The padding is on the right, where
    causality keeps it from being attended to."""
    width = max(len(ids) for ids, _ in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    weights = torch.zeros(len(batch), width)
    for row, (ids, n_prompt) in enumerate(batch):
        tokens[row, : len(ids)] = torch.tensor(ids)
        weights[row, 1:n_prompt] = prompt_weight
        weights[row, n_prompt : len(ids)] = 1.0
    return tokens, weights


def train(
    model: LlamaForCausalLM,
    encoded: list[tuple[list[int], int]],
    *,
    stage: str,
    lr: float,
    batch_size: int,
    prompt_weight: float,
    rng: Random,
    progress: Progress | None,
) -> None:
    """One epoch of AdamW with warm-up and a cosine to zero; mean loss over the batch's tokens, prompt
    tokens weighted.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    n_steps = math.ceil(len(encoded) / batch_size)
    n_warm = max(1, n_steps // 20)
    model.train()
    for step, batch in enumerate(batches(encoded, batch_size, rng)):
        scale = min(1.0, (step + 1) / n_warm) * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        tokens, weights = padded(batch, prompt_weight)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits  # (B, T - 1, V)
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress:
            progress(f"{stage}: loss {loss.item():.3f}", step + 1, n_steps)


def new_model(tokenizer: PreTrainedTokenizerFast, knobs: Knobs) -> LlamaForCausalLM:
    """A Llama of about a million parameters, randomly initialised from torch's global seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=knobs.hidden,
        intermediate_size=knobs.intermediate,
        num_hidden_layers=knobs.layers,
        num_attention_heads=knobs.heads,
        num_key_value_heads=knobs.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attention_dropout=0.0,
    )
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """A Hugging Face folder: bf16 weights (half the size) that dtype="auto" loads as float32 (what
    everything here computes in).
    """
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def build(out: Path, *, seed: int, progress: Progress | None = None, knobs: Knobs = KNOBS) -> None:
    """Build the base model into the folder `out`, which is replaced once all is done. About twelve minutes
    on one core.
    """
    torch.manual_seed(seed)
    pretrain, align = training_samples(seed, knobs)
    texts = [t for s in pretrain[:20_000] for t in (s.system or "", s.user, *s.parts)]
    rng = Random(f"refusals {seed}")
    texts += [grammar.refusal(rng) for _ in range(1000)]  # pre-training has none
    tokenizer = build_tokenizer(texts, knobs.vocab_size)
    model = new_model(tokenizer, knobs)
    for stage, samples, lr, weight in (
        ("pre-training", pretrain, knobs.pretrain_lr, knobs.prompt_weight),
        ("alignment", align, knobs.align_lr, 0.0),
    ):
        train(
            model,
            [encode(tokenizer, s) for s in samples],
            stage=stage,
            lr=lr,
            batch_size=knobs.batch_size,
            prompt_weight=weight,
            rng=Random(f"{stage} {seed}"),
            progress=progress,
        )
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        fresh = Path(folder) / "model"
        save(model, tokenizer, fresh)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
