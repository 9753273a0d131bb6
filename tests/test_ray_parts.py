"""What the Ray engine is made of, each without Ray: the cut, the queue, thetas by number, and a worker."""

import dataclasses
import pickle
import random
from itertools import count, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import make_model
from tests.test_fast_engine import INVOCATION, TARGETS, some_theta
from zotune.adapter.spec import LoraSpec
from zotune.engine import ENGINES
from zotune.engine.ray.crew import Seat
from zotune.engine.ray.cut import cut
from zotune.engine.ray.messages import Call, Following, Order, Part
from zotune.engine.ray.options import RayOptions, parse_value
from zotune.engine.ray.queue import LATE, LEAST_LATE_S, MOST_LOST, UNKNOWN_S, Paces, PieceLost, WorkQueue
from zotune.engine.ray.report import Traffic, table
from zotune.engine.ray.thetas import KEPT, Thetas
from zotune.engine.ray.worker import Worker
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.errors import InputError
from zotune.zo.moves import Move
from zotune.zo.optimizers import OPTIMIZERS
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling
from zotune.zo.updates import Slope, Slopes

SPEC = LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION)
BATCH = [Example((1, 9, 30 + n, 41), INVOCATION, ((60,), (61,)), 0) for n in range(5)]
CALLS = count()


# ---- the cut


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_pieces_cover_every_pair_once_and_are_as_many_as_asked_for(num_probes, num_examples, pieces, by_examples):
    found = cut(num_probes, num_examples, pieces, by_examples=by_examples)
    pairs = [pair for piece in found for pair in product(piece.probes, piece.examples)]
    assert sorted(pairs) == list(product(range(num_probes), range(num_examples)))
    assert len(found) >= min(pieces, num_probes * num_examples)
    assert all(piece.size for piece in found)


def test_prompts_that_are_kept_stay_together_with_all_their_probes():
    assert {piece.probes for piece in cut(17, 16, 8, by_examples=True)} == {range(17)}
    assert {piece.examples for piece in cut(17, 16, 8, by_examples=False)} == {range(16)}
    assert [len(piece.examples) for piece in cut(17, 16, 8, by_examples=True)] == [2] * 8


# ---- the queue


@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 10**6))
def test_every_piece_is_answered_once_whoever_is_late_or_lost(num_pieces, num_workers, seed):
    """Workers answer, are late or are lost at random; as long as somebody is there, everything gets done."""
    draw, now = random.Random(seed), 0.0
    queue = WorkQueue([1] * num_pieces, [draw.choice([None, *range(num_workers)]) for _ in range(num_pieces)])
    paces = Paces({worker: draw.choice([None, 1.0, 10.0]) for worker in range(num_workers)})
    at_work: list = []
    for _ in range(10_000):
        if queue.is_done:
            break
        worker = draw.randrange(num_workers)
        if (handed := queue.take(worker, paces, now)) is not None:
            at_work.append(handed)
        if at_work and draw.random() < 0.5:
            handed = at_work.pop(draw.randrange(len(at_work)))
            queue.answer(handed, {number: (number, handed.worker) for number in handed.numbers})
        elif at_work and draw.random() < 0.05:
            lost = at_work[0].worker
            at_work = [handed for handed in at_work if handed.worker != lost]
            try:
                queue.lose(lost)
            except PieceLost:
                return
        now += draw.choice([0.1, 1.0, 100.0])
    assert queue.is_done
    assert [queue.results[number][0] for number in range(num_pieces)] == list(range(num_pieces))


def test_the_first_answer_counts():
    queue = WorkQueue([1], [None])
    paces = Paces({"slow": 1.0, "quick": 1.0})
    slow = queue.take("slow", paces, 0.0)
    assert queue.take("quick", paces, 1.0) is None
    quick = queue.take("quick", paces, LATE + 1.0)
    assert slow
    assert quick
    assert quick.numbers == (0,)
    queue.answer(quick, {0: "quick"})
    queue.answer(slow, {0: "slow"})
    assert queue.results == {0: "quick"}


def test_a_worker_is_late_by_its_own_pace_and_patience_is_long_where_none_is_known():
    queue = WorkQueue([10, 10], [None, None])
    queue.take("known", Paces({"known": 1.0, "other": 1.0}), 0.0)
    assert queue.next_due() == LATE * 10
    assert queue.late_workers(LATE * 10 - 1) == set()
    assert queue.late_workers(LATE * 10) == {"known"}
    fresh = WorkQueue([10], [None])
    fresh.take("new", Paces({"new": None}), 0.0)
    assert fresh.next_due() == UNKNOWN_S
    quick = WorkQueue([10], [None])
    quick.take("quick", Paces({"quick": 1e6}), 0.0)
    assert quick.next_due() == LEAST_LATE_S
    moving = WorkQueue([10], [None], least_late_s=9.0)
    moving.take("quick", Paces({"quick": 1e6}), 0.0)
    assert moving.next_due() == 9.0


