"""Run folders: half-written, edited, damaged, or put together by someone else."""

from tests.haq.bad_input.case import Case, Spoil, cut, edited, encoded, folder, link, put, without


def _run(file: str, spoil: Spoil, message: str, command: str = "report run") -> Case:
    return Case(command, message, {f"run/{file}": spoil})


def _config(spoil: Spoil, message: str, command: str = "report run") -> Case:
    return _run("config.yaml", spoil, message, command)


def _half(file: str, spoil: Spoil, message: str) -> Case:
    return Case("search --resume half", message, {f"half/{file}": spoil})


def _trial(spoil: Spoil, message: str) -> Case:
    return _run("trials.jsonl", spoil, message)


_BEST = "run/best.json was not written by `haq search`: "
_LINE = "run/trials.jsonl, line 1, is not a trial: "

CASES = [
    *(
        Case(f"{command} nowhere", "run folder 'nowhere' does not exist; give the folder that `haq search` wrote")
        for command in ("report", "export", "bench", "search --resume")
    ),
    Case("report data", "run folder 'data' has no config.yaml, so it is not a run folder"),
    Case("report user.py", "run folder 'user.py'"),
    Case("report run nowhere", "run folder 'nowhere' does not exist"),
    Case("report half", "lacks baselines.json", {"half/baselines.json": None}),
    Case("export half", "run 'half' has no result yet; finish it with `haq search --resume half`"),
    Case("bench half", "run 'half' has no result yet"),
    # config.yaml
    _config("", "run/config.yaml has no 'search' section; it was not written by `haq search`"),
    _config("search: 3", "run/config.yaml has no 'search' section"),
    _config("search: {}", "run/config.yaml: no constraint"),
    _config(b"\xff", "cannot read run/config.yaml: it is not UTF-8 text"),
    _config(encoded("utf-16"), "cannot read run/config.yaml: it is not UTF-8 text"),
    _config(edited("trials: 2", "trials: [2"), "cannot read run/config.yaml: while parsing a flow sequence"),
    _config(folder, "run folder 'run' has no config.yaml"),
    _config(link("nowhere"), "run"),
    _config(edited("trials: 2", "trials: two"), "run/config.yaml: trials='two': must be a whole number"),
    _config(edited("trials: 2", "trials: 2.0"), "run/config.yaml: trials=2.0: must be a whole number"),
    _config(
        edited("model: user.py:net", 'model: "a\\0b"'), r"run/config.yaml: --model 'a\x00b': a name cannot have a NUL"
    ),
    _config(edited("trials: 2", "trials: 0"), "run/config.yaml: --trials 0: must be at least 1"),
    _config(edited("trials: 2", "trails: 2"), "run/config.yaml: unknown option 'trails' (did you mean 'trials'?)"),
    _config(edited("trials: 2", "trials: 2\n  trials: 3"), "the key 'trials' occurs twice; keep one"),
    _config(edited("model: user.py:net", "model: 3"), "run/config.yaml: model=3: must be text"),
    _config(edited("model: user.py:net", "model:"), "run/config.yaml: model=None: must be text"),
    _config(edited("weights: null", "weights: [1]"), "run/config.yaml: weights=[1]: must be text or null"),
    _config(edited("- latency=80%", "- 80"), "run/config.yaml: constraints=[80]: must be a list, each text"),
    _config(edited("- latency=80%", "- latency=80parsecs"), "run/config.yaml: unknown unit 'parsecs'"),
    _config(edited("agent: predictor", "agent: dpg"), "run/config.yaml: --agent dpg (did you mean 'ddpg'?)"),
    _config(edited("weights_only: false", "weights_only: 0"), "run/config.yaml: weights_only=0: must be true or false"),
    _config(edited("  - 2\n", "  - 2.5\n"), "run/config.yaml: bits=[2.5"),
    _config("search: !!python/object/apply:os.system ['touch marker']", "could not determine a constructor"),
    # best.json
    _run("best.json", "", "cannot read run/best.json"),
    _run("best.json", "{", "cannot read run/best.json"),
    _run("best.json", "[]", _BEST),
    _run("best.json", "null", _BEST),
    _run("best.json", "[" * 100_000, "cannot read run/best.json"),
    _run("best.json", b"\xff\xfe", "cannot read run/best.json"),
    _run("best.json", cut(0.5), "cannot read run/best.json"),
    _run("best.json", without("policy"), _BEST + "'policy' is missing"),
    _run("best.json", without("score.top1"), _BEST + "'top1' is missing"),
    _run("best.json", without("baselines"), _BEST + "'baselines' is missing"),
    _run("best.json", put("policy", {}), _BEST + "a policy is a mapping"),
    _run("best.json", put("policy.0.w_bits", 99), _BEST + "w_bits=99: a width"),
    _run("best.json", put("test_top1", "high"), _BEST + "test_top1='high': must be a number or null"),
    _run("best.json", put("cost", 3), _BEST),
    _run("best.json", put("cost.latency_ms", "fast"), _BEST + "cost={'latency_ms': 'fast'"),
    _run("best.json", put("cost.latency_ms", float("inf")), _BEST + "latency_ms=inf: must be finite"),
    _run("best.json", put("constraints", ["latency"]), _BEST),
    _run("best.json", put("baselines.float", {"test_top1": 1}), _BEST + "'cost' is missing"),
    _run("best.json", put("baselines.other", 3), _BEST),
    _run("best.json", put("policy.stem", {"w_bits": 4, "a_bits": 4}), "run", "export run --format csv"),
    _run("best.json", put("policy.stem", {"w_bits": 4, "a_bits": 4}), "'stem'", "export run --format packed"),
    # trials.jsonl
    _trial("{}\n", _LINE),
    _trial("null\n", _LINE),
    _trial("not a trial\n", _LINE),
    _trial("[" * 100_000 + "\n", _LINE),
    _trial(b"\xff\xfe\n", _LINE),
    _trial("\n", _LINE),
    _trial(folder, "cannot read run/trials.jsonl: Is a directory"),
    _trial(link("/etc/passwd"), "is a link that leads out of the run folder; put the file itself there"),
    _trial(link("../user.py"), "'run/trials.jsonl' is a link that leads out of the run folder"),
    _trial(put("number", "one"), _LINE + "number='one': must be a whole number"),
    _trial(put("origin", None), _LINE + "origin=None: must be text"),
    _trial(put("objective", "x"), _LINE + "objective='x': must be a number"),
    _trial(put("elapsed_s", float("nan")), _LINE),
    _trial(put("cost.latency_ms", float("nan")), _LINE + "latency_ms=nan: must be finite"),
    _trial(put("scores.0.fidelity", "guess"), _LINE + "fidelity='guess': must be 'float' or 'ptq' or 'qat'"),
    _trial(put("scores.0.top1", None), _LINE + "top1=None: must be a number"),
    _trial(put("scores", 3), _LINE),
    _trial(put("policy.layers.0.w_bits", 0.5), _LINE + "w_bits=0.5: a width"),
    _trial(put("\x1b[2J", 1), _LINE + r"unknown option '\x1b[2J'"),
    # The other files
    _run("baselines.json", None, "lacks baselines.json"),
    _run("baselines.json", "[]", "run/baselines.json was not written by `haq search`"),
    _run("baselines.json", put("uniform8.bits", 9), "bits=9: a width"),
    _run("baselines.json", put("uniform8.score", {}), "run/baselines.json was not written by `haq search`"),
    _run("layers.json", "{}", "layers.json", "export run --format csv"),
    _run("layers.json", put("0.macs", -1), "macs must be at least 1, but got -1", "export run --format csv"),
    _run("layers.json", put("0.kernel", "3x3"), "kernel='3x3': must be a list", "export run --format csv"),
    _run("layers.json", None, "lacks layers.json", "export run --format csv"),
    _run("model.pt", None, "run has no model.pt; finish it with", "export run --format packed"),
    _run("model.pt", b"", "cannot load run/model.pt", "export run --format packed"),
    _run("model.pt", cut(0.5), "cannot load run/model.pt", "export run --format packed"),
    _run("model.pt", b"", "cannot load run/model.pt", "bench run"),
    _run("best.json", put("policy.0.w_bits", 8), "layer '0' has (w_bits, a_bits)", "export run --format packed"),
    Case("report run", "'run/elsewhere' is a link that leads out of the run folder", {"run/elsewhere": link("..")}),
    Case("search --resume half", "'half/tune' is a link that leads out of the run folder", {"half/tune": link("/tmp")}),
    _run("bench.json", "{", "cannot read run/bench.json: … remove it, or make it again"),
    _run("bench.json", "{}", "cannot read run/bench.json: … remove it, or make it again"),
    _run("bench.json", b"\xff", "cannot read run/bench.json"),
    _run("sensitivity.json", "[]", "cannot read run/sensitivity.json: … remove it, or make it again"),
    _run("sensitivity.json", '{"measures": {"kl": 3}}', "cannot read run/sensitivity.json"),
    Case(
        "search --resume half",
        "'half/tune/tuner.pkl' is a link that leads out of the run folder",
        {"half/tune/tuner.pkl": link("../../user.py")},
    ),
    # Resuming what cannot be resumed
    _half("config.yaml", edited("model: user.py:net", "model: gone.py:net"), "model file 'gone.py' does not exist"),
    _half("config.yaml", edited("data: npz:data", "data: npz:gone"), "data folder 'gone' does not exist"),
    _half("config.yaml", edited("hardware: edge", "hardware: egde"), "unknown hardware 'egde'"),
    # the agent's state
    *(
        _half("searcher.pt", spoil, "cannot read 'half/searcher.pt' as the state of a search: … remove it, and")
        for spoil in ("", "{", "[" * 100_000, b"\xff\xfe", b"PK\x03\x04", b"\x80\x04K\x01.", folder)
    ),
]
