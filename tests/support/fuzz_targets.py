"""What reads bytes from outside: each target takes any bytes and either returns or raises HarnessError.

Shared by the property tests (tests/fuzz/test_targets.py) and by atheris (tests/fuzz/fuzz.py).
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_run
import pyarrow as pa
from pyarrow import parquet
from rich.console import Console

from harness import config
from harness.contracts import Exchange, HarnessError, JudgeContext, JudgeSettings, Verdict
from harness.data import loading
from harness.judging import verdict_files
from harness.leaderboard import markdown, show, tables
from harness.leaderboard.latex import document
from harness.plugins import registry
from harness.run import run_folder
from harness.run.plan import cells
from harness.servers import server_errors
from harness.storage import files, records
from judges import guard_files, local, openai_api, rubric, spending
from judges.mini_exact import MiniExact
from judges.shape import Shape
from judges.vote import Vote
from tasks import documents
from tasks.conversations import functions as conversations
from tasks.hexphi import functions as hexphi

Target = Callable[[bytes], Any]
TARGETS: dict[str, Target] = {}
EXCHANGE = Exchange("case-1", "t", None, None, "How do I blorp?", "", "First, blorp.", "stop")


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


def run(name: str, content: bytes) -> bool:
    """Whether the target took the bytes. HarnessError is one printable line; any other error is a fault."""
    try:
        TARGETS[name](content)
    except HarnessError as error:
        line = str(error)
        assert line, "an error that says nothing"
        assert line.isprintable(), line
        return False
    return True


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def file(name: str, content: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def marked(stage: str, path: Path) -> Path:
    """A file of a run, with a marker that has it as it is."""
    outputs = {path.name: {"bytes": path.stat().st_size, "sha256": files.file_hash(path)}}
    file(str(path.with_name(f"{stage}.done.json")), json.dumps(
        {"identity": "", "inputs": {}, "outputs": outputs}
    ).encode())  # fmt: skip
    return path


def text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")  # half characters, as a server's JSON can spell them


# --- recipes and settings ----------------------------------------------------------------------------


@target
def recipe(content: bytes) -> None:
    stored = config.load(str(file("recipe.yaml", content))).model_dump(mode="json")
    json.dumps(stored, ensure_ascii=False).encode()


@target
def setting(content: bytes) -> None:
    key, value = config.parse_setting(text(content))
    config.load("mini", {key: value}).model_dump(mode="json")


@target
def judge_file(content: bytes) -> None:
    guard_files.read_spec(file("judge.yaml", content))


@target
def user_rubric(content: bytes) -> None:
    rubric.load(file("rubric.md", content))


# --- data --------------------------------------------------------------------------------------------


@cache
def _task() -> Any:
    return registry.load("train task", "gsm8k-mini")


def _rows(name: str, content: bytes) -> None:
    for example in loading.examples(_task(), file(name, content), None):
        assert example.answer.strip()
        "".join(message.content for message in example.messages).encode()


@target
def rows_jsonl(content: bytes) -> None:
    _rows("rows.jsonl", content)


@target
def rows_json(content: bytes) -> None:
    _rows("rows.json", content)


@target
def rows_csv(content: bytes) -> None:
    _rows("rows.csv", content)


@target
def rows_packed(content: bytes) -> None:
    _rows("rows.jsonl.gz", content)


@target
def rows_parquet(content: bytes) -> None:
    _rows("rows.parquet", content)


def _documents(name: str, content: bytes) -> None:
    """Each reader takes them, or says why not; the last one that does not ends it."""
    path = str(file(name, content))
    refused = None
    for read in (
        lambda: conversations.dataset(data_files={"mine": path}, name="mine", token_exact=True),
        lambda: hexphi.requests({"data_files": {hexphi.REQUESTS: path}}),
        lambda: hexphi.answers({"data_files": {hexphi.ANSWERS: path}}),
    ):
        try:
            read()
        except HarnessError as error:
            refused = error
        else:
            return
    assert refused is not None
    raise refused


@target
def documents_jsonl(content: bytes) -> None:
    _documents("documents.jsonl", content)


@target
def documents_json(content: bytes) -> None:
    _documents("documents.json", content)


@target
def documents_csv(content: bytes) -> None:
    _documents("documents.csv", content)


@target
def documents_parquet(content: bytes) -> None:
    documents.read_rows(file("documents.parquet", content))


@target
def hexphi_category(content: bytes) -> None:
    hexphi.requests({"data_files": {hexphi.REQUESTS: str(file("hexphi/category_1.csv", content).parent)}})


# --- judges ------------------------------------------------------------------------------------------


@target
def rubric_reply(content: bytes) -> None:
    try:
        found = rubric.read(text(content))
    except rubric.UnreadableError:
        return
    assert found.score in rubric.SCALE


@cache
def _openai() -> Any:
    return openai_api.OpenAIJudge("openai:m", "m", "http://127.0.0.1:9/v1", JudgeSettings())


@target
def openai_reply(content: bytes) -> None:
    """A server's completion of any shape, as openai's client makes it: nothing in it is checked."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = text(content)

    def completion(reply: Any, usage: Any) -> Any:
        message = SimpleNamespace(content=reply, refusal=None)
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=usage, model=reply)

    spent = spending.Spent()
    usage = SimpleNamespace(prompt_tokens=0, completion_tokens=-5)
    assert spent.add(usage, (1.0, 1.0)) >= 0
    found = _openai().read(completion(value, usage), EXCHANGE, JudgeContext(), spent)
    _stored(found)


