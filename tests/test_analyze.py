"""`zotune analyze` and `zotune profile`: their numbers against the engine's, and on a case where reuse is exact."""

import json

import numpy as np
import pytest

from tests.conftest import CONFIGS, make_model
from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import LoraSpec
from zotune.cli import main
from zotune.engine.torch.plain import PlainEngine
from zotune.tools.analyze import EPSILONS, analyze, save
from zotune.zo.draws import derive_seed
from zotune.zo.estimators import Spsa
from zotune.zo.objectives import cross_entropy
from zotune.zo.protocol import Example, Probe

pytestmark = pytest.mark.slow

BATCH = [
    Example((1, 9, 30, 41, 7), (50, 51), ((60,), (61, 62)), 0),
    Example((1, 12, 13), (50, 51), ((60,), (61, 62)), 1),
]


def test_its_exact_slope_is_the_engines():
    engine = PlainEngine(make_model("opt"), LoraSpec(4, 8.0, ("q_proj", "v_proj"), None))
    result = analyze(engine, cross_entropy, BATCH, seed=0, directions=1)
    theta = Probe(derive_seed(0, "analyze"), 0.02).of(initial_theta(engine.tensor_shapes, 0))
    for row in result.rows[4:]:  # below 1e-3 rounding differs with the order of summation
        estimator = Spsa(row.epsilon)
        probes = estimator.ask([derive_seed(0, "direction", 0, 0)])
        (slope,) = estimator.tell(probes, cross_entropy.losses(engine.score(theta, probes, BATCH), BATCH))
        assert row.slope_size == pytest.approx(abs(slope.value), rel=1e-3, abs=1e-3)


def test_reused_kv_gives_a_wrong_slope_where_the_adapter_changes_keys_and_values():
    engine = PlainEngine(make_model("opt"), LoraSpec(4, 8.0, ("q_proj", "v_proj"), None))
    result = analyze(engine, cross_entropy, BATCH, seed=0, directions=4)
    assert min(reuse.error for reuse in result.reuse) > 0.05
    assert result.reuse[-1].value_difference > result.reuse[0].value_difference > 0
    assert result.recommended_epsilon in EPSILONS


def test_reused_kv_is_exact_where_the_adapter_cannot_change_it(tmp_path):
    """One layer with an adapter on q_proj alone: keys and values do not depend on it."""
    import transformers

    config = CONFIGS["opt"]()
    config.num_hidden_layers = 1
    engine = PlainEngine(transformers.AutoModelForCausalLM.from_config(config), LoraSpec(4, 8.0, ("q_proj",), None))
    result = analyze(engine, cross_entropy, BATCH, seed=0, directions=2)
    assert [reuse.error for reuse in result.reuse] == [0.0] * len(EPSILONS)
    assert [reuse.key_difference + reuse.value_difference for reuse in result.reuse] == [0.0] * len(EPSILONS)
    assert all(path.stat().st_size > 1000 for path in save(result, tmp_path))


def test_the_commands_print_their_tables(opt_dir, reviews_file, tmp_path, capsys):
    data = ["--model", str(opt_dir), "--train-data", str(reviews_file), "--labels", "terrible", "great"]
    data += ["--invocation", " It was", "--batch-size", "2"]
    main(["analyze", *data, "--directions", "1", "--output-dir", str(tmp_path / "analysis")])
    assert "recommended eps" in capsys.readouterr().out
    rows = json.loads((tmp_path / "analysis" / "analysis.json").read_text())["rows"]
    assert np.allclose([row["epsilon"] for row in rows], EPSILONS)

    for scope, least in (("activated", 0.9999), ("everywhere", 0.3)):
        main(["analyze", *data, "--lens", "--scope", scope, "--output-dir", str(tmp_path / scope)])
        assert "cosine with backpropagation" in capsys.readouterr().out
        cosines = json.loads((tmp_path / scope / "lens.json").read_text())
        assert list(cosines) == ["0", "1"]
        assert least <= min(cosines.values()) <= max(cosines.values()) <= 1.0001
        assert (tmp_path / scope / "lens.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        main(["analyze", *data, "--scope", "activated"])
    assert "--scope has no effect without --lens" in capsys.readouterr().err

    main(["profile", *data, "--num-steps", "3", "--output-dir", str(tmp_path / "run")])
    out = capsys.readouterr().out
    for region in ("step", "forward passes", "LoRA", "attention", "prefix cache", "noise", "update", "evaluation"):
        assert region in out
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
