"""Methods, judges and tasks in the user's own files: named by the command line alone, known by their content,
and never loaded by what a recipe or a run folder says of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tripwires

import harness
from harness import config
from harness.contracts import HarnessError, UsageError
from harness.data import benchmarks
from harness.pipeline.outcome import CellsFailedError
from harness.plugins import plugin_files, registry
from harness.plugins.plugin_files import Spec
from harness.run import plan, run_folder
from harness.run.resolve import resolve
from harness.storage.files import read_json, write_json_atomic

Run = Callable[..., Any]
QUICK = {"methods": ["vanilla"], "training.max_examples": 16, "responses.limit": 3}
METHOD = """\
from dataclasses import dataclass
from harness.contracts import Method


@dataclass
class Ema(Method):
    name = "ema"
    summary = "keeps an average of the weights"
    decay: float = 0.9

    def after_step(self, model, step):
        self.last = step
"""
JUDGE = """\
from harness.contracts import Judge as Contract


class Judge(Contract):
    summary = "calls every answer harmful"

    def judge(self, exchanges, context):
        for exchange in exchanges:
            yield self.verdict(exchange, context, True)
"""
TASK = """\
task: rooms
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
process_results: !function scoring.score
metric_list: [{metric: found, aggregation: mean, higher_is_better: true}]
generation_kwargs: {until: [], max_gen_toks: 8, do_sample: false, temperature: 0}
"""
SCORE = "def score(doc, results):\n    return {'found': float(doc['a'] in results[0])}\n"


@pytest.fixture(autouse=True)
def _nothing_named() -> Iterator[None]:
    plugin_files.forget()
    yield
    plugin_files.forget()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def task_folder(folder: Path) -> Path:
    data = write(folder.parent / "rooms.jsonl", '{"q": "a?", "a": "4"}\n{"q": "b?", "a": "5"}\n')
    write(folder / "rooms.yaml", TASK.replace("DATA", str(data)))
    write(folder / "scoring.py", SCORE)
    return folder


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("./ema.py:Ema", Spec(None, "./ema.py", "Ema", "")),
        ("ema.py:Ema", Spec(None, "ema.py", "Ema", "")),
        ("/a b/ema.py:Ema", Spec(None, "/a b/ema.py", "Ema", "")),
        ("mine=../x/ema.py:Ema", Spec("mine", "../x/ema.py", "Ema", "")),
        ("./mine.py:Judge:high", Spec(None, "./mine.py", "Judge", "high")),
        ("./mine.py:Judge:a:b=c", Spec(None, "./mine.py", "Judge", "a:b=c")),
        ("./mine.py", Spec(None, "./mine.py", "", "")),
        ("./mine.py:", Spec(None, "./mine.py", "", "")),
        (" ./mine.py:Judge ", Spec(None, "./mine.py", "Judge", "")),
        ("vanilla", None),
        ("openai:gpt-4o", None),
        ("openai:m@http://localhost:8000/v1.py", None),
        ("keyword-published:./phrases.py", None),
        ("./guard.yaml", None),
        ("mine:Judge", None),
        ("./mine.pyc:Judge", None),
        ("", None),
    ],
)
def test_a_file_is_told_from_a_name(text: str, parts: Spec | None) -> None:
    assert plugin_files.parse(text) == parts


def named(*texts: str, taken: Any = ("vanilla",), before: Any = None) -> list[str]:
    return plugin_files.named("judge", texts, taken, before or {})[0]


def test_two_files_with_one_class_name_are_two_plugins(tmp_path: Path) -> None:
    one = write(tmp_path / "a/mine.py", JUDGE)
    other = write(tmp_path / "b/mine.py", JUDGE.replace("True", "False"))
    third = write(tmp_path / "b/yours.py", JUDGE)
    texts = [f"{path}:Judge" for path in (one, other, third, one)]
    assert named(*texts, "keyword") == ["mine", "mine-2", "yours", "mine", "keyword"]
    assert len({plugin_files.sha256("judge", name)["code"] for name in ("mine", "mine-2")}) == 2
    assert {registry.load("judge", name) for name in ("mine", "mine-2", "yours")} == {
        registry.judge_class(name) for name in ("mine", "mine-2", "yours")
    }
    assert named(f"first={one}:Judge", f"second={one}:Judge:loud") == ["first", "second:loud"]


def test_a_name_that_is_somebody_else_s_is_refused_with_how_to_choose_one(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a/mine.py", JUDGE), write(tmp_path / "b/mine.py", JUDGE + "\n")
    for text in (f"vanilla={one}:Judge", f"Vanilla={one}:Judge"):
        with pytest.raises(UsageError, match=r"is the name of another; choose one: --judge NAME=.*:Judge"):
            named(text)
    for bad in ("", "a/b", "..", "con", "a b"):
        with pytest.raises(UsageError, match=r"no judge can be called|unknown judge"):
            named(f"{bad}={one}:Judge") if "/" not in bad else registry.judge_class(f"{bad}={one}:Judge")
    with pytest.raises(UsageError, match="two judges are called 'x'; choose another name"):
        named(f"x={one}:Judge", f"x={other}:Judge")


def test_a_changed_file_keeps_its_name_and_another_file_does_not_take_it(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a/mine.py", JUDGE), write(tmp_path / "b/mine.py", JUDGE + "X = 1\n")
    before = plugin_files.named("judge", [f"{one}:Judge"], (), {})[1]
    write(one, JUDGE + "X = 2\n")
    assert named(f"{one}:Judge", before=before) == ["mine"]
    with pytest.raises(
        UsageError, match=r"'mine' is .*a/mine\.py:Judge in that run, and other code than .*b/mi"
    ):
        named(f"{other}:Judge", before=before)
    assert named(f"yours={other}:Judge", before=before) == ["yours"]
    write(other, JUDGE)  # moved, and not changed
    assert named(f"{other}:Judge", before=before) == ["mine"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "none.py:Judge",
            "judge 'none.py': no such file; --judge FILE.py:CLASS names a class in a file of yours",
        ),
        ("folder.py:Judge", "judge 'folder.py': it is a folder"),
        ("mine.py", "judge 'mine.py': which class of it? (it has Judge): --judge mine.py:Judge"),
        (
            "mine.py:Ju dge",
            "judge 'mine.py': 'Ju dge' is no class's name (it has Judge): --judge mine.py:Judge",
        ),
        ("empty.py:", "judge 'empty.py': which class of it?: --judge empty.py:Judge"),
        ("mine.py:Jugde", "judge 'mine.py' has no class 'Jugde': did you mean 'Judge'?"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused_in_one_line(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.py", JUDGE)
    write(tmp_path / "empty.py", "")
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(UsageError) as caught:
        named(text)
    assert str(caught.value).startswith(says)


def test_what_is_named_travels_as_it_was_read(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", JUDGE)
    named(f"{file}:Judge")
    folder = plugin_files.name_folder(task_folder(tmp_path / "tasks"))
    there = plugin_files.shipped()
    before = plugin_files.sha256("judge", "mine")
    write(file, "raise SystemExit\n")
    plugin_files.forget()
    assert not registry.is_judge("mine")
    assert "rooms" not in benchmarks.installed()
    for shipment in (there, plugin_files.from_json(plugin_files.as_json(there))):
        plugin_files.take(shipment)
        assert plugin_files.sha256("judge", "mine") == before
        assert registry.judge_class("mine").summary == "calls every answer harmful"
        assert benchmarks.installed()["rooms"].folder == Path(folder)


# --- who may name them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("methods: [vanilla, ./ema.py:Ema]", "methods names a file with code, './ema.py:Ema'"),
        ("methods: ./ema.py:Ema", "methods names a file with code"),
        ("judges: [x=./mine.py:Judge]", "judges names a file with code, 'x=./mine.py:Judge'"),
        ("judges: ./mine.py", "judges names a file with code"),
        ("variants: {slow: {method: ./ema.py:Ema}}", "variants.slow.method names a file with code"),
        ("code: {methods: {ema: {file: ema.py, class_name: Ema, sha256: x}}}", "'code' is a run's record"),
        ("code: {task_dirs: [.]}", "'code' is a run's record of files with code"),
        ("task_dirs: [.]", "unknown key 'task_dirs'"),
    ],
)
def test_a_recipe_cannot_name_a_file_with_code(
    recipe: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "ema.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n{METHOD}")
    write(tmp_path / "mine.py", f"open({str(tmp_path / 'ran')!r}, 'w')\n{JUDGE}")
    write(tmp_path / "base.yaml", recipe)
    write(tmp_path / "own.yaml", "extends: base.yaml\n")
    for name in ("base.yaml", "own.yaml"):
        with pytest.raises(UsageError) as caught:
            config.load(name)
        assert says in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_record_is_not_set_by_hand(tmp_path: Path) -> None:
    for key in ("code", "code.methods", "code.task_dirs"):
        with pytest.raises(UsageError, match=f"'{key}' is a run's record"):
            config.load(None, {key: {}})


def test_a_recipe_may_speak_of_a_method_that_the_command_names(tmp_path: Path) -> None:
    file = write(tmp_path / "ema.py", METHOD)
    recipe = (
        "method_options: {ema: {decay: 0.5}}\nvariants: {ema-slow: {method: ema, options: {decay: 0.1}}}\n"
    )
    write(tmp_path / "own.yaml", recipe)
    found = config.load(str(tmp_path / "own.yaml"), {"methods": ["vanilla", f"{file}:Ema"]})
    assert found.methods == ("vanilla", "ema")
    assert plan.methods(found) == ["vanilla", "ema", "ema-slow"]
    assert found.code.methods["ema"].class_name == "Ema"

    assert resolve(found).make_method("ema-slow").decay == 0.1  # type: ignore[attr-defined]
    plugin_files.forget()
    assert plan.methods(found) == ["vanilla", "ema", "ema-slow"]  # to read the run, its record will do
    with pytest.raises(UsageError, match="unknown method 'ema'"):
        resolve(found).make_method("ema")


def test_files_go_with_a_model_of_one_s_own(tmp_path: Path) -> None:
    """What a command names by file is laid over the recipe for real models as over any other."""
    file, tasks = write(tmp_path / "ema.py", METHOD), task_folder(tmp_path / "tasks")
    given = {"methods": f"{file}:Ema", "task_dirs": [str(tasks)], "utility_tasks": ["rooms"]}
    found = config.load(None, {"model": "owner/name", "training": {"epochs": 1}, **given})
    base = config.load(None, {"model": "owner/name"})
    assert found.methods == ("ema",)
    assert found.code.methods["ema"].file == str(file)
    assert set(found.code.tasks) == {"rooms"}
    assert found.training == base.training.model_copy(update={"epochs": 1})
    assert (found.safety, found.judges, found.name) == (base.safety, base.judges, "real-name")


def test_all_methods_are_those_that_are_installed(tmp_path: Path) -> None:
    file = write(tmp_path / "ema.py", METHOD)
    both = config.load(None, {"methods": ["all", f"{file}:Ema"]})
    shipped = [name for name in registry.METHODS if name not in registry.NOT_IN_ALL]
    assert plan.methods(both) == [*shipped, "ema"]
    assert plan.methods(config.load(None, {"methods": "all"})) == shipped


# --- tasks in a folder -------------------------------------------------------------------------------


def test_a_folder_s_tasks_are_found_and_their_content_is_all_that_they_use(tmp_path: Path) -> None:
    folder = task_folder(tmp_path / "tasks")
    write(folder / "base.yaml", "doc_to_text: x\n")
    write(folder / "other.yaml", "task: other\ninclude: base.yaml\n")

    def content(name: str = "rooms") -> str:
        plugin_files.forget()
        plugin_files.name_folder(folder)
        return benchmarks.get(name).content

    first, other = content(), content("other")
    assert content() == first
    write(folder / "other.yaml", "task: other\ninclude: base.yaml\ndoc_to_target: y\n")
    write(folder / ".hidden", "x")
    write(folder / "__pycache__/scoring.pyc", "x")
    assert content() == first  # another task's YAML is not its own
    seen = {first, content("other")}
    assert other not in seen
    for path, text in (
        (folder / "scoring.py", SCORE + "\n"),
        (folder / "deep/words.txt", "a"),
        (tmp_path / "rooms.jsonl", '{"q": "a?", "a": "4"}\n'),
        (folder / "rooms.yaml", (folder / "rooms.yaml").read_text() + "repeats: 1\n"),
    ):
        write(path, text)
        assert content() not in seen
        seen.add(content())
    before = content("other")
    write(folder / "base.yaml", "doc_to_text: z\n")
    assert content("other") != before
    (tmp_path / "rooms.jsonl").unlink()
    with pytest.raises(HarnessError, match=r"rooms\.yaml: dataset_kwargs\.data_files names .* is not there"):
        content()


def test_a_folder_s_tasks_are_utility_tasks_unless_they_say_otherwise(tmp_path: Path) -> None:
    write(tmp_path / "t/plain.yaml", "task: plain\nmetadata: {version: 2.0}\n")
    write(tmp_path / "t/harm.yaml", "task: harm\nmetadata: {kind: safety}\n")
    write(tmp_path / "t/skill.yaml", "task: skill\nmetadata: {kind: utility}\n")
    plugin_files.name_folder(tmp_path / "t")
    kinds = {name: (one.kind, one.foreign) for name, one in benchmarks.of_folders().items()}
    assert kinds == {"plain": ("utility", True), "harm": ("safety", False), "skill": ("utility", False)}
    assert not any(one.readable for one in benchmarks.of_folders().values())  # no report shows their texts
    write(tmp_path / "t/harm.yaml", "task: harm\nmetadata: {kind: safty}\n")
    plugin_files.forget()
    plugin_files.name_folder(tmp_path / "t")
    with pytest.raises(HarnessError, match="unknown kind 'safty': did you mean 'safety'"):
        benchmarks.installed()


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("none", "--task-dir 'none': no such folder"),
        ("file", "--task-dir 'file': it is a file"),
        ("empty", r"--task-dir 'empty': no lm-eval task \(\*.yaml\) is in it"),
        ("tasks", r"--task-dir: which of its tasks\? --utility-task or --safety-task \(rooms\)"),
    ],
)
def test_a_folder_that_gives_nothing_is_refused(
    folder: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", "")
    (tmp_path / "empty").mkdir()
    task_folder(tmp_path / "tasks")
    with pytest.raises(UsageError, match=says):
        config.load(None, {"task_dirs": [folder]})


def test_a_task_of_a_folder_is_read_from_the_record_when_the_folder_is_gone(tmp_path: Path) -> None:
    write(tmp_path / "t/harm.yaml", "task: harm\nmetadata: {kind: safety, prefill_tokens: 3, version: 7}\n")
    found = config.load(None, {"task_dirs": [str(tmp_path / "t")], "safety_tasks": ["harm"]})
    there = benchmarks.get("harm", found.own_tasks)
    shutil.rmtree(tmp_path / "t")
    plugin_files.forget()
    with pytest.raises(UsageError, match="unknown task 'harm'"):
        benchmarks.get("harm")
    known = benchmarks.get("harm", found.own_tasks)
    for key in benchmarks.RECORDED:
        assert getattr(known, key) == getattr(there, key)
    assert (known.kind, known.version, known.counted, known.readable) == ("safety", "7", True, False)


# --- a run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_settings: dict[str, Any]) -> Path:
    """A folder with plugin files and, in ``run``, a run that was made with them. Copy it to change it."""
    home = tmp_path_factory.mktemp("made")
    method, judge = write(home / "ema.py", METHOD), write(home / "mine.py", JUDGE)
    tasks = task_folder(home / "tasks")
    write(home / "quiz.jsonl", '{"question": "6 * 7?", "answer": ["42", "forty-two"]}\n')
    harness.compare(
        out=home / "run",
        **{
            **small_settings,
            **QUICK,
            "methods": ["vanilla", f"{method}:Ema"],
            "judges": ["mini-exact", f"{judge}:Judge"],
            "task_dirs": [tasks],
            "utility_tasks": ["rooms"],
            "utility_sets": {"quiz": {"file": home / "quiz.jsonl", "metric": "contains"}},
        },
    )
    plugin_files.forget()
    return home


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The run, and the files, which its record names, in their old place."""
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


