"""The journal: durable, checked line by line, and enough to rebuild theta bit for bit."""

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import run_to_end
from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.errors import InputError
from zotune.run.journal import Checkpointed, Entry, Header, Journal, read_journal, replay
from zotune.run.journal.lines import encode
from zotune.zo.estimators import Slope
from zotune.zo.noise import Noise, derive_seed
from zotune.zo.protocol import Theta
from zotune.zo.updates import Slopes

SHAPES = {"m.lora_A.weight": (2, 3), "m.lora_B.weight": (4, 2)}
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


def make_header(momentum=0.0, seed=0, format=2) -> Header:
    return Header(
        seed=seed,
        base_model="a/b",
        tensors=SHAPES,
        lora=LoraSpec(2, 4.0, ("m",), (5, 6)),
        optimizer={"name": "sgd", "momentum": momentum, "weight_decay": 0.01},
        data={"training": "1", "evaluation": "2"},
        format=format,
    )


def entries_of(values, seed=0) -> list[Entry]:
    """Steps of (loss, learning rate, values of slopes) along the directions of a run with this seed."""
    return [
        Entry(
            step + 1, loss, rate,
            Slopes(tuple(Slope(derive_seed(seed, "direction", step, k), value) for k, value in enumerate(slopes))),
        )
        for step, (loss, rate, slopes) in enumerate(values)
    ]  # fmt: skip


def write(path: Path, header: Header, entries: list[Entry]) -> None:
    journal = Journal.create(path, header)
    for entry in entries:
        journal.append(entry)
    journal.close()


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


runs = st.lists(st.tuples(finite, st.floats(0, 1), st.lists(st.floats(-100, 100), min_size=1, max_size=3)), max_size=6)
formats = pytest.mark.parametrize("format", [1, 2])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@formats
@given(runs)
def test_what_is_written_reads_back_to_the_bit(tmp_path_factory, format, values):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, make_header(format=format), entries_of(values))
    assert read_journal(path) == (make_header(format=format), entries_of(values))


@given(runs, st.sampled_from([0.0, 0.9]), st.integers(0, 2**53 - 1), st.data())
def test_replay_gives_the_same_bits_as_the_live_updates_from_any_cut(tmp_path_factory, values, momentum, seed, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    entries = entries_of(values, seed)
    write(path, make_header(momentum, seed), entries)
    header, read = read_journal(path)
    live = header.make_optimizer()
    theta: Theta = initial_theta(SHAPES, seed)
    state = live.init(theta)
    cut = data.draw(st.integers(0, len(entries)))
    for entry in entries[:cut]:
        assert isinstance(entry.update, Slopes)
        theta, state = live.update(theta, state, entry.update, entry.learning_rate)
    replayed, replayed_state = replay(header, read[:cut])
    assert {n: v.tobytes() for n, v in theta.items()} == {n: v.tobytes() for n, v in replayed.items()}
    assert {n: v.tobytes() for n, v in state.items()} == {n: v.tobytes() for n, v in replayed_state.items()}


VALUES = [(0.5, 1e-3, [0.25]), (0.4, 1e-3, [-1.5]), (0.3, 1e-3, [0.1])]
ENTRIES = entries_of(VALUES)


@formats
def test_a_last_line_cut_at_any_byte_is_dropped_with_a_warning_and_written_again(path, caplog, format):
    header = make_header(format=format)
    write(path, header, ENTRIES)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for missing in range(1, last):
        path.write_bytes(whole[:-missing])
        caplog.clear()
        journal, read, entries = Journal.reopen(path)
        assert "line 4 was cut short" in caplog.text
        assert (read, entries) == (header, ENTRIES[:2])
        journal.append(ENTRIES[2])
        journal.close()
        assert path.read_bytes() == whole


@settings(max_examples=200)
@given(st.data())
def test_any_other_change_of_a_byte_is_refused_with_its_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, make_header(), ENTRIES)
    whole = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(whole) - 2))  # the last newline is the cut line of the test above
    whole[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(whole))
    line = bytes(whole[:position]).count(b"\n") + 1
    with pytest.raises(InputError, match=rf"line ({line}|{line + 1}) "):
        read_journal(path)


@pytest.mark.parametrize("space", [b"\t", b"\r"])
def test_a_changed_byte_that_means_the_same_to_json_is_refused_too(path, space):
    write(path, make_header(), ENTRIES)
    whole = path.read_bytes()
    for position in (index for index, byte in enumerate(whole) if byte == ord(" ")):
        path.write_bytes(whole[:position] + space + whole[position + 1 :])
        with pytest.raises(InputError, match=r"line \d is damaged"):
            read_journal(path)