def test_a_quick_worker_is_handed_more_at_a_time():
    queue = WorkQueue([1] * 100, [None] * 100)
    paces = Paces({"quick": 9.0, "slow": 1.0})
    quick, slow = queue.take("quick", paces, 0.0), queue.take("slow", paces, 0.0)
    assert quick
    assert slow
    assert (len(quick.numbers), len(slow.numbers)) == (45, 3)


def test_a_worker_gets_the_pieces_whose_prompts_it_has_and_steals_only_then():
    queue = WorkQueue([1] * 4, ["a", "b", "a", None])
    paces = Paces({"a": 1.0, "b": 1.0})
    handed = [queue.take(worker, paces, 0.0) for worker in ("b", "b", "b", "b")]
    assert [each.numbers for each in handed if each][:2] == [(1,), (3,)]
    assert {number for each in handed if each for number in each.numbers[:1]} - {1, 3} == {0, 2}


def test_a_piece_that_worker_after_worker_is_lost_with_ends_the_call():
    queue = WorkQueue([1], [None])
    for worker in range(MOST_LOST):
        assert queue.take(worker, Paces({worker: None}), 0.0)
        if worker < MOST_LOST - 1:
            queue.lose(worker)
    with pytest.raises(PieceLost, match="8 workers were lost"):
        queue.lose(MOST_LOST - 1)


# ---- thetas and a worker


def test_a_theta_has_one_number_as_long_as_it_is_remembered():
    thetas, kept = Thetas(), [{"a": np.full(2, n, dtype=np.float32)} for n in range(KEPT + 1)]
    numbers = [thetas.number(theta).number for theta in kept]
    assert numbers == list(range(KEPT + 1))
    assert thetas.number(kept[-1]).number == numbers[-1]
    assert thetas.announce() == KEPT + 1
    assert thetas.number(kept[0]).number == KEPT + 1  # it had been forgotten
    assert thetas.number(kept[0]).digest != thetas.number(kept[-1]).digest


@pytest.fixture
def worker() -> Worker:
    made = Worker()
    made.engine = TorchEngine(make_model("opt"), SPEC, PrefixCache(1e8))
    return made


def order_of(thetas, theta, probes, wholes=(), examples=True, method="score", **more) -> tuple[Order, Call]:
    main, number = thetas.number(theta), next(CALLS)
    bases = (None,) * len(probes)
    call = Call(number, method, main.number, {main.number: main.digest}, tuple(probes), bases, **more)
    numbers = tuple(range(len(BATCH)))
    parts = (Part(0, range(len(probes)), numbers, numbers if method == "generate" else None),)
    return Order(parts, dict(enumerate(BATCH)) if examples else {}, wholes), call


def test_a_worker_says_what_it_lacks_and_computes_nothing(worker):
    thetas, theta = Thetas(), some_theta(worker.engine)
    before = dataclasses.replace(worker.engine.stats)
    answer = worker.work(*order_of(thetas, theta, [AT_THETA], examples=False))
    assert (answer.results, answer.lacks_thetas, answer.lacks_examples) == ({}, (0,), (0, 1, 2, 3, 4))
    assert worker.engine.stats == before


def test_a_worker_that_has_another_theta_throws_it_away(worker):
    thetas, theta = Thetas(), some_theta(worker.engine)
    worker.thetas[0] = {name: np.nextafter(value, 9, dtype=np.float32) for name, value in theta.items()}
    answer = worker.work(*order_of(thetas, theta, [AT_THETA]))
    assert (answer.results, answer.lacks_thetas, answer.wrong) == ({}, (0,), (0,))
    assert 0 not in worker.thetas
    (scores,) = worker.work(*order_of(thetas, theta, [AT_THETA], wholes=(0,)), theta).results.values()
    assert scores.log_probs.tobytes() == worker.engine.score(theta, [AT_THETA], BATCH).log_probs.tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_worker_that_follows_moves_has_the_drivers_theta_to_the_bit(worker, name):
    thetas, theta = Thetas(), some_theta(worker.engine)
    optimizer = OPTIMIZERS[name]()
    state = optimizer.init(theta)
    worker.work(*order_of(thetas, theta, [AT_THETA], wholes=(0,)), theta)
    for step in range(3):
        curvature = 0.5 if name == "hizoo" else None
        move = Move(
            optimizer, Slopes((Slope(step, 0.3, curvature=curvature), Slope(step + 9, -1.0, curvature=curvature))), 0.01
        )
        following = Following(thetas.number(theta).number, thetas.announce(), move)
        worker.follow(following, state if step == 0 else None)
        theta, state = move.of(theta, state)
        answer = worker.work(*order_of(thetas, theta, [AT_THETA, Probe(step, 0.1)], examples=False))
        assert answer.results
        assert answer.has_state