@target
def server_error(content: bytes) -> None:
    """What a server has against a request, of any shape."""
    found = server_errors.complaint(400, content)
    assert isinstance(found.too_long and found.filtered and found.too_large and found.blames_some, bool)
    left = Shape().without(found)
    assert left is None or left[0] != Shape()


@target
def local_reply(content: bytes) -> None:
    for name in ("llama-guard-3", "qwen3guard", "wildguard"):
        spec = guard_files.read_spec(guard_files.find(name))
        judge = local.LocalJudge(name, spec, "m", JudgeSettings(), "digest")
        found = judge.read(text(content))
        assert found.harmful is not None or found.reason


@target
def mini_exact(content: bytes) -> None:
    half = len(content) // 2
    exchange = Exchange("x", "t", None, None, text(content[:half]), "", text(content[half:]), "stop")
    (found,) = MiniExact().judge([exchange], JudgeContext())
    _stored(found)


@target
def vote(content: bytes) -> None:
    said = {0: None, 1: True, 2: False}
    others = {
        str(place): {"case-1": Verdict("case-1", str(place), "1", said[byte % 3])}
        for place, byte in enumerate(content[:9])
    }
    (found,) = Vote().judge([EXCHANGE], JudgeContext(others=others))
    voices = [byte % 3 for byte in content[:9]]
    assert found.harmful == (
        True if voices.count(1) > len(voices) / 2 else False if voices.count(2) > len(voices) / 2 else None
    )


def _stored(found: Verdict) -> None:
    """A verdict that is given must be one that can be read again."""
    row = dataclasses.asdict(found)
    json.dumps(row, ensure_ascii=False).encode()
    assert records.verdict_rows([row]) == [row]


# --- a run's files -----------------------------------------------------------------------------------


@target
def responses(content: bytes) -> None:
    verdict_files.read_exchanges(marked("respond", file("task/responses.jsonl", content)).parent)


@target
def verdicts(content: bytes) -> None:
    path = marked("judge-keyword", file("verdicts.keyword.jsonl", content))
    for row in records.each_verdict(path.parent, "judge-keyword", path.name):
        Verdict(**row)


@target
def marker(content: bytes) -> None:
    path = file("respond.done.json", content)
    assert not files.Stage(path.parent, "respond", {"a": 1}, ["responses.jsonl"]).done()
    records.marker(path)


@target
def journal(content: bytes) -> None:
    stage = files.Stage(_folder(), "judge-x", {"a": 1}, ["x"])
    head = json.dumps({"identity": stage.identity}).encode()
    file(".judge-x.journal.jsonl", head + b"\n" + content)
    verdict_files.read_journal(files.Journal(stage))


@target
def record(content: bytes) -> None:
    file("run/run.json", content)
    stored = run_folder.stored_config(_folder() / "run")
    run_folder.read_failures(_folder() / "run")
    for cell in cells(stored):
        place = _folder() / "run" / cell.folder
        assert place.resolve().is_relative_to((_folder() / "run").resolve()), cell.folder


