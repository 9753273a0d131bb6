"""The journal: durable, checked line by line, and enough to rebuild theta bit for bit."""

import json
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.errors import InputError
from zotune.run.journal import Entry, Header, Journal, read_journal, replay
from zotune.zo.estimators import Slope
from zotune.zo.noise import Noise
from zotune.zo.protocol import Theta
from zotune.zo.updates import Slopes

SHAPES = {"m.lora_A.weight": (2, 3), "m.lora_B.weight": (4, 2)}
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
slopes = st.tuples(st.integers(0, 2**53 - 1), st.floats(-100, 100)).map(lambda pair: Slope(*pair))


def make_header(momentum=0.0, seed=0) -> Header:
    return Header(
        seed=seed,
        base_model="a/b",
        tensors=SHAPES,
        lora=LoraSpec(2, 4.0, ("m",), (5, 6)),
        optimizer={"name": "sgd", "momentum": momentum, "weight_decay": 0.01},
        data={"training": "1", "evaluation": "2"},
    )


def entries_of(values) -> list[Entry]:
    return [Entry(step, loss, rate, Slopes(tuple(s))) for step, (loss, rate, s) in enumerate(values, start=1)]


def write(path: Path, header: Header, entries: list[Entry]) -> None:
    journal = Journal.create(path, header)
    for entry in entries:
        journal.append(entry)
    journal.close()


runs = st.lists(st.tuples(finite, st.floats(0, 1), st.lists(slopes, min_size=1, max_size=3)), max_size=6).map(
    entries_of
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@given(runs)
def test_what_is_written_reads_back_to_the_bit(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, make_header(), entries)
    assert read_journal(path) == (make_header(), entries)


@given(runs, st.sampled_from([0.0, 0.9]), st.integers(0, 2**53 - 1), st.data())
def test_replay_gives_the_same_bits_as_the_live_updates_from_any_cut(tmp_path_factory, entries, momentum, seed, data):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    write(path, make_header(momentum, seed), entries)
    header, read = read_journal(path)
    live = header.make_optimizer()
    theta: Theta = initial_theta(SHAPES, seed)
    state = live.init(theta)
    cut = data.draw(st.integers(0, len(entries)))
    for entry in entries[:cut]:
        theta, state = live.update(theta, state, entry.update, entry.learning_rate)
    replayed, replayed_state = replay(header, read[:cut])
    assert {n: v.tobytes() for n, v in theta.items()} == {n: v.tobytes() for n, v in replayed.items()}
    assert {n: v.tobytes() for n, v in state.items()} == {n: v.tobytes() for n, v in replayed_state.items()}


ENTRIES = entries_of([(0.5, 1e-3, [Slope(1, 0.25)]), (0.4, 1e-3, [Slope(2, -1.5)]), (0.3, 1e-3, [Slope(3, 0.1)])])


def test_a_last_line_cut_at_any_byte_is_dropped_with_a_warning_and_written_again(path, caplog):
    write(path, make_header(), ENTRIES)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for missing in range(1, last):
        path.write_bytes(whole[:-missing])
        caplog.clear()
        journal, header, entries = Journal.reopen(path)
        assert "line 4 was cut short" in caplog.text
        assert (header, entries) == (make_header(), ENTRIES[:2])
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


@pytest.mark.parametrize("order", [[0, 2, 3], [0, 1, 1, 2], [0, 2, 1, 3], [1, 2, 3]])
def test_lines_missing_doubled_or_out_of_order_are_refused(path, order):
    write(path, make_header(), ENTRIES)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[index] for index in order))
    with pytest.raises(InputError, match=r"line \d (is damaged|is step)"):
        read_journal(path)


@pytest.mark.parametrize("content", [b"", b'{"seed": 0', b"\n", b"[]\n"])
def test_a_journal_without_its_first_line_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="line 1"):
        read_journal(path)


def test_another_format_is_refused_and_says_so(path):
    write(path, Header(**{**vars(make_header()), "format": 2}), [])
    with pytest.raises(InputError, match="line 1 is damaged: format 2; this zotune reads format 1"):
        read_journal(path)


def test_a_journal_of_before_there_were_kinds_of_noise_and_adapter_replays(path):
    write(path, make_header(0.9), ENTRIES)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    value = json.loads(first)
    for name in ("peft_type", "frozen_seed", "matrices"):
        del value["lora"][name]
    del value["noise"], value["crc32"]
    text = json.dumps(value)
    path.write_bytes(f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'.encode() + b"".join(rest))
    assert read_journal(path) == (make_header(0.9), ENTRIES)


def test_what_was_measured_beside_a_slope_and_the_noise_of_its_step_read_back(path):
    noise = Noise("low_rank", steps=1)
    header = replace(make_header(), noise=noise)
    entries = [
        Entry(step, 0.5, 1e-3, Slopes((Slope(step, 0.1, noise.at(header.seed, step - 1), curvature, rounding),)))
        for step, (curvature, rounding) in enumerate([(None, None), (0.1, None), (0.2, 1e-7), (None, 1e-7)], start=1)
    ]
    write(path, header, entries)
    assert read_journal(path) == (header, entries)
    assert entries[0].slopes[0].noise != entries[1].slopes[0].noise


@pytest.mark.parametrize("change", [{"optimizer": {"name": "sdg"}}, {"optimizer": {"name": "adam", "momentum": 0.1}}])
def test_an_optimizer_that_this_zotune_does_not_know_is_refused(path, change):
    write(path, replace(make_header(), **change), [])
    with pytest.raises(InputError, match="line 1 is damaged"):
        read_journal(path)


def test_two_processes_cannot_write_one_journal(path):
    write(path, make_header(), ENTRIES)
    journal, _, _ = Journal.reopen(path)
    with pytest.raises(InputError, match="in use by another zotune process"):
        Journal.reopen(path)
    journal.close()
    Journal.reopen(path)[0].close()


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
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert "File too large" in result.stderr
    assert str(path) in result.stderr
    assert read_journal(path) == (make_header(), ENTRIES[:1])
