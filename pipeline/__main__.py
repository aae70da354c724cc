"""The command line beside training: ``python -m pipeline predict flowers photo.jpg``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline import console
from pipeline.commands import cache, evaluate, exports, models, plan, predict, runs, serve
from pipeline.errors import CUT_OFF, DATA_MISSING, FAILED, INTERRUPTED, DataMissing, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    try:
        options, more = parser.parse_known_args(arguments)
        if more and not getattr(options, "takes_more", False):
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        options.more = more
        return int(options.run(options))
    except UserError as error:
        console.complain(str(error))
        return DATA_MISSING if isinstance(error, DataMissing) else FAILED
    except BrokenPipeError:
        return CUT_OFF
    except KeyboardInterrupt:
        console.complain("stopped")
        return INTERRUPTED
    except OSError as error:
        if not error.filename:
            raise
        console.complain(f"{error.filename}: {error.strerror}; mend that, then run again")
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Use what the pipeline made. Training is `make retrain` or `luigi --module pipeline Export`.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for command in (plan, predict, serve, evaluate, exports, runs, models, cache):
        command.add(verbs)
    return parser


if __name__ == "__main__":
    console.take_over(results_matter=True)
    sys.exit(main())
