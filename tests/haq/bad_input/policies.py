"""Policies, JSON and YAML."""

import json
from typing import Any

from tests.haq.bad_input.case import Case, Spoil, cut, encoded, folder, link, put, without

_COMMAND = "quantize --policy bits.json --model user.py:net --data npz:data"


def _policy(spoil: Spoil, message: str) -> Case:
    return Case(_COMMAND, message, {"bits.json": spoil})


def _layers(layers: dict[Any, Any], message: str) -> Case:
    return _policy(json.dumps({"scheme": "linear", "layers": layers}), message)


_FOUR = {"w_bits": 4, "a_bits": 4}

CASES = [
    Case("quantize --policy nowhere.json", "policy file 'nowhere.json' does not exist; haq export writes one"),
    _policy("", "bits.json: a policy is a mapping of layer names to {w_bits, a_bits}; haq export writes one"),
    _policy("[]", "bits.json: a policy is a mapping"),
    _policy("{}", "bits.json: a policy is a mapping"),
    _policy("null", "bits.json: a policy is a mapping"),
    _policy("{'a': ", "cannot read policy 'bits.json': while parsing"),
    _policy("{" * 3000, "cannot read policy 'bits.json': it is nested too deeply"),
    _policy(b"\x80\x04\x95", "cannot read policy 'bits.json': it is not UTF-8 text"),
    _policy(encoded("utf-16-le"), "cannot read policy 'bits.json'"),
    _policy(folder, "cannot read policy 'bits.json': Is a directory"),
    _policy(link("nowhere"), "policy file 'bits.json' does not exist"),
    _policy(link("/dev/zero"), "cannot read policy 'bits.json': it is larger than 8 MiB"),
    _policy(cut(0.6), "cannot read policy 'bits.json': while parsing"),
    _policy("!!python/object/apply:os.system ['touch marker']", "could not determine a constructor for the tag"),
    _policy(put("version", 2), "bits.json: policy.version=2: this haq reads version 1"),
    _policy(put("layers", []), "bits.json: policy.layers must be a mapping, but got list"),
    _policy(put("layers", {}), "bits.json: a policy needs at least one layer"),
    _policy(without("layers"), "bits.json: policy.layers must be a mapping, but got NoneType"),
    _policy(without("layers.0.a_bits"), "bits.json: policy layer '0' must hold exactly w_bits and a_bits"),
    _policy(put("scheme", "lqs"), "unknown scheme 'lqs' (did you mean 'lsq'?)"),
    _policy(put("layers.0.w_bits", 9), "bits.json: w_bits=9: a width is 1 to 8, 16, or null for floating point"),
    _policy(put("layers.0.w_bits", 0), "bits.json: w_bits=0: a width"),
    _policy(put("layers.0.w_bits", -1), "bits.json: w_bits=-1: a width"),
    _policy(put("layers.0.w_bits", 4.0), "bits.json: w_bits=4.0: a width"),
    _policy(put("layers.0.w_bits", "4"), "bits.json: w_bits='4': a width"),
    _policy(put("layers.0.w_bits", True), "bits.json: w_bits=True: a width"),
    _policy(put("layers.0.w_bits", [4]), "bits.json: w_bits=[4]: a width"),
    _policy(put("layers.0.a_bits", float("nan")), "bits.json: a_bits="),
    _policy(put("layers.0.bits", 4), "bits.json: policy layer '0' must hold exactly w_bits and a_bits"),
    _policy(put("layers.0", 4), "bits.json: policy layer '0' must hold exactly w_bits and a_bits, but got 4"),
    _policy("scheme: linear\nlayers:\n  0: {w_bits: 4, a_bits: 4}\n", "policy layer 0 is int; write names of layers"),
    _policy('{"0": {"w_bits": 4, "a_bits": 4}, "0": {"w_bits": 2, "a_bits": 2}}', "the key '0' occurs twice; keep one"),
    _layers({"stem": _FOUR}, "the policy's layer 'stem' is not in the model"),
    _layers({"0": _FOUR, "1": _FOUR}, "the policy's layer '1' is not in the model"),
    _layers({"\x1b[2J": _FOUR}, r"the policy's layer '\x1b[2J' is not in the model"),
    _layers({"0" * 900: _FOUR}, "the policy's layer '0000"),
    _layers({"": _FOUR}, "the policy's layer '' is not in the model"),
]
