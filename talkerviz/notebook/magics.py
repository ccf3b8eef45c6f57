"""Cell magic `%%talkertrace`, which records the models that a cell calls."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class, output_can_be_silenced
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display
from torch import nn

from talkerviz.api import recording
from talkerviz.notebook.find_models import recording_called
from talkerviz.recorder.recording import Recording


@magics_class
class TraceMagics(Magics):
    """Magics of `%load_ext talkerviz`."""

    shell: Any  # set before a magic is called

    @magic_arguments()
    @argument(
        "model",
        nargs="?",
        help="Model, such as model or pipe.talker. Default: those that the cell calls.",
    )
    @argument("-o", "--output", default="trace", metavar="NAME", help="Variable for the trace. Default: trace.")
    @output_can_be_silenced
    @cell_magic
    def talkertrace(self, line: str, cell: str) -> Any:
        """Record every module call of a cell, show the Trace, and store it in the variable `trace`.

        Without a model named, the one that the cell calls is recorded, whether the cell or an earlier one made it. If
        several are in variables at the first call, all are recorded, and `trace` is a dict with a Trace per variable.
        A cell that fails leaves the trace up to then.
        """
        args = parse_argstring(self.talkertrace, line)
        if not args.output.isidentifier():
            raise UsageError(f"-o {args.output}: not a valid name of a variable")
        named = self._model(args.model) if args.model else None
        run = self._compiled(cell)
        recordings = _named(args.model, named) if named is not None else recording_called(self.shell.user_ns)
        found: Mapping[str, Recording[Any]] = {}
        try:
            with recordings as found:
                return run()
        finally:
            self._leave(args.output, found)

    def _model(self, expression: str) -> nn.Module:
        try:
            model = eval(expression, self.shell.user_ns)
        except Exception as error:
            raise UsageError(f"{expression}: {type(error).__name__}: {error}; name a variable with a model") from None
        if not isinstance(model, nn.Module):
            raise UsageError(f"{expression} is a {type(model).__name__}, not a torch.nn.Module")
        return model

    def _compiled(self, cell: str) -> Callable[[], Any]:
        """Compile the cell into a function that returns the value of the last line if that is an expression."""
        shell = self.shell
        source = shell.transform_cell(cell)
        # Tracebacks find the lines by this name.
        file = shell.compile.cache(source, shell.execution_count, raw_code=cell)
        tree = shell.transform_ast(shell.compile.ast_parse(source, filename=file))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        code = shell.compile(tree, file, "exec")
        value = None if last is None else shell.compile(ast.Expression(last.value), file, "eval")

        def run() -> Any:
            exec(code, shell.user_ns)
            return None if value is None else eval(value, shell.user_ns)

        return run

    def _leave(self, variable: str, found: Mapping[str, Recording[Any]]) -> None:
        """Store the traces of called models in a variable, and show them."""
        traces = {name: rec.trace for name, rec in found.items() if len(rec.trace.calls)}
        if not traces:
            print("talkertrace: no module was called, so there is no trace", file=sys.stderr)
            return
        several = len(traces) > 1
        self.shell.user_ns[variable] = traces if several else next(iter(traces.values()))
        for name, trace in traces.items():
            if several:
                print(f"{variable}[{name!r}]")
            display(trace)


@contextmanager
def _named(expression: str, model: nn.Module) -> Iterator[Mapping[str, Recording[Any]]]:
    name = expression.rpartition(".")[2]
    with recording(model, name if name.isidentifier() else "model") as rec:
        yield {expression: rec}