@formats
@pytest.mark.parametrize("order", [[0, 2, 3], [0, 1, 1, 2], [0, 2, 1, 3], [1, 2, 3]])
def test_lines_missing_doubled_or_out_of_order_are_refused(path, order, format):
    write(path, make_header(format=format), ENTRIES)
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[index] for index in order))
    with pytest.raises(InputError, match=r"line \d (is damaged|is step)"):
        read_journal(path)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_line_of_another_run_with_the_same_seed_is_refused(path, first):
    """Its checksum covers the line before, and so all that are before it."""
    write(path, make_header(), ENTRIES)
    ours = lines_of(path)
    write(path, make_header(momentum=0.9), ENTRIES)
    theirs = lines_of(path)
    path.write_bytes(b"".join(ours[:first] + theirs[first:]))
    with pytest.raises(InputError, match=rf"line {first + 1} is damaged: .* does not follow the line before"):
        read_journal(path)


@formats
@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_line_whose_seeds_are_another_runs_is_refused(path, first, format):
    """Also where its checksum is right: in format 1 nothing else tells it from a line of this run."""
    write(path, make_header(format=format), [*ENTRIES[: first - 1], *entries_of(VALUES, seed=1)[first - 1 :]])
    with pytest.raises(InputError, match=rf"line {first + 1} is of another run: .*whose seed is 0"):
        read_journal(path)


def test_seeds_of_earlier_steps_may_come_again(path):
    """As in SVRG, whose steps repeat the slopes of the anchor."""
    anchor, second, third = ENTRIES
    entries = [
        anchor,
        replace(second, update=Slopes((*second.slopes, *anchor.slopes))),
        replace(third, update=Slopes((*third.slopes, *anchor.slopes))),
    ]
    write(path, make_header(), entries)
    assert read_journal(path) == (make_header(), entries)


def test_journals_of_svrg_of_before_are_read():
    _, entries = read_journal(Path(__file__).parent / "golden" / "stopped" / "svrg" / "journal.jsonl")
    assert {slope.seed for slope in entries[1].slopes} & {slope.seed for slope in entries[0].slopes}


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"\n", b"[]\n", b"[" * 10**5 + b"\n", b"9" * 5000 + b"\n"])
def test_a_journal_without_its_first_line_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="line 1"):
        read_journal(path)


def test_another_format_is_refused_and_says_so(path):
    write(path, make_header(format=3), [])
    with pytest.raises(InputError, match="line 1 is damaged: format 3; this zotune reads formats 1 and 2"):
        read_journal(path)


def test_a_journal_of_format_1_goes_on_in_format_1(path):
    write(path, make_header(format=1), ENTRIES[:2])
    journal, _, _ = Journal.reopen(path)
    journal.append(ENTRIES[2])
    journal.close()
    for line in lines_of(path):  # each stands alone
        value = json.loads(line)
        del value["crc32"]
        assert encode(value)[0] == line


def test_a_journal_of_before_there_were_kinds_of_noise_and_adapter_replays(path):
    write(path, make_header(0.9, format=1), ENTRIES)
    first, *rest = lines_of(path)
    value = json.loads(first)
    for name in ("peft_type", "frozen_seed", "matrices"):
        del value["lora"][name]
    for name in ("noise", "crc32", "settings", "base_weights", "examples_version"):
        del value[name]
    path.write_bytes(encode(value)[0] + b"".join(rest))
    assert read_journal(path) == (make_header(0.9, format=1), ENTRIES)


def test_what_was_measured_beside_a_slope_and_the_noise_of_its_step_read_back(path):
    noise = Noise("low_rank", steps=1)
    header = replace(make_header(), noise=noise)
    entries = [
        replace(entry, update=Slopes((replace(
            entry.slopes[0], noise=noise.at(header.seed, entry.step - 1), curvature=curvature, rounding=rounding
        ),)))
        for entry, (curvature, rounding) in zip(
            entries_of([(0.5, 1e-3, [0.1])] * 4), [(None, None), (0.1, None), (0.2, 1e-7), (None, 1e-7)], strict=True
        )
    ]  # fmt: skip
    write(path, header, entries)
    assert read_journal(path) == (header, entries)
    assert entries[0].slopes[0].noise != entries[1].slopes[0].noise


def test_steps_that_only_checkpoints_hold_read_back(path):
    entries = [ENTRIES[0], Entry(2, 0.4, 1e-3, Checkpointed("0123456789abcdef")), ENTRIES[2]]
    write(path, make_header(), entries)
    assert read_journal(path) == (make_header(), entries)
    assert entries[1].slopes == ()


