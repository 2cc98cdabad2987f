"""transformers as an engine: prompts of like length are answered together (decoding.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from harness.config import ResponsesConfig
from harness.contracts import HarnessError
from harness.engines.base import Engine, Request
from harness.models import checkpoints, devices, model_limits
from harness.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    from harness.engines.decoding import Drawing

Item = TypeVar("Item")
Made = TypeVar("Made")


class HFEngine(Engine):
    """``model`` is a loaded causal language model, ``tokenizer`` its tokenizer. ``static_cache``: a key-value
    cache of fixed size, which transformers compiles on CUDA (on a CPU it only costs). ``continuous``: greedy
    answers by transformers' continuous batching. ``cudnn_attention``: False keeps cuDNN out of attention."""

    settings = ("batch_size", "static_cache")
    settings_if_set = ("continuous", "cudnn_attention")
    like_transformers = True

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
        from transformers import GenerationConfig

        from harness.engines.decoding import Decoder

        self._continuous, self._cudnn = continuous, cudnn_attention
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
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
    def suits(cls, settings: ResponsesConfig, device: str, weights: Callable[[], int | None]) -> bool:
        return True

    @classmethod
    def import_libraries(cls) -> None:
        from harness.engines import decoding, scoring  # noqa: F401 (transformers' generation comes with them)

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

    def plan(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Sorted by length, so that little is padded; equal lengths keep their order. Continuous batching
        wants more prompts than are answered at once."""
        if not self._continuous:
            return self._cut(prompts, self.batch_size)
        from harness.engines import continuous

        return self._cut(prompts, self.batch_size * continuous.ROUNDS)

    def _cut(self, prompts: Sequence[list[int]], size: int) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def generate(self, prompts: Sequence[list[int]], request: Request) -> list[list[int]]:
        import torch

        from harness.engines.decoding import Drawing

        for prompt in prompts:
            self._check(prompt, room=1)
        longest = max(map(len, prompts), default=0)
        tokens = min(request.max_new_tokens, self.context_tokens - longest)
        room, heat = _Room(self.batch_size, request), request.temperature
        found: dict[int, list[int]] = {}
        with torch.inference_mode():
            if self._continuous and heat <= 0 and prompts:
                return self._in_slots(prompts, tokens, room)
            for number, batch in enumerate(self._cut(prompts, self.batch_size)):
                seed = request.seed + number * self.batch_size
                drawn = Drawing(heat, request.top_p, seed) if heat > 0 else None
                with self._kernels():
                    found |= self._answered(batch, prompts, tokens, drawn, room)
                request.on_progress(len(batch))
        return [found[index] for index in range(len(prompts))]

    def _in_slots(self, prompts: Sequence[list[int]], max_new_tokens: int, room: _Room) -> list[list[int]]:
        """By continuous batching, with fewer prompts at once where memory asks for it."""
        import torch

        from harness.engines import continuous

        while True:
            made = None
            with contextlib.suppress(torch.OutOfMemoryError):
                made = continuous.answers(
                    self.model, prompts, max_new_tokens, self.stop_ids, self._pad_id, room.prompts
                )
            if made is not None:
                room.request.on_progress(len(prompts))
                return made
            room.halve(room.prompts, f"one prompt of {max(map(len, prompts)):,} tokens and its answer")

    def _kernels(self) -> contextlib.AbstractContextManager[Any]:
        """Without cuDNN's attention, where it is not wanted: it plans anew for each shape."""
        if self._cudnn:
            return contextlib.nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

    def _answered(
        self,
        batch: list[int],
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        drawing: Drawing | None,
        room: _Room,
    ) -> dict[int, list[int]]:
        """The continuations of the prompts at the places of ``batch``, by place."""
        from harness.engines.decoding import Sampling

        rows = {index: row for row, index in enumerate(batch)}

        def work(part: list[int]) -> list[list[int]]:
            places = [rows[index] for index in part]
            sampling = drawing and Sampling(drawing, places, len(batch))
            return self._decoder.answers([prompts[index] for index in part], max_new_tokens, sampling)

        def about(index: int) -> str:
            return f"one prompt of {len(prompts[index]):,} tokens and its answer"

        found: dict[int, list[int]] = {}
        for part, made in room.fitting(batch, work, about):
            found |= zip(part, made, strict=True)
        if self._decoder.whole and not self._told:
            self._told = True
            room.request.on_note(f"a batch takes as long as its longest answer: {self._decoder.whole}")
        return found

    def _check(self, ids: Sequence[int], *, room: int = 0) -> None:
        """Raises HarnessError for ids that the model has not, or too many for ``room`` tokens behind them."""
        model_limits.check_ids(self.tokenizer, ids, self.rows, "a prompt")
        if len(ids) + room > self.context_tokens:
            raise HarnessError(
                f"a prompt has {len(ids):,} tokens and the model's context {self.context_tokens:,}"
            )

    def logprobs(
        self, pairs: Sequence[tuple[list[int], list[int]]], request: Request
    ) -> list[tuple[float, bool]]:
        def about(pair: tuple[list[int], list[int]]) -> str:
            return f"one prompt of {sum(map(len, pair)):,} tokens with its answer"

        for context, continuation in pairs:
            self._check([*context, *continuation])
        room = _Room(self.batch_size, request)
        return [one for _, made in room.fitting(pairs, self._logprobs, about) for one in made]

    def _logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        from harness.engines import scoring

        return scoring.logprobs(self.model, pairs, self._pad_id, self.rows)

    def close(self) -> None:
        del self.model
        devices.free_device()


class _Room:
    """How many ``prompts`` the device holds at once during one call: fewer each time that its memory runs
    out, which ``request`` hears."""

    def __init__(self, most: int, request: Request):
        self.request, self.prompts = request, min([most, *request.came_down_to])

    def fitting(
        self, items: Sequence[Item], work: Callable[[list[Item]], list[Made]], about: Callable[[Item], str]
    ) -> Iterator[tuple[list[Item], list[Made]]]:
        """What ``work`` makes of the items, all at once or in as many parts as the device's memory asks for.
        ``about``: one of them in words."""
        import torch

        left = list(items)
        while left:
            part, made = left[: self.prompts], None
            with contextlib.suppress(torch.OutOfMemoryError):
                made = work(part)
            if made is None:  # out here the failed attempt's tensors are free
                self.halve(len(part), about(part[0]))
                continue
            yield part, made
            del left[: len(part)]

    def halve(self, size: int, least: str) -> None:
        """Fewer prompts at once from now on. Raises HarnessError where one is too much."""
        import torch

        if size == 1:
            raise HarnessError(f"the device has no memory for {least}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.prompts = size // 2
        self.request.on_note(f"out of device memory with {size} prompts at once: {self.prompts} from here on")
        self.request.on_fewer(self.prompts)