def test_a_worker_without_the_state_does_not_guess_it(worker):
    thetas, theta = Thetas(), some_theta(worker.engine)
    worker.work(*order_of(thetas, theta, [AT_THETA], wholes=(0,)), theta)
    worker.follow(Following(0, 1, Move(OPTIMIZERS["adam"](), Slopes((Slope(0, 1.0),)), 0.01)))
    assert list(worker.thetas) == [0]


def test_a_call_in_several_orders_draws_and_places_its_probes_once(worker, monkeypatch):
    thetas, theta, probes, written = Thetas(), some_theta(worker.engine), [AT_THETA, Probe(3, 0.1)], []
    write = worker.engine.layers.write

    def counted(points):
        written.append(points)
        write(points)

    monkeypatch.setattr(worker.engine.layers, "write", counted)
    order, call = order_of(thetas, theta, probes, wholes=(0,))
    (whole,) = worker.work(order, call, theta).results.values()
    found = []
    for number in range(len(BATCH)):
        part = Part(number, range(2), (number,))
        again = pickle.loads(pickle.dumps((dataclasses.replace(order, parts=(part,), wholes=()), call)))  # as Ray does
        (scores,) = worker.work(*again).results.values()
        found.append(scores.log_probs)
    assert len(written) == 1
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole.log_probs, rtol=1e-5, atol=1e-5)
    (moved,) = worker.work(*order_of(thetas, theta, [AT_THETA, Probe(4, 0.1)])).results.values()
    assert len(written) == 2
    assert (moved.log_probs[0] == whole.log_probs[0]).all()
    assert (moved.log_probs[1] != whole.log_probs[1]).any()


def test_a_worker_writes_texts_by_the_seeds_of_its_prompts(worker):
    thetas, theta, sampling = Thetas(), some_theta(worker.engine), Sampling(4, 1.0)
    order, call = order_of(thetas, theta, [AT_THETA, Probe(1, 0.5)], wholes=(0,), method="generate", sampling=sampling)
    (texts,) = worker.work(order, call, theta).results.values()
    expected = worker.engine.generate(
        theta, [AT_THETA, Probe(1, 0.5)], BATCH, dataclasses.replace(sampling, seeds=(0, 1, 2, 3, 4))
    )
    assert texts == expected


# ---- options and the table


def test_options_are_refused_by_their_flag():
    kinds = tuple(ENGINES)
    assert RayOptions.of({"num-workers": 2, "address": "auto"}, kinds) == RayOptions(num_workers=2, address="auto")
    for options, message in (
        ({"num_workers": 0}, "--ray.num-workers must be a whole number, 1 or more"),
        ({"num_worker": 2}, "did you mean num_workers"),
        ({"engine": "vllm"}, "--ray.engine must be 'torch'"),
        ({"unequal": "ignore"}, "--ray.unequal must be 'refuse' or 'tolerate'"),
        ({"address": 5}, "--ray.address must be auto"),
    ):
        with pytest.raises(InputError, match=message):
            RayOptions.of(options, kinds)
    assert (parse_value("num_workers", ["4"]), parse_value("engine", ["plain"])) == (4, "plain")
    with pytest.raises(InputError, match=r"--ray.num-workers takes one value"):
        parse_value("num_workers", [])


def test_without_ray_it_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'^--engine ray needs Ray: pip install "zotune\[ray\]"$'):
        ENGINES["ray"].check_installed()


def test_the_table_has_a_line_for_each_worker_and_the_bytes_of_a_step():
    seat = Seat(0, host="here", pieces=80, tokens=1000, busy_s=2.0, here_s=4.0, lost=1, rejoined=1)
    text = table([seat, Seat(1)], Traffic(sent=1000, received=500, wholes=64, moves=10))
    assert text.splitlines()[1].split() == ["0", "here", "80", "500", "50%", "0", "1", "1", "0"]
    assert "100 bytes sent and 50 received a step" in text