@pytest.mark.parametrize("change", [{"optimizer": {"name": "sdg"}}, {"optimizer": {"name": "adam", "momentum": 0.1}}])
def test_an_optimizer_that_this_zotune_does_not_know_is_refused(path, change):
    write(path, replace(make_header(), **change), [])
    with pytest.raises(InputError, match="line 1 is damaged"):
        read_journal(path)


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"tensors": {}}, {"noise": Noise("sphere")}, {"dtype": "bfloat16"}, {"settings": {"batch_size": 8}},
    {"base_weights": "other"}, {"optimizer": {"name": "sgd", "momentum": 0.5}},
    {"lora": LoraSpec(3, 4.0, ("m",), (5, 6))},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_what_a_run_began_with_is_compared(change):
    header = replace(make_header(), settings={"batch_size": 16}, base_weights="those")
    (name,) = change
    word = "batch_size" if name == "settings" else name.replace("_", " ")
    assert header.changes(replace(header, **change)) == [word]


def test_what_is_not_known_or_is_a_default_written_out_is_no_change():
    before = replace(make_header(format=1), optimizer={"name": "sgd", "weight_decay": 0.01})
    now = replace(
        make_header(), settings={"batch_size": 16}, base_weights="those", base_model="/moved", examples_version=2
    )
    assert before.changes(now) == []
    assert before.changes(replace(now, data={"training": "2"})) == ["training examples", "evaluation examples"]


def test_two_processes_cannot_write_one_journal(path):
    write(path, make_header(), ENTRIES)
    journal, _, _ = Journal.reopen(path)
    with pytest.raises(InputError, match="in use by another zotune process"):
        Journal.reopen(path)
    journal.close()
    Journal.reopen(path)[0].close()


def test_a_step_that_another_process_writes_while_the_journal_is_reopened_is_not_lost(path, monkeypatch):
    """The moment before the lock is the last at which the other process can write."""
    from zotune.run.journal import file

    write(path, make_header(), ENTRIES[:2])
    other, _, _ = Journal.reopen(path)
    real_lock = file.lock

    def late_lock(opened, at) -> None:
        other.append(ENTRIES[2])
        other.close()
        real_lock(opened, at)

    monkeypatch.setattr(file, "lock", late_lock)
    journal, _, entries = Journal.reopen(path)
    journal.close()
    assert entries == ENTRIES
    assert read_journal(path)[1] == ENTRIES


def test_a_journal_that_was_replaced_while_it_was_opened_is_refused(path, monkeypatch):
    from zotune.run.journal import file

    write(path, make_header(), ENTRIES)
    real_lock = file.lock

    def late_lock(opened, at) -> None:
        path.unlink()
        monkeypatch.undo()
        Journal.create(path, make_header(seed=1)).close()
        real_lock(opened, at)

    monkeypatch.setattr(file, "lock", late_lock)
    with pytest.raises(InputError, match="in use by another zotune process"):
        Journal.reopen(path)


def test_only_steps_from_one_on_that_no_journal_holds_can_be_forgotten(path):
    entries = [ENTRIES[0], Entry(2, 0.4, 1e-3, Checkpointed("a")), Entry(3, 0.3, 1e-3, Checkpointed("b"))]
    write(path, make_header(), entries)
    whole = path.read_bytes()
    journal, _, _ = Journal.reopen(path)
    journal.cut(3)
    with pytest.raises(AssertionError):
        journal.cut(0)
    assert path.read_bytes() == whole
    journal.cut(1)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    for entry in entries[1:]:
        journal.append(entry)
    journal.close()
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_a_first_line_is_there_whole_or_not_at_all(path):
    """A process that ends as it writes one leaves no journal."""
    script = textwrap.dedent(f"""
        import os
        from pathlib import Path
        from tests.test_journal import make_header
        from zotune.run.journal import Journal
        Path.replace = lambda self, target: os._exit(9)
        Journal.create(Path({str(path)!r}), make_header())
    """)
    assert run_to_end(code=script).returncode == 9
    assert not path.exists()


@pytest.mark.slow
def test_a_full_disk_leaves_whole_lines_only(path):
    """A file size limit makes the kernel take part of a line and refuse the rest, as a full disk does."""
    script = textwrap.dedent(f"""
        import resource, signal, sys
        from pathlib import Path
        from tests.test_journal import ENTRIES, make_header
        from zotune.run.journal import Journal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        journal = Journal.create(Path({str(path)!r}), make_header())
        journal.append(ENTRIES[0])
        size = Path({str(path)!r}).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
        try:
            journal.append(ENTRIES[1])
        except OSError as error:
            sys.exit(f"{{error.strerror}}: {{error.filename}}")
    """)
    result = run_to_end(code=script)
    assert "File too large" in result.stderr
    assert str(path) in result.stderr
    assert read_journal(path) == (make_header(), ENTRIES[:1])
