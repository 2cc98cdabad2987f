"""transformers as an engine: prompts of like length are answered together (decoding.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GenerationConfig

from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.engines import continuous
from harness.engines.base import IdEngine
from harness.engines.decoding import Decoder, Drawing, Sampling
from harness.models import checkpoints, devices, model_limits
from harness.models.checkpoints import Checkpoint

AT_ONCE = 256  # positions whose logits are float32 at once
LOGIT_BYTES = 2**30  # of logits in the model's own precision at once
VOCABULARY = 2**18  # no more is taken to be a model's, where its embedding does not tell

Item = TypeVar("Item")
Made = TypeVar("Made")


class HFEngine(IdEngine):
    """``model`` is a loaded causal language model, ``tokenizer`` its tokenizer. ``static_cache``: a key-value
    cache of fixed size, which transformers compiles on CUDA (on a CPU it only costs). ``continuous``: greedy
    answers by transformers' continuous batching. ``cudnn_attention``: False keeps cuDNN out of attention."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        *,
        static_cache: bool = False,
        continuous: bool = False,
        cudnn_attention: bool = True,
    ):
        super().__init__()
        self._continuous, self._cudnn = continuous, cudnn_attention
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self._fits = batch_size  # prompts at once, as far as is known
        eos = model.generation_config.eos_token_id
        self.rows = model_limits.embedding_rows(model)
        self.stop_ids = checkpoints.stop_ids(eos, tokenizer, self.rows)
        self.context_tokens = model_limits.context_tokens(model)
        self._pad_id = pad_id = model_limits.padding_id(tokenizer, self.rows, min(self.stop_ids))
        self._decoder = Decoder(model, self.stop_ids, pad_id, static=static_cache)
        self._told = static_cache  # why no row leaves a batch before its end
        # generate() fills what a call leaves open from the model's own configuration, which may sample,
        # penalise repetition or forbid an early end: nothing of it may reach a greedy answer.
        model.generation_config = GenerationConfig()

    @classmethod
    def open(cls, checkpoint: Checkpoint, settings: ResponsesConfig, device: str) -> HFEngine:
        assert checkpoint.folder is not None
        model = checkpoints.load_model(checkpoint.folder, settings.dtype, device, base=checkpoint.base)
        tokenizer = checkpoints.load_tokenizer(checkpoint.folder)
        return cls(
            model,
            tokenizer,
            settings.batch_size,
            static_cache=settings.static_cache,
            continuous=settings.continuous,
            cudnn_attention=settings.cudnn_attention,
        )

    def begin(self, out_of_memory: Sequence[int] = ()) -> None:
        super().begin(out_of_memory)
        self._fits = min([self.batch_size, *out_of_memory])

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Sorted by length, so that little is padded; equal lengths keep their order. Continuous batching
        wants more prompts than are answered at once."""
        return self._cut(prompts, self.batch_size * (continuous.ROUNDS if self._continuous else 1))

    def _cut(self, prompts: Sequence[list[int]], size: int) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        return [order[start : start + size] for start in range(0, len(order), size)]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[int]]:
        for prompt in prompts:
            self._check(prompt, room=1)
        longest = max(map(len, prompts), default=0)
        max_new_tokens = min(max_new_tokens, self.context_tokens - longest)
        if self._continuous and temperature <= 0 and prompts:
            return self._in_slots(prompts, max_new_tokens)
        found: dict[int, list[int]] = {}
        for number, batch in enumerate(self._cut(prompts, self.batch_size)):
            drawn = Drawing(temperature, top_p, seed + number * self.batch_size) if temperature > 0 else None
            with self._kernels():
                found |= self._answered(batch, prompts, max_new_tokens, drawn)
            self.on_progress(len(batch))
        return [found[index] for index in range(len(prompts))]

    def _in_slots(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """By continuous batching, with fewer prompts at once where memory asks for it."""
        while True:
            made = None
            with contextlib.suppress(torch.OutOfMemoryError):
                made = continuous.answers(
                    self.model, prompts, max_new_tokens, self.stop_ids, self._pad_id, self._fits
                )
            if made is not None:
                self.on_progress(len(prompts))
                return made
            self._halve(self._fits, f"one prompt of {max(map(len, prompts)):,} tokens and its answer")

    def _kernels(self) -> contextlib.AbstractContextManager[Any]:
        """Without cuDNN's attention, where it is not wanted: it plans anew for each shape."""
        if self._cudnn:
            return contextlib.nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

    def _answered(
        self, batch: list[int], prompts: Sequence[list[int]], max_new_tokens: int, drawing: Drawing | None
    ) -> dict[int, list[int]]:
        """The continuations of the prompts at the places of ``batch``, by place."""
        rows = {index: row for row, index in enumerate(batch)}

        def work(part: list[int]) -> list[list[int]]:
            places = [rows[index] for index in part]
            sampling = drawing and Sampling(drawing, places, len(batch))
            return self._decoder.answers([prompts[index] for index in part], max_new_tokens, sampling)

        def about(index: int) -> str:
            return f"one prompt of {len(prompts[index]):,} tokens and its answer"

        found: dict[int, list[int]] = {}
        for part, made in self._fitting(batch, work, about):
            found |= zip(part, made, strict=True)
        if self._decoder.whole and not self._told:
            self._told = True
            self.on_note(f"a batch takes as long as its longest answer: {self._decoder.whole}")
        return found

    def _check(self, ids: Sequence[int], *, room: int = 0) -> None:
        """Raises HarnessError for ids that the model has not, or too many for ``room`` tokens behind them."""
        model_limits.check_ids(self.tokenizer, ids, self.rows, "a prompt")
        if len(ids) + room > self.context_tokens:
            raise HarnessError(
                f"a prompt has {len(ids):,} tokens and the model's context {self.context_tokens:,}"
            )

    def _fitting(
        self, items: Sequence[Item], work: Callable[[list[Item]], list[Made]], about: Callable[[Item], str]
    ) -> Iterator[tuple[list[Item], list[Made]]]:
        """What ``work`` makes of the items, all at once or in as many parts as the device's memory asks for.
        ``about``: one of them in words."""
        left = list(items)
        while left:
            part, made = left[: self._fits], None
            with contextlib.suppress(torch.OutOfMemoryError):
                made = work(part)
            if made is None:  # out here the failed attempt's tensors are free
                self._halve(len(part), about(part[0]))
                continue
            yield part, made
            del left[: len(part)]

    def _halve(self, size: int, least: str) -> None:
        """Fewer prompts at once from now on. Raises HarnessError where one is too much."""
        if size == 1:
            raise HarnessError(f"the device has no memory for {least}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._fits = size // 2
        self.on_note(f"out of device memory with {size} prompts at once: {self._fits} from here on")
        self.out_of_memory.append(self._fits)
        self.on_fewer(self._fits)

    def logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        def about(pair: tuple[list[int], list[int]]) -> str:
            return f"one prompt of {sum(map(len, pair)):,} tokens with its answer"

        for context, continuation in pairs:
            self._check([*context, *continuation])
        return [one for _, made in self._fitting(pairs, self._logprobs, about) for one in made]

    @torch.inference_mode()
    def _logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        rows = [context + continuation for context, continuation in pairs]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad_id)
        for row, tokens in enumerate(rows):  # padding on the right, where causal attention never looks
            ids[row, : len(tokens)] = torch.tensor(tokens)
        attention = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
        spans = [
            (row * width + len(context) - 1, len(continuation))
            for row, (context, continuation) in enumerate(pairs)
        ]
        before = torch.cat([torch.arange(start, start + length) for start, length in spans])
        device = self.model.device
        wanted = torch.tensor([token for _, continuation in pairs for token in continuation], device=device)
        inputs = {"input_ids": ids.to(device), "attention_mask": attention.long().to(device)}
        logp: list[torch.Tensor] = []
        best: list[torch.Tensor] = []
        done = 0
        for logits in self._logits(before.to(device), **inputs):
            for some in logits.split(AT_ONCE):
                exact, right = some.float(), wanted[done : done + len(some)].to(some.device)
                logp.append(exact.log_softmax(-1).gather(-1, right[:, None])[:, 0])
                best.append(exact.argmax(-1) == right)
                done += len(some)
        lengths = [length for _, length in spans]
        found = zip(torch.cat(logp).cpu().split(lengths), torch.cat(best).cpu().split(lengths), strict=True)
        return [(float(values.sum()), bool(hits.all())) for values, hits in found]

    def _logits(self, positions: torch.Tensor, **inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """(n, V), one part after the other: at ``positions`` (N,) of the flattened rows. Where the model has
        an output head to itself, that sees no other position, and at most LOGIT_BYTES of logits are made at
        once: the logits of all are the largest part of a pass."""
        size = min(self.rows, VOCABULARY) * self.model.dtype.itemsize
        with _layers_once(self.model):
            for part in positions.split(max(1, LOGIT_BYTES // size)):
                with _head_at(self.model, part):
                    logits: torch.Tensor = self.model(**inputs, use_cache=False).logits
                if logits.shape[:2] == inputs["input_ids"].shape:  # a head that uses its weights another way
                    yield logits.flatten(0, 1).index_select(0, positions)
                    return
                yield logits[0]

    def close(self) -> None:
        del self.model
        devices.free_device()


@contextlib.contextmanager
def _head_at(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """The output head of ``model``, where it has one to itself, sees ``positions`` of the flattened rows and
    no other, as one row."""

    def select(head: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0].flatten(0, 1).index_select(0, positions)[None], *given[1:])

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if isinstance(head, torch.nn.Module) else None
    try:
        yield
    finally:
        if hook:
            hook.remove()


@contextlib.contextmanager
def _layers_once(model: Any) -> Iterator[None]:
    """The layers of ``model`` work at their first call, and any further one, which has the same inputs, gets
    what they made then. So the model's own way from there to logits can be gone for other positions."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # below an adapter
    layers = model.get_decoder() if hasattr(model, "get_decoder") else None
    if layers is None or layers is model:
        yield
        return
    own, before = layers.forward, vars(layers).get("forward")
    made: list[Any] = []

    def forward(*given: Any, **more: Any) -> Any:
        if not made:
            made.append(own(*given, **more))
        return made[0]

    layers.forward = forward
    try:
        yield
    finally:
        del layers.forward
        if before is not None:
            layers.forward = before
