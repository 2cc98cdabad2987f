"""A judge's own weights, loaded with transformers or vLLM: contracts.JudgeModel."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.contracts import HarnessError, JudgeModel
from harness.engines.base import Request
from harness.models import chat, checkpoints, devices, model_limits
from harness.storage.files import read_json

if TYPE_CHECKING:
    from harness.engines.vllm_process import Made

# A weak model would fill its JSON with blanks until it is cut off. Only this backend can forbid them.
NO_BLANKS = {"backend": "xgrammar", "disable_any_whitespace": True}


class LoadedModel(JudgeModel, Protocol):
    def close(self) -> None:
        """Give the device's memory back."""
        ...


def load(
    folder: Path, engine: Literal["hf", "vllm"], dtype: str, device: str, batch_size: int
) -> LoadedModel:
    """Raises HarnessError where the weights or the engine cannot be had."""
    devices.free_device()  # what a tuned model has left there
    architecture = (_config(folder).get("architectures") or [""])[0]
    classifier = architecture.endswith("ForSequenceClassification")
    gains_nothing = classifier or checkpoints.is_adapter(folder)  # by another engine than transformers
    made = HFModel if gains_nothing else MODELS[engine]
    return made(folder, architecture, dtype, device, batch_size)


def _config(folder: Path) -> dict[str, Any]:
    """The model's, or of what an adapter is put on."""
    if checkpoints.is_adapter(folder):
        folder = checkpoints.base_folder(folder)
    found: dict[str, Any] = read_json(folder / "config.json")
    return found


def context_tokens(folder: Path) -> int:
    return checkpoints.context_tokens(_config(folder))


def _kind(architecture: str) -> Any:
    """transformers' AutoModel class of an architecture, None for a plain language model."""
    import transformers

    kinds = {
        "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
        "ForConditionalGeneration": transformers.AutoModelForImageTextToText,
    }
    return next((kind for suffix, kind in kinds.items() if architecture.endswith(suffix)), None)


