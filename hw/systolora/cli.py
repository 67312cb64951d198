"""The command line: `generate`, `info`, `run`, `replay`, `compile`, `disasm`, `adapter`, `perf`,
`synth`, `power`, `train-demo`.

Thin: parses, calls, turns errors into one line. Exit status 0; 1 where `replay` finds a difference;
2 for bad input, with one line on stderr; 130 when interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .adapter_command import add_adapter
from .compile_command import add_compile, add_disasm
from .config import ConfigError
from .configuration_options import add_configuration, configuration
from .generate_command import add_generate, generate
from .info_command import add_info, info
from .perf_command import add_perf, baselines, settle
from .power_command import add_power
from .replay_command import add_replay
from .run_command import add_run
from .synth_command import add_synth, synth
from .train_command import add_train_demo, train_demo
from .training_options import trains

__all__ = ["main"]

BAD_INPUT, INTERRUPTED, BROKEN_PIPE, DIFFERENT = 2, 130, 1, 1

_DESCRIPTION = """\
systolora generates the Verilog of accelerators that train quantized LoRA layers, and runs layers
through the golden model or through that very Verilog."""


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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="systolora",
        description=_DESCRIPTION,
        epilog="example:\n  systolora generate --preset tiny -o build/tiny",
    )
    parser.add_argument("--version", action="version", version=f"systolora {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    add_generate(commands).set_defaults(function=generate)
    add_info(commands).set_defaults(function=info)
    add_run(commands).set_defaults(function=_run)
    again = add_replay(commands)
    add_configuration(again)
    again.set_defaults(function=_replay)
    add_compile(commands).set_defaults(function=_compile)
    add_disasm(commands).set_defaults(function=_disasm)
    add_adapter(commands, _adapter)
    perf = add_perf(commands)
    add_configuration(perf)
    perf.set_defaults(function=_perf)
    synthesis = add_synth(commands)
    add_configuration(synthesis)
    synthesis.set_defaults(function=_synth)
    add_power(commands)
    add_train_demo(commands).set_defaults(function=_train_demo)
    return parser


def _compile(args: argparse.Namespace) -> None:
    config = configuration(args)
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
        trains=trains(args),
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


def _adapter(args: argparse.Namespace) -> None:
    from systolora_sim.adapters import convert_adapters

    convert_adapters(
        args.adapter, args.output, args.form, scheme=args.format, alpha=args.alpha, note=_note
    )


def _run(args: argparse.Namespace) -> None:
    config = configuration(args)
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
        if trains(args) or holds_training(args.layer):
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
    config = configuration(args)
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
    config = configuration(args)
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
    synth(args, configuration(args))


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