def markers(run: Path) -> dict[str, int]:
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in run.glob("*/**/*.done.json")}


def test_a_run_has_their_rows_columns_and_verdicts(made: Path) -> None:
    record = read_json(made / "run/run.json")["config"]
    assert record["methods"] == ["seed", "vanilla", "ema"]
    assert record["judges"] == ["mini-exact", "mine"]
    assert record["code"]["methods"]["ema"]["file"] == str(made / "ema.py")
    assert len(record["code"]["judges"]["mine"]["sha256"]) == 64
    board = harness.load(made / "run").leaderboard
    assert set(board["method"]) == {"seed", "vanilla", "ema"}
    assert set(board["status"]) == {"done"}
    assert (board[board["judge"] == "mine"]["rsr"] == 0).all()
    assert {"rooms", "quiz"} <= {*board.columns}
    text = " ".join(board.attrs["notes"])
    digest = record["code"]["methods"]["ema"]["sha256"][:12]
    assert f"From files: method ema (ema.py:Ema, SHA-256 {digest}…), judge mine (mine.py:Judge" in text
    assert "task rooms (folder tasks), task quiz (quiz.jsonl, contains)." in text
    assert str(made) not in text


READING = [
    ("score",),
    ("leaderboard",),
    ("leaderboard", "--json"),
    ("report",),
    ("figures",),
    ("card", "ema", "--train-task", "gsm8k-mini"),
    ("gate", "--min-rsr", "10"),
    ("agreement",),
    ("analyze", "flops"),
    ("analyze", "categories"),
    ("judge", "--judge", "keyword"),
    ("clean", "--yes"),
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_commands_that_read_a_run_touch_none_of_the_files(
    arguments: tuple[str, ...], made: Path, copy: Path, command: Run
) -> None:
    first, *rest = arguments
    words = [first, *rest[:1], copy, *rest[1:]] if first == "analyze" else [first, copy, *rest]
    with tripwires.watched() as seen:
        ended = command(*words)
    assert ended.code in (0, 3), ended.err
    files = [str(made / name) for name in ("ema.py", "mine.py", "tasks", "quiz.jsonl", "rooms.jsonl")]
    assert [line for line in seen if any(file in line for file in files)] == []


@pytest.mark.parametrize("kind", ["methods", "judges"])
def test_a_run_folder_makes_nobody_run_a_file(
    kind: str, copy: Path, tmp_path: Path, command: Run, small: Run
) -> None:
    """Not even this user's own run: what a record says of a file with code is not an order."""
    mark = tmp_path / "ran"
    planted = write(tmp_path / "planted.py", f"open({str(mark)!r}, 'w')\n{METHOD}{JUDGE}")
    record = read_json(copy / "run.json")
    for one in record["config"]["code"][kind].values():
        one["file"] = str(planted)
    write_json_atomic(copy / "run.json", record)
    ended = command("compare", "--methods", "vanilla", "--out", copy, *small(**{"responses.limit": 3}))
    assert ended.code == 1
    assert not mark.exists()
    assert "only the command line may name" in ended.err or "holds a run of another" in ended.err


def quick(small: Run) -> list[str]:
    return small(**{"training.max_examples": 16, "responses.limit": 3})


def test_a_command_that_needs_them_says_how_to_name_them_again(
    made: Path, copy: Path, command: Run, small: Run
) -> None:
    judge, method = f"mine={made}/mine.py:Judge", f"ema={made}/ema.py:Ema"
    ended = command("compare", "--methods", "vanilla", "--out", copy, *quick(small))
    assert ended.code == 1
    assert (
        f"was judged by 'mine', a file with code that only the command line may name: add --judge {judge}"
        in (ended.err)
    )
    words = [
        "compare",
        "--methods",
        "vanilla",
        "--judge",
        f"mini-exact,{judge}",
        "--out",
        copy,
        *quick(small),
    ]
    ended = command(*words)
    assert ended.code == 1
    assert f"add --task-dir {made}/tasks --methods {method}" in ended.err
    whole = command(
        *words, "--methods", f"vanilla,{method}", "--task-dir", f"{made}/tasks", "--utility-task", "rooms"
    )
    assert whole.code == 0, whole.err
    assert "Nothing to do" in whole.out


def test_a_judge_of_a_file_judges_a_run_again_when_its_text_changes(
    copy: Path, tmp_path: Path, command: Run
) -> None:
    file = write(tmp_path / "other.py", JUDGE)
    assert command("judge", copy, "--judge", f"{file}:Judge").code == 0
    first = markers(copy)
    assert command("judge", copy, "--judge", f"{file}:Judge").code == 0
    assert markers(copy) == first
    write(file, JUDGE.replace("context, True", "context, False"))
    assert command("judge", copy, "--judge", f"{file}:Judge").code == 0
    changed = {name for name, time in markers(copy).items() if first[name] != time}
    assert changed == {name for name in first if name.endswith("judge-other.done.json")}
    board = harness.load(copy).leaderboard
    assert (board[board["judge"] == "other"]["rsr"] == 100).all()
    assert (board[board["judge"] == "mine"]["rsr"] == 0).all()
    elsewhere = write(tmp_path / "b/other.py", JUDGE + "X = 1\n")
    ended = command("judge", copy, "--judge", f"{elsewhere}:Judge")
    assert ended.code == 2
    assert "give it another name: --judge NAME=" in ended.err


def test_a_judge_that_fails_is_told_by_its_file_and_line(copy: Path, tmp_path: Path, command: Run) -> None:
    file = write(tmp_path / "bad.py", JUDGE.replace("context, True", "context, exchange.response.secret"))
    ended = command("judge", copy, "--judge", f"{file}:Judge")
    assert ended.code == 1
    broken = "judge 'bad' broke its contract on hexphi_raw-mini: it raised AttributeError"
    assert f"{broken} in {file}, line 9, after 0 of 3" in ended.err
    file = write(tmp_path / "make.py", JUDGE + "\n    def __init__(self, needed):\n        pass\n")
    ended = command("judge", copy, "--judge", f"{file}:Judge")
    assert ended.code == 1
    assert f"Error: judge '{file}:Judge' cannot be made: TypeError: " in ended.err
    assert "Traceback" not in ended.err


def test_a_judge_that_leaves_does_not_end_the_command_as_if_all_were_well(
    copy: Path, tmp_path: Path, command: Run
) -> None:
    text = "import sys\n" + JUDGE.replace("for exchange in exchanges", "if sys.exit(0)")
    file = write(tmp_path / "leaves.py", text)
    ended = command("judge", copy, "--judge", f"{file}:Judge")
    assert ended.code == 1
    assert f"it raised SystemExit in {file}, line 9, after 0 of 3 verdicts" in ended.err


def test_other_questions_or_another_metric_under_a_set_s_name_are_another_run(
    made: Path, copy: Path, tmp_path: Path, command: Run, small: Run
) -> None:
    other = write(tmp_path / "quiz.jsonl", '{"question": "6 * 7?", "answer": "42"}\n')
    for file, metric in ((made / "quiz.jsonl", "exact"), (other, "contains")):
        ended = command(
            *(
                "compare",
                "--methods",
                "vanilla",
                "--judge",
                f"mini-exact,{made}/mine.py:Judge",
                "--out",
                copy,
            ),
            *("--utility-set", f"quiz={file}", "--utility-metric", metric, *quick(small)),
        )
        assert ended.code == 1
        assert "holds a run of another configuration" in ended.err
        assert "utility_sets.quiz: " in ended.err


def test_clean_takes_their_rows_and_columns_out_with_what_is_known_of_them(copy: Path, command: Run) -> None:
    for flags in (["--row", "ema"], ["--task", "rooms,quiz"]):
        ended = command("clean", copy, *flags, "--yes")
        assert ended.code == 0, ended.err
    record = read_json(copy / "run.json")
    code = record["config"]["code"]
    assert (code["methods"], code["tasks"], record["config"]["utility_sets"]) == ({}, {}, {})
    assert set(code["judges"]) == {"mine"}
    assert not [key for key in record["fixed"] if key.startswith("utility_sets.")]
    left = [path for name in ("ema", "rooms", "quiz") for path in copy.glob(f"**/{name}/**/*")]
    assert not [path for path in left if path.is_file()]
    board = harness.load(copy).leaderboard
    assert set(board["method"]) == {"seed", "vanilla"}
    assert not {"rooms", "quiz"} & {*board.columns}
    assert "ema" not in " ".join(board.attrs["notes"])


def test_a_run_s_own_file_is_asked_for_before_anything_is_done(made: Path, copy: Path, command: Run) -> None:
    """By a command that goes on with a run's whole configuration, on paper as well."""
    files = {path: path.read_bytes() for path in copy.glob("run.json")}
    judges = f"mini-exact,mine={made}/mine.py:Judge"
    words = ("sweep", "prefill-depth", "--run", copy, "--judge", judges)
    for flags in ((), ("--dry-run",)):
        ended = command(*words, *flags)
        assert ended.code == 1
        assert f"--methods ema={made}/ema.py:Ema" in ended.err
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("fault", ["raise ValueError(len(examples))", "raise SystemExit(0)"])
def test_a_method_that_cannot_prepare_is_told_before_anything_is_trained(
    fault: str, tmp_path: Path, command: Run, small: Run
) -> None:
    file = write(
        tmp_path / "ema.py", f"{METHOD}\n    def prepare(self, examples, context):\n        {fault}\n"
    )
    words = ("compare", "--methods", f"{file}:Ema", "--out", tmp_path / "run", *quick(small))
    for flags in ((), ("--dry-run",)):
        ended = command(*words, *flags)
        assert ended.code == 1
        raised = fault.split()[1].partition("(")[0]
        assert f"method 'ema' cannot prepare rows of gsm8k-mini: {raised}: " in ended.err
        assert f"({file}, line 15)" in ended.err
        assert "Traceback" not in ended.err
    assert not [*(tmp_path / "run").glob("**/checkpoint")]


@pytest.mark.slow
def test_a_method_that_leaves_fails_its_cell(tmp_path: Path, small_settings: dict[str, Any]) -> None:
    file = write(tmp_path / "ema.py", METHOD.replace("self.last = step", "raise SystemExit(0)"))
    with pytest.raises(CellsFailedError):
        harness.compare(out=tmp_path / "run", **{**small_settings, **QUICK, "methods": f"{file}:Ema"})
    (line,) = run_folder.read_failures(tmp_path / "run").values()
    assert line.startswith(f"plugin {file}, line 12: SystemExit: 0")


@pytest.mark.slow
def test_a_method_is_trained_again_when_its_text_changes_and_nothing_else_is(
    made: Path, copy: Path, tmp_path: Path, command: Run, small: Run
) -> None:
    record = read_json(copy / "run.json")
    file = write(tmp_path / "ema.py", METHOD)
    tasks = Path(shutil.copytree(made / "tasks", tmp_path / "tasks"))
    record["config"]["code"]["methods"]["ema"]["file"] = str(file)
    write_json_atomic(copy / "run.json", record)

    def compare() -> Any:
        return command(
            *("compare", "--methods", f"vanilla,{file}:Ema", "--judge", f"mini-exact,{made}/mine.py:Judge"),
            *("--task-dir", tasks, "--utility-task", "rooms", "--out", copy, *quick(small)),
        )

    first = markers(copy)
    assert compare().code == 0
    assert markers(copy) == first
    write(file, METHOD.replace("self.last = step", "self.last = step + 1"))
    ended = compare()
    assert ended.code == 0, ended.err
    changed = {name for name, time in markers(copy).items() if first[name] != time}
    made_by_it = {name for name in first if name.startswith("gsm8k-mini/ema/")}
    assert changed == {name for name in made_by_it if "judge-" not in name}  # the answers came out the same
    write(file, METHOD.replace("self.last = step", "self.last = step.nothing"))
    ended = compare()
    assert ended.code == 1
    assert (
        f"failed: plugin {file}, line 12: AttributeError: 'int' object has no attribute 'nothing'"
        in ended.out
    )
    write(tasks / "scoring.py", SCORE + "\n")
    write(file, METHOD.replace("self.last = step", "self.last = step + 1"))
    before = markers(copy)
    assert compare().code == 0
    again = {name for name, time in markers(copy).items() if before.get(name) != time}
    assert {name for name in again if name.startswith(("seed/", "gsm8k-mini/vanilla/"))} == {
        "seed/rooms/respond.done.json",
        "gsm8k-mini/vanilla/seed-42/rooms/respond.done.json",
    }


@pytest.mark.slow
@pytest.mark.parametrize("many", [{"jobs": 2}, {"training.num_processes": 2, "training.distributed": "ddp"}])
def test_workers_and_launched_processes_get_the_text(
    many: dict[str, Any], tmp_path: Path, small_settings: dict[str, Any]
) -> None:
    """Each process loads what was read when the file was named, and tells its errors as this one does."""
    file = write(tmp_path / "ema.py", METHOD.replace("self.last = step", "raise ValueError(step)"))
    settings = {**small_settings, **QUICK, "methods": f"{file}:Ema", **many}
    with pytest.raises(CellsFailedError):
        harness.compare(out=tmp_path / "run", **settings)
    (line,) = run_folder.read_failures(tmp_path / "run").values()
    assert line.startswith(f"plugin {file}, line 12: ValueError: 1")
    write(file, METHOD)
    board = harness.compare(out=tmp_path / "run", **settings)
    assert set(board["status"]) == {"done"}