class HFModel:
    """transformers: batches sorted by length, halved where the device's memory does not hold them."""

    def __init__(self, folder: Path, architecture: str, dtype: str, device: str, batch_size: int):
        self.tokenizer = checkpoints.load_tokenizer(folder)
        self._batch_size, self._device = batch_size, device
        self._fewer: list[int] = []  # prompts at once, where memory asked for it
        self._model = checkpoints.load_model(folder, dtype, device, kind=_kind(architecture))
        self._model.eval()
        self.context_tokens = model_limits.context_tokens(self._model)
        self._rows = model_limits.embedding_rows(self._model)

    def close(self) -> None:
        self.__dict__.pop("_engine", None)
        del self._model
        devices.free_device()

    @functools.cached_property
    def _engine(self) -> Any:
        """One for all calls: it takes the model's generation settings, stop tokens among them, off it."""
        from harness.engines.hf import HFEngine

        return HFEngine(self._model, self.tokenizer, self._batch_size)

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> list[str]:
        def some(rows: Sequence[int]) -> list[str]:
            request = Request(max_tokens, came_down_to=tuple(self._fewer), on_fewer=self._fewer.append)
            ids = self._engine.generate([prompts[row] for row in rows], request)
            return [chat.text_of(self.tokenizer, one) for one in ids]

        return self._in_batches(some, [len(prompt) for prompt in prompts])

    def choose(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
        import torch

        for ids in (*prompts, tokens):
            model_limits.check_ids(self.tokenizer, ids, self._rows, "a judge's prompt")

        @torch.inference_mode()  # type: ignore[untyped-decorator]
        def some(rows: Sequence[int]) -> list[list[float]]:
            width = max(len(prompts[row]) for row in rows)
            ids = torch.zeros((len(rows), width), dtype=torch.long)
            mask = torch.zeros((len(rows), width), dtype=torch.long)
            for place, row in enumerate(rows):
                ids[place, width - len(prompts[row]) :] = torch.tensor(prompts[row])
                mask[place, width - len(prompts[row]) :] = 1
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = self._model(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                position_ids=positions.to(self._device),
            ).logits[:, -1]  # (rows, V)
            chosen: list[list[float]] = logits[:, list(tokens)].float().softmax(-1).tolist()
            return chosen

        return self._in_batches(some, [len(prompt) for prompt in prompts])

    def classify(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        import torch

        config = self._model.config
        several = config.problem_type == "multi_label_classification" or config.num_labels == 1

        @torch.inference_mode()  # type: ignore[untyped-decorator]
        def some(rows: Sequence[int]) -> list[dict[str, float]]:
            firsts, seconds = zip(*(pairs[row] for row in rows), strict=True)
            texts = (list(firsts), list(seconds)) if any(firsts) else (list(seconds),)
            batch = self.tokenizer(*texts, padding=True, return_tensors="pt").to(self._device)
            for ids in batch["input_ids"].tolist():
                model_limits.check_ids(self.tokenizer, ids, self._rows, "a judge's prompt")
            logits = self._model(**batch).logits.float()
            found = logits.sigmoid() if several else logits.softmax(-1)
            return [
                {config.id2label[place]: value for place, value in enumerate(row)} for row in found.tolist()
            ]

        return self._in_batches(some, [len(request) + len(answer) for request, answer in pairs])

    def _in_batches(self, work: Any, lengths: Sequence[int]) -> list[Any]:
        """``work`` on rows of like length at a time; a batch that does not fit is halved, down to one row."""
        import torch

        order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
        found: dict[int, Any] = {}
        size = self._batch_size
        while order:
            rows = order[:size]
            try:
                found |= zip(rows, work(rows), strict=True)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise HarnessError(
                        "the judge's model does not fit this device with one exchange"
                    ) from None
                torch.cuda.empty_cache()
                size = math.ceil(size / 2)
                continue
            del order[: len(rows)]
        return [found[row] for row in range(len(lengths))]


class VLLMModel:
    """vLLM, in a process of its own. It makes its batches itself, whatever ``batch_size`` says."""

    def __init__(self, folder: Path, architecture: str, dtype: str, device: str, batch_size: int):
        from harness.engines.vllm_process import Replica

        checkpoints.check(folder)
        self._rows = checkpoints.fit_for_vllm(checkpoints.Checkpoint(folder), _kind(architecture))
        self.tokenizer = checkpoints.load_tokenizer(folder)
        self._stops = sorted(
            checkpoints.stop_ids(checkpoints.declared_stops(folder), self.tokenizer, self._rows)
        )
        self._replica = Replica(
            folder,
            device,
            dtype=dtype,
            enforce_eager=device == "cpu",
            generation_config="vllm",
            config_format="hf",  # and not Mistral's own files, which have not been checked
            load_format="safetensors",
            logprobs_mode="processed_logprobs",
            structured_outputs_config=NO_BLANKS,
        )
        try:
            self.context_tokens = self._replica.context_tokens
        except BaseException as error:
            self._replica.kill()
            if isinstance(error, HarnessError):
                raise HarnessError(f"judging.engine vllm: {folder}: {error}") from error
            raise

    def close(self) -> None:
        self._replica.close()

    def _ask(self, prompts: Sequence[list[int]], **sampling: Any) -> list[Made]:
        from harness.engines import vllm_process

        for ids in prompts:
            model_limits.check_ids(self.tokenizer, ids, self._rows, "a judge's prompt")
        return vllm_process.generate([self._replica], prompts, [sampling] * len(prompts))

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> list[str]:
        held = {"structured_outputs": dict(schema)} if schema is not None else {}
        made = self._ask(
            prompts,
            temperature=0.0,
            max_tokens=max_tokens,
            stop_token_ids=self._stops,
            detokenize=False,
            **held,
        )
        return [chat.text_of(self.tokenizer, one.ids) for one in made]

    def choose(self, prompts: Sequence[list[int]], tokens: Sequence[int]) -> list[list[float]]:
        made = self._ask(
            prompts,
            temperature=1.0,
            seed=0,
            max_tokens=1,
            logprobs=len(tokens),
            allowed_token_ids=list(tokens),
            detokenize=False,
        )
        return [[math.exp(one.logprobs[0][token]) for token in tokens] for one in made]

    def classify(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        raise HarnessError("a classifier is loaded with transformers")


MODELS: dict[str, type[HFModel] | type[VLLMModel]] = {"hf": HFModel, "vllm": VLLMModel}  # by judging.engine
