"""Hardware files."""

from tests.haq.bad_input.case import Case, Spoil, cut, edited, encoded, folder, link


def _board(spoil: Spoil, message: str, command: str = "hardware board.yaml") -> Case:
    return Case(command, message, {"board.yaml": spoil})


_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)

CASES = [
    Case("hardware nowhere.yaml", "hardware file 'nowhere.yaml' does not exist; give a path, or one of"),
    Case("hardware ~no_such_user/board.yaml", "hardware file '~no_such_user/board.yaml' does not exist"),
    Case(f"hardware {'x' * 300}.yaml", "File name too long"),
    _board("", "the file must be a mapping of name, kind, summary, pairs, parameters"),
    _board("\n# nothing but a comment\n", "the file must be a mapping"),
    _board("- a\n- list\n", "the file must be a mapping"),
    _board("just text", "the file must be a mapping … 'just text'"),
    _board(b"\x00\x01\x02\xff", "cannot read hardware file board.yaml"),
    _board(b"\x7fELF" + bytes(range(256)), "cannot read hardware file board.yaml: it is not UTF-8 text"),
    _board("name: \x00", "cannot read hardware file board.yaml"),
    _board(encoded("utf-16"), "cannot read hardware file board.yaml: it is not UTF-8 text"),
    _board(folder, "cannot read hardware file board.yaml: Is a directory"),
    _board(link("nowhere"), "hardware file 'board.yaml' does not exist"),
    _board(link("board.yaml"), "hardware file 'board.yaml' does not exist"),
    _board(link("/dev/null"), "the file must be a mapping"),
    _board(link("/dev/zero"), "cannot read hardware file board.yaml: it is larger than 8 MiB"),
    _board("name: [unclosed", "cannot read hardware file board.yaml: while parsing a flow sequence"),
    _board("[" * 5000, "cannot read hardware file board.yaml: it is nested too deeply"),
    _board(_BOMB, "its aliases (*name) expand to too much; write the values out"),
    _board("&a [*a]", "its aliases (*name) expand to too much"),
    _board("name: !!python/object/apply:os.system ['touch marker']\n", "could not determine a constructor for the tag"),
    _board("name: 2001-99-99", "cannot read hardware file board.yaml: month must be in 1..12"),
    _board("? [a, b]\n: 1\n", "cannot read hardware file board.yaml … found unhashable key"),
    _board(edited("batch: 16", "batch: 16\nbatch: 1"), "the key 'batch' occurs twice; keep one"),
    _board(edited("rows:", "depth:"), "the key 'depth' occurs twice; keep one"),
    _board(edited("kind: bismo", "kind: bismoo"), "kind='bismoo': unknown (did you mean 'bismo'?)"),
    _board(edited("kind: bismo", "kind: [bismo]"), "kind=['bismo']: use"),
    _board(edited("kind:", "knid:"), "unknown key 'knid' (did you mean 'kind'?)"),
    _board(edited("name: edge", "name: ''"), "name='': give the hardware a short name"),
    _board(edited("name: edge", "name: 3"), "name=3: give the hardware a short name"),
    _board(edited("name: edge\n", ""), "missing key 'name'; the file must hold name, kind"),
    _board(edited("batch: 16", "batch: 0"), "batch=0: give the usual number of samples at once, at least 1"),
    _board(edited("batch: 16", "batch: 1.5"), "batch=1.5: give the usual number"),
    _board(edited("batch: 16", "batch: yes"), "batch=True: give the usual number"),
    _board(edited("batch: 16", "batch: " + "9" * 30), "batch=9999"),
    _board(edited("pairs: [1-8/1-8]", "pairs: []"), "pairs=[]: list legal widths"),
    _board(edited("pairs: [1-8/1-8]", "pairs: 8/8"), "pairs='8/8': list legal widths"),
    _board(edited("pairs: [1-8/1-8]", "pairs: [8]"), "pairs: cannot read 8; list legal widths"),
    _board(edited("pairs: [1-8/1-8]", "pairs: [9/9]"), "pairs: cannot read '9/9'"),
    _board(edited("value: 200", "value: -200"), "parameters.clock_mhz.value=-200: must be a positive number"),
    _board(edited("value: 200", "value: .nan"), "parameters.clock_mhz.value=nan: must be a positive number"),
    _board(edited("value: 200", "value: .inf"), "parameters.clock_mhz.value=inf: must be a positive number"),
    _board(edited("value: 200", "value: 1.0e+400"), "parameters.clock_mhz.value=inf: must be a positive number"),
    _board(edited("value: 200", f"value: 1{'0' * 400}"), "parameters.clock_mhz.value=1000"),
    _board(edited("value: 200", f"value: 1{'0' * 5000}"), "cannot read hardware file board.yaml: Exceeds the limit"),
    _board(edited("value: 200", "value: '200'"), "parameters.clock_mhz.value='200': must be a positive number"),
    _board(edited("value: 8", "value: 8.5"), "parameters.rows.value=8.5: must be a positive whole number"),
    _board(edited("unit: MHz", "unit: GHz"), "parameters.clock_mhz.unit='GHz': must be 'MHz'; convert the value"),
    _board(edited("unit: MHz", "unit:"), "parameters.clock_mhz.unit=None: must be 'MHz'"),
    _board(edited("    unit: MHz\n", ""), "missing key 'parameters.clock_mhz.unit'"),
    _board(edited("clock_mhz:", "clokc_mhz:"), "unknown key 'parameters.clokc_mhz' (did you mean 'clock_mhz'?)"),
    _board(edited("parameters:", "limits: {rom: 1}\nparameters:"), "unknown key 'limits.rom'"),
    _board(
        edited("parameters:", "limits: {ram: 1}\nparameters:"), "limits.ram must be a mapping of value, unit, source"
    ),
    _board(edited("kind: bismo", "\x1b]0;title\x07: 1"), "cannot read hardware file board.yaml"),
    _board(edited("name: edge", 'name: "\\e[2J"\nbatsh: 1'), "unknown key 'batsh' (did you mean 'batch'?)"),
    _board(edited("kind: bismo", 'kind: "\\e[2J"'), r"kind='\x1b[2J': unknown"),
    _board(cut(0.5), "board.yaml", "search --constraint latency=80% --hardware board.yaml"),
]
