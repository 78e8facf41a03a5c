"""The `hicom` command: parses, calls `pipeline.commands`, prints. No logic here, and nothing imports this module."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from pipeline.commands import RunRequest

app = typer.Typer(
    help="Untrimmed video in, instruction dataset out: the pipeline of HICom-248K (CVPR 2025).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
WIDE = 10_000
"""Columns where the output is no terminal: a table's rows stay whole, and whoever reads them breaks the lines."""
out = Console(width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, width=None if sys.stderr.isatty() else WIDE)
STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""

STAGES: dict[str, str] = {
    "ingest": "Read each video's header and give it an id.",
    "embed": "Embed a few frames of each video.",
    "select": "Take the best videos of each category, and a random rest.",
    "scan": "Decode each selected video once: content scores and frame embeddings.",
    "split": "Cut each video's scores into shots.",
    "dedup": "Keep the shots that hold a keyframe.",
    "filter": "Keep the shots of acceptable length.",
    "cut": "Write each kept shot as a clip.",
    "generate": "Caption each clip, then write its instruction-answer pairs.",
    "clean": "Reject invalid pairs, each with its rule.",
    "export": "Write the dataset: Parquet shards, LLaVA JSON, dataset card.",
}

Run = Annotated[str, typer.Argument(metavar="RUN", help="The run folder: a path, or a URL such as s3://bucket/run.")]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[INPUT]...", help="Folders, globs, videos, URLs or manifests (CSV, JSONL, Parquet, JSON)."),
]
Out = Annotated[str, typer.Option("--out", help="The run folder: a path, or a URL such as s3://bucket/run.")]
Profile = Annotated[str | None, typer.Option(help="A shipped profile, or the path of a YAML file.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set one config value; may be repeated.")
]
Engine = Annotated[str, typer.Option(help="ray, or local: the same stages in this process, for debugging.")]
Address = Annotated[str | None, typer.Option(help="Address of a Ray cluster; without it Ray starts on this machine.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take a seeded sample of this many source rows.")]
RejectShare = Annotated[
    float, typer.Option(min=0, max=1, help="More failed items of a stage than this share make the exit code 1.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Download no model: what is not on this machine is missing.")]
Accept = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although profile, code or prompts are not those of the run.")
]


@app.command()
def run(
    inputs: Inputs = None,
    out: Out = "",
    profile: Profile = None,
    sets: Sets = None,
    engine: Engine = "ray",
    address: Address = None,
    limit: Limit = None,
    max_reject_share: RejectShare = 1.0,
    accept_changes: Accept = False,
    offline: Offline = False,
) -> None:
    """Run all stages in order, or go on with a run that was stopped."""
    if not out:
        raise _usage("--out RUN is missing: the folder that the run is kept in")
    from pipeline.commands import RunRequest

    request = RunRequest(
        out,
        inputs=tuple(inputs or ()),
        profile=profile,
        sets=tuple(sets or ()),
        accept_changes=accept_changes,
        engine=engine,
        address=address,
        limit=limit,
        max_reject_share=max_reject_share,
        offline=offline,
    )
    _run(request)
    _next_commands(request.out)


def _stage_command(name: str, about: str) -> None:
    @app.command(name, help=about)
    def stage(
        run: Run,
        inputs: Inputs = None,
        profile: Profile = None,
        sets: Sets = None,
        engine: Engine = "ray",
        address: Address = None,
        limit: Limit = None,
        max_reject_share: RejectShare = 1.0,
        accept_changes: Accept = False,
        offline: Offline = False,
    ) -> None:
        if inputs and name != "ingest":
            raise _usage(f"{name} takes no inputs; they are named once, with ingest or run")
        from pipeline.commands import RunRequest

        _run(
            RunRequest(
                run,
                stages=(name,),
                inputs=tuple(inputs or ()),
                profile=profile,
                sets=tuple(sets or ()),
                accept_changes=accept_changes,
                engine=engine,
                address=address,
                limit=limit,
                max_reject_share=max_reject_share,
                offline=offline,
            )
        )


for _name, _about in STAGES.items():
    _stage_command(_name, _about)


def _run(request: RunRequest) -> None:
    from pipeline import commands
    from pipeline.show import TerminalReporter

    reporter = TerminalReporter(out)
    try:
        result = commands.run(request, reporter)
    finally:
        reporter.close()
    for stage in result.too_many:
        err.print(
            f"{stage}: {result.failed_items[stage]} of {result.counts[stage].items_in} items failed, "
            f"more than --max-reject-share {request.max_reject_share:g}"
        )
    if result.too_many:
        raise typer.Exit(1)