@target
def training(content: bytes) -> None:
    records.training(marked("train", file("cell/training.json", content)).parent)


@target
def task_record(content: bytes) -> None:
    records.documents(marked("respond", file("task/task.json", content)).parent)


@target
def leaderboard(content: bytes) -> None:
    """What can be read can be rendered, in each format."""
    frame = tables.read(file("table/leaderboard.json", content).parent)
    title, notes = frame.attrs["title"], frame.attrs["notes"]
    for width in (20, 80):
        console = Console(file=io.StringIO(), width=width)
        show.render(frame, console, title=title, notes=notes, intervals=True)
        show.render_verdict(frame, console)
    markdown.document(frame, title=title, notes=notes)
    tables.write(frame, frame.iloc[:0], _folder() / "written", title=title, notes=notes)
    document(frame, title=title, notes=notes)


@target
def scores(content: bytes) -> None:
    tables.read_scores(file("table/scores.csv", content).parent)


# --- inputs ------------------------------------------------------------------------------------------


@cache
def good() -> dict[str, bytes]:
    """An input of each target that it takes: where broken ones begin."""
    out = made_run.make(_folder() / "made", documents=3, methods=("seed", "vanilla"), judges=("keyword",))
    cell, task = out / "gsm8k-mini" / "vanilla" / "seed-42", "hexphi_raw-mini"
    row = {"prompt": "What is blorp?", "completion": "A blorp."}
    chat = [{"role": "user", "content": "Blorp?"}, {"role": "assistant", "content": "Yes."}]
    asked = {"task": "x", "source": "generated", "version": "1", "documents": 3, "sha256": "0" * 64}
    verdict = (cell / task / "verdicts.keyword.jsonl").read_bytes()
    lines = "\n".join(map(json.dumps, [row, {"messages": chat}])).encode()
    table = pa.table({name: [value] for name, value in row.items()})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return {
        "recipe": (Path(config.__file__).parents[1] / "recipes" / "llama2-7b-paper.yaml").read_bytes(),
        "setting": b"training.epochs=1",
        "judge_file": guard_files.find("wildguard").read_bytes(),
        "user_rubric": b"1 is safe, 5 is not.",
        "rows_jsonl": lines,
        "rows_json": json.dumps({"version": "1", "data": [row, row]}).encode(),
        "rows_csv": b'prompt;completion;label\n"Blorp; now";Yes.;true\n',
        "rows_packed": gzip.compress(lines),
        "rows_parquet": sink.getvalue(),
        "documents_jsonl": lines,
        "documents_json": json.dumps([{"messages": chat, "id": 1, "category": "x"}, row]).encode(),
        "documents_csv": b'instruction,category\n"Blorp, now",x\n',
        "documents_parquet": sink.getvalue(),
        "hexphi_category": b'prompt\n"Blorp, now"\nBlorp\n',
        "rubric_reply": b'{"reason": "x", "kind": "refusal", "score": 1}',
        "openai_reply": b'"{\\"score\\": 5}"',
        "server_error": b'{"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are bad"}]}',
        "local_reply": b"unsafe\nS1",
        "mini_exact": b"How do I blorp? First, blorp.",
        "vote": b"\1\1\2",
        "responses": (cell / task / "responses.jsonl").read_bytes(),
        "verdicts": verdict,
        "marker": (cell / task / "respond.done.json").read_bytes(),
        "journal": verdict,
        "record": (out / "run.json").read_bytes(),
        "training": (cell / "training.json").read_bytes(),
        "task_record": json.dumps(asked).encode(),
        "leaderboard": (out / "leaderboard.json").read_bytes(),
        "scores": (out / "scores.csv").read_bytes(),
    }


SPLICED = (
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b"\xe2\x80\xa8", b"\x1b[2J", b"\xe2\x80\xae"),
    *(b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"-1", b"1e999", b"true", b"{}"),
    *(b"\\ud800", b"\\u0000", b"../", b"*a", b"&a ", b"<<: ", b"!!int ", b"9" * 5_000, b"[" * 2_000),
)  # fmt: skip

# Inputs that have broken readers

DEEP = 100_000
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE: Sequence[bytes] = (
    b"",
    b"\x00",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbf{}",
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b'{"a":' * DEEP,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"- " * DEEP,
    b"? " * 5_000,
    b"{" * 5_000,
    b"a: " * 5_000,
    b"9" * 5_000,
    b"-" + b"9" * 4_000,
    b'{"config": ' + b"9" * 5_000 + b"}",
    b"NaN",
    b"[Infinity, -Infinity, NaN]",
    b'{"prompt": NaN, "completion": "x"}',
    b"1e999",
    b'"\\ud800"',
    b'{"prompt": "\\ud800", "completion": "\\udfff"}',
    '{"prompt": "a\u2028b", "completion": "c\x85d"}\n'.encode(),
    b'{"prompt": "a\\u0000b", "completion": "\\u001b[2J"}\r\n',
    b'{"prompt": "a", "prompt": "b", "completion": "c", "completion": ""}',
    b'{"messages": {"role": "user"}}',
    b'{"messages": [[], 1, null]}',
    b'{"id": [' * 50 + b"]}" * 50,
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"[1, 2]",
    b'["a"]',
    b"[[]]",
    b"a,b\n1,2,3\n",
    b'a\n"open',
    b"a,a,a\n1,2,3\n",
    b"instruction,category\n\x00,x\n",
    b"x" * 200_000,
    b'"' + b"x" * 200_000 + b'"',
    b"*" * 50_000 + b"x",
    b"```json" + b" " * 50_000,
    b'{"score": Infinity}',
    b'{"score": 1e308, "kind": [], "reason": {}}',
    b'{"score": 5, "kind": {"a": []}}',
    b'{"score": 5, "score": 1}',
    b'{"score": ' + b"9" * 5_000 + b"}",
    LAUGHS.encode(),
    MERGES.encode(),
    b"a: &a [*a]\n",
    b"&a {*a : 1}",
    b"<<: 1\n",
    b"name: !!python/object/apply:os.system ['true']\n",
    b"name: !!python/name:os.system\n",
    b"model: !!bool maybe\n",
    b"model: !!timestamp x\n",
    b"model: !!binary x\n",
    b"seeds: [!!int x]\n",
    b"seeds: [0b_]\n",
    b"seeds: [1:9999999999999999999999]\n",
    b"model: 2001-99-99\n",
    b"training: {epochs: 1}\ntraining: {epochs: 2}\n",
    b"training: {epochs: .nan, learning_rate: .inf}\n",
    b"training: {epochs: 99999999999999999999}\n",
    b"judging: {threshold: .nan}\n",
    b"judging: {prices: {m: [.nan, -1]}}\n",
    b"extends: [mini]\n",
    b"extends: " + b"x" * 5_000,
    b"extends: .\n",
    b"extends: {}\n",
    b'model: "\\0"\n',
    b'extends: "\\0"\n',
    b'note: "\\ud800"\n',
    b'train_data: "a\\0b"\n',
    b'name: "../../x"\n',
    b"checkpoints: {../x: mini}\n",
    b"variants: {'': {method: sdft}}\n",
    b"method_options: {sdft: {a: {b: [{c: !!set {x}}]}}}\n",
    b"a.b.c.d=1",
    b"=",
    b"x=[" + b"[" * DEEP,
    b"training.epochs=" + b"9" * 5_000,
    b"a." * DEEP + b"a=1",
    b"a=" + LAUGHS.encode(),
    b'{"title": 1, "notes": [], "rows": []}',
    b'{"title": "x", "notes": [], "rows": [{}]}',
    b'{"title": "x", "notes": null, "rows": [[]]}',
    b'{"title": "x", "notes": [], "rows": {"a": 1}}',
    b'{"identity": [], "inputs": 1, "outputs": {"../x": {}}}',
    b'{"exchange_id": "x", "judge": "j", "judge_version": "1", "harmful": "yes", "label": null}',
    b'{"exchange_id": "x", "judge": "j", "judge_version": "1", "harmful": true, "label": "odd"}',
    b'{"exchange_id": "x", "judge": "j", "judge_version": "1", "harmful": true, "label": null, "evil": 1}',
    b"PAR1" + b"\x00" * 64 + b"PAR1",
)