def _next_commands(run: str) -> None:
    out.print("\nnext:", highlight=False)
    run = shlex.quote(run)
    for line in (f"hicom status {run}", f"hicom rejects {run}", f"hicom query {run} 'SELECT * FROM clips LIMIT 5'"):
        out.print("  " + line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def plan(
    inputs: Inputs = None,
    profile: Profile = None,
    sets: Sets = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what a run of INPUT will take.")] = False,
    rates: Annotated[str | None, typer.Option(metavar="RUN", help="Take the rates measured on this run.")] = None,
    limit: Limit = None,
    headers: Annotated[int | None, typer.Option(min=1, help="Read so many headers at most; 1000 by default.")] = None,
    form: Annotated[str, typer.Option("--format", help="The estimate as table or json.")] = "table",
) -> None:
    """Print the stages: kind, row, reads, writes, needs. With --estimate: what a run will take, from headers alone."""
    if not estimate:
        if inputs or rates or limit or headers:
            raise _usage("INPUT, --rates, --limit and --headers are for an estimate: add --estimate")
        from pipeline.config import load_profile, parse, parse_overrides
        from pipeline.session import DEFAULT_PROFILE
        from pipeline.show import plan as render

        out.print(render(parse(load_profile(profile or DEFAULT_PROFILE), parse_overrides(sets or ())).stages()))
        return
    from pipeline.estimate.estimate import EstimateRequest, make_estimate
    from pipeline.estimate.render import as_json, as_table, check_form

    check_form(form)
    made = make_estimate(EstimateRequest(tuple(inputs or ()), profile, tuple(sets or ()), limit, headers, rates))
    if form == "json":
        out.file.write(as_json(made) + "\n")
    else:
        out.print(as_table(made))


@app.command()
def status(run: Run) -> None:
    """Print how far each stage is: in, out, rejected."""
    from pipeline.commands import status as read
    from pipeline.show import funnel

    out.print(funnel(read(run)))


@app.command()
def rejects(
    run: Run,
    stage: Annotated[str | None, typer.Option(help="Only this stage's.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most rows; 50 as a table, else all.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or parquet")] = "table",
    output: Annotated[str | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Print what was dropped, where and why."""
    from pipeline.query import rejects_sql

    _query(run, rejects_sql(stage, reason), form, output, limit or (50 if form == "table" else None))


@app.command()
def retry(
    run: Run,
    reason: Annotated[str, typer.Option(help="The reject reason to try again, such as timeout.")],
    engine: Engine = "ray",
    address: Address = None,
) -> None:
    """Try the items rejected for a reason again, and what follows from them."""
    from pipeline import commands
    from pipeline.show import TerminalReporter

    reporter = TerminalReporter(out)
    try:
        forgotten, _ = commands.retry(run, reason, reporter, engine, address)
    finally:
        reporter.close()
    out.print(f"{forgotten} items rejected as {reason} were tried again", highlight=False)


@app.command()
def query(
    run: Run,
    sql: Annotated[str | None, typer.Argument(help="One SELECT; without it the views are listed.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, json or parquet")] = "table",
    output: Annotated[str | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Query the run with SQL (DuckDB), read-only."""
    _query(run, sql, form, output)


def _query(run: str, sql: str | None, form: str, output: str | None, limit: int | None = None) -> None:
    from pipeline import show
    from pipeline.query import JOINED_VIEWS, open_query, run_query, view_columns
    from pipeline.session import read_session

    show.check_form(form, output)
    session = read_session(run)
    if sql is None:
        out.print(show.views({name: about for name, (about, _) in JOINED_VIEWS.items()}, view_columns()))
    else:
        show.result(run_query(open_query(session), sql), form, out, output, limit)


@app.command()
def stats(run: Run) -> None:
    """Print the figures of the paper's Tab. 1 and Fig. 4 for this run, and the funnel."""
    from pipeline import show
    from pipeline.query import open_query, run_query
    from pipeline.session import read_session
    from pipeline.stats_sql import FIGURES

    con = open_query(read_session(run))
    for figure in FIGURES:
        out.print(f"\n[bold]{figure.title}[/]")
        show.result(run_query(con, figure.sql), "table", out, None)


@app.command()
def gc(run: Run, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False) -> None:
    """Remove what no view reaches: results of other configs, unused clips, leftovers of killed runs."""
    from pipeline.commands import gc as collect

    removed = collect(run, dry_run=dry_run)
    size = removed.pop("bytes", 0)
    kinds = ", ".join(f"{count} in {kind}" for kind, count in sorted(removed.items())) or "nothing"
    out.print(f"{'would remove' if dry_run else 'removed'}: {kinds}, {size / 2**20:.1f} MiB", highlight=False)


@app.command()
def doctor(
    profile: Annotated[str | None, typer.Option(help="Check also what the models of this profile need.")] = None,
    sets: Sets = None,
    offline: Offline = False,
) -> None:
    """Check this machine: packages, codecs, Ray, disk; with --profile also weights, GPUs and endpoint."""
    from pipeline.doctor import checks

    failed = 0
    for check in checks(profile, sets or (), offline=offline):
        line = f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.found}"
        out.print(line, highlight=False, markup=False, soft_wrap=True)
        failed += not check.ok
    if failed:
        raise typer.Exit(1)


prompts = typer.Typer(help="The prompts that describers are asked with.", no_args_is_help=True)
app.add_typer(prompts, name="prompts")


@prompts.command("list")
def list_prompts() -> None:
    """Print each prompt's name, hash and purpose."""
    from pipeline.show_prompts import listed

    out.print(listed())


@prompts.command("show")
def show_prompts(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="caption or qa; without it both.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="As the two turns about a clip of this run.")] = None,
    clip: Annotated[str | None, typer.Option("--clip", help="The clip's id or its beginning; else the first.")] = None,
    profile: Annotated[str | None, typer.Option(help="The describer of this profile instead of the run's.")] = None,
) -> None:
    """Print the prompts as a describer is asked: text, answer's schema, hashes; for a clip also frames and answers."""
    from pipeline.show import printable
    from pipeline.show_prompts import conversation, files

    if run is None and (clip or profile):
        raise _usage("--clip and --profile need --run RUN: the run folder that holds the clip")
    text = files(name) if run is None else conversation(run, name, clip, profile)
    out.print(printable(text), markup=False, highlight=False, soft_wrap=True)


@app.command()
def demo(out_dir: Annotated[str, typer.Option("--out", help="Folder for videos and run.")] = "demo-run") -> None:
    """Write a dozen small videos and run the whole pipeline on them."""
    from pipeline.demo.tour import prepare, tour

    videos, run_dir = prepare(out_dir)
    out.print(f"wrote {len(videos)} small videos to {out_dir}/videos", highlight=False, markup=False)
    from pipeline.commands import RunRequest

    _run(RunRequest(run_dir, inputs=(f"{out_dir}/videos",), profile="demo"))
    tour(run_dir, out)


def _usage(message: str) -> Exception:
    from pipeline.stage import UserError

    return UserError(message)


def main(argv: list[str] | None = None) -> None:
    """Run the command. Exit codes: 0 complete, 1 a stage failed, 2 the user's mistake, 130 stopped by Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names on disks are bytes; what is not text is printed escaped
            stream.reconfigure(errors="backslashreplace")
    code = _guarded(lambda: app(argv, standalone_mode=False))
    sys.exit(code)


def _guarded(call: Callable[[], Any]) -> int:
    from typer.exceptions import TyperException

    from pipeline.stage import UserError

    try:
        code = int(call() or 0)
    except (typer.Abort, KeyboardInterrupt):
        code = STOPPED
    except TyperException as error:  # a command or an option that is not known, or a value that does not fit
        if message := error.format_message():  # empty when the help was printed instead
            command = getattr(getattr(error, "ctx", None), "command_path", "hicom")
            err.print(f"error: {message} See: {command} --help", markup=False, highlight=False, soft_wrap=True)
        return 2
    except UserError as error:
        err.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except Exception as error:  # last resort for the terminal: the log has the trace
        from pipeline.commands import failure_message

        err.print(f"failed: {failure_message(error)}", markup=False, highlight=False, soft_wrap=True)
        return 1
    if code == STOPPED:  # Typer turns Ctrl-C into this code
        err.print("\nstopped. What was committed is safe; the same command goes on from there.")
    return code


if __name__ == "__main__":
    main()
