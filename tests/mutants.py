"""Changes the library one place at a time, and says which changes no test notices.

python tests/mutants.py optax_gc/_axes.py --workers 2 --every 3 --out survivors.txt

A mutant is one changed operator, constant, condition or return value, or one removed statement. It
lives in memory: a worker imports the package again with it, in a process that has JAX and the
frameworks already. The tracer's mutants run on the programs of its tests that come to the changed
line, up to the first answer that changes, and the rest on the tests in TESTS, up to the first
failure, as other files' do.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.util
import io
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = {
    "_axes": ["test_axes", "test_centralize", "test_containers"],
    "_match": ["test_axes", "test_containers", "test_centralize"],
    "_centralize": ["test_centralize", "test_algorithms", "test_meshes"],
    "_project": ["test_centralize", "test_invariants", "test_weights", "test_meshes"],
    "_shards": ["test_meshes", "test_meshes_weights"],
    "_weights": ["test_weights", "test_meshes_weights"],
    "_scale_invariant": ["test_scale_invariant"],
    "diagnostics": ["test_diagnostics"],
    "_trace": ["test_trace_reasons", "test_trace_errors", "test_trace_evidence", "test_roles"],
    "_trace.call": ["test_first_call", "test_mistakes"],
    "_trace.jaxprs": ["test_jaxprs"],
}
EXPRESSIONS = 1000
SECONDS = 300  # of the processor's time for one mutant, some of which never end
COMPARED = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def others(node):
    """What may stand in a node's place."""
    match node:
        case ast.Compare(left, [op], right) if type(op) in COMPARED:
            yield ast.Compare(left, [COMPARED[type(op)]()], right)
        case ast.BoolOp(ast.And(), values):
            yield ast.BoolOp(ast.Or(), values)
        case ast.BoolOp(ast.Or(), values):
            yield ast.BoolOp(ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.UnaryOp(ast.USub(), ast.Constant(1)):
            yield ast.Constant(1)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)) if value in (0, 1):
            yield ast.Constant(1 - value)
        case ast.BinOp(left, ast.BitOr(), right):
            yield ast.BinOp(left, ast.BitAnd(), right)
        case ast.BinOp(left, ast.BitAnd(), right):
            yield ast.BinOp(left, ast.BitOr(), right)
        case ast.BinOp(left, ast.Sub() | ast.Add() | ast.Mult(), _):
            yield left
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.If(ast.Name("TYPE_CHECKING")) | ast.Return(ast.Constant(False | None)):
            return  # the same for all who do not compare with None
        case ast.If(_, body, orelse):
            yield ast.If(ast.Constant(True), body, orelse)
            yield ast.If(ast.Constant(False), body, orelse)
        case ast.comprehension(target, of, ifs) if ifs:
            yield ast.comprehension(target, of, [], is_async=0)
        case ast.Return(value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Constant()):
            return
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()


SKIPPED = ("annotation", "returns", "decorator_list", "type_ignores")


def sites(node, inside=""):
    """(parent, field, index, name of the function) of all that can be changed, in order."""
    name = getattr(node, "name", "") if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
    inside = f"{inside}.{name}".strip(".") if name else inside
    for field, value in ast.iter_fields(node):
        if field in SKIPPED or isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield node, field, i, inside
                yield from sites(child, inside)


def mutants(source):
    """(what is changed, its line if it is in a function, the source) of each mutant of a file."""
    tree = ast.parse(source)
    for place, (parent, field, i, inside) in enumerate(sites(tree)):
        child = getattr(parent, field) if i is None else getattr(parent, field)[i]
        for other in others(child):
            changed = copy.deepcopy(tree)
            again, *_ = list(sites(changed))[place]
            ast.copy_location(other, child)
            if i is None:
                setattr(again, field, other)
            else:
                getattr(again, field)[i] = other
            text = lambda n: ast.unparse(n).replace("\n", " ")[:70]  # noqa: E731
            line = getattr(child, "lineno", getattr(parent, "lineno", 0))
            what = f"{line} {inside}: {text(child)}  ->  {text(other)}"
            yield what, line if inside else 0, ast.unparse(ast.fix_missing_locations(changed))


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from another text."""

    def __init__(self, module, source):
        self.module, self.source = module, source

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        file = str(ROOT / (name.replace(".", "/") + ".py"))
        package = not os.path.exists(file)
        file = file.replace(".py", "/__init__.py") if package else file
        inside = [os.path.dirname(file)] if package else None  # [] would make it a package
        return importlib.util.spec_from_file_location(
            name, file, loader=self, submodule_search_locations=inside
        )

    def exec_module(self, module):
        exec(compile(self.source, module.__file__, "exec"), module.__dict__)


class TooLong(BaseException):
    """A mutant that does not end."""


@contextlib.contextmanager
def imported(module, source):
    """The package with a mutant in it."""

    def forget():
        for name in [*sys.modules]:
            own = name.split(".")[0]
            if own in ("optax_gc", "conftest") or own.startswith(("test_", "trace_", "mesh_")):
                del sys.modules[name]

    def stop(*_):
        raise TooLong

    kept = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("optax_gc", "conftest")}
    finder = Changed(module, source)
    forget()
    sys.meta_path.insert(0, finder)
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.meta_path.remove(finder)
        forget()
        sys.modules.update(kept)


def passes(tests):
    """Whether tests pass, in this process."""
    import pytest

    files = [str(ROOT / "tests" / f"{name}.py") for name in tests]
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain", "--tb=no"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main([*options, *files]) == 0


def traced(fn, params, *args):
    """A program as the tracer walks through it, which no mutant changes."""
    from optax_gc._trace.call import make_jaxpr, prepare

    call = prepare(fn, params, args, {})
    closed, _ = make_jaxpr(call)
    shapes = [v.aval.shape for v in closed.jaxpr.invars[: len(call.params)]]
    return closed, len(call.params), call.is_data, shapes


class Programs:
    """The tracer on every program of its tests, respelled too, and on random expressions."""

    def __init__(self, file):
        from random_expressions import program
        from respell import changed, jaxpr_of, primitives, respelled
        from trace_everything import WHOLE, built, everything
        from trace_support import promoting

        spellings = ("dots as products and sums", "scans unrolled")
        programs = [built(build) for _, build, _ in everything(models=False)]
        with promoting():
            programs += [
                (respelled(name, *case), *case[1:])
                for case in programs
                if not primitives(jaxpr_of(case)) & WHOLE
                for name in spellings
                if changed(name, case)
            ]
            for seed in range(EXPRESSIONS):
                rng = random.Random(seed)
                text, fn, params, inputs, _ = program(rng.choice, rng.choice([2, 3, 4]))
                programs += [(fn, params, inputs)] if params and len(text) < 700 else []
            self.cases = [traced(*case) for case in programs]
        self.lines = [set() for _ in self.cases]
        self.answers = [self.watched(i, file) for i in range(len(self.cases))]

    def watched(self, i, file):
        """The answers to a program, whose lines of a file are noted."""

        def note(frame, event, _):
            self.lines[i].add(frame.f_lineno)
            return note

        sys.settrace(lambda frame, *_: note if frame.f_code.co_filename == file else None)
        try:
            return self.answer(self.cases[i])
        finally:
            sys.settrace(None)

    def answer(self, case):
        closed, n, is_data, shapes = case
        walk = importlib.import_module("optax_gc._trace.walk").walk
        verdicts = importlib.import_module("optax_gc._trace.verdict").verdicts
        found = verdicts(walk(closed, n, is_data), shapes)
        return [(bool(v.refused), v.axes, v.outputs, v.batch) for v in found]

    def notice(self, line):
        """Whether an answer changes; what notices comes first the next time."""
        for i, case in enumerate(self.cases):
            if (not line or line in self.lines[i]) and self.answer(case) != self.answers[i]:
                for of in (self.cases, self.answers, self.lines):
                    of.insert(0, of.pop(i))
                return True
        return False


def work(file, share, every):
    """Prints the survivors among one worker's share of a file's mutants."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import conftest  # noqa: F401

    module = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    name = module.split(".")[1]
    programs = Programs(str(ROOT / file)) if name == "_trace" else None
    own = module.removeprefix("optax_gc.")
    tests = TESTS[name] + (TESTS.get(own, []) if own != name else [])
    first, workers = share
    text = (ROOT / file).read_text()
    chosen = list(mutants(text))[::every]
    mine = chosen[first::workers]
    unchanged = (None, 0, text)
    for what, line, source in [unchanged, *mine, unchanged]:
        try:
            with imported(module, source):
                importlib.import_module("optax_gc")
                survives = not (programs and programs.notice(line)) and passes(tests)
        except (Exception, TooLong, SystemExit):
            survives = False
        if what is None:
            assert survives, f"the tests of {file} fail without a mutant"
            continue
        print(f"{'survives' if survives else 'killed'}\t{file}:{what}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="only each n-th mutant")
    parser.add_argument("--out", type=Path, help="a file for the survivors")
    parser.add_argument("--share", type=int, help="of one worker (used by this script itself)")
    options = parser.parse_args()
    if options.share is not None:
        for file in options.files:
            work(file, (options.share, options.workers), options.every)
        return
    command = [sys.executable, __file__, *options.files, "--workers", str(options.workers)]
    command += ["--every", str(options.every)]
    started = [
        subprocess.Popen([*command, "--share", str(i)], stdout=subprocess.PIPE, text=True)
        for i in range(options.workers)
    ]
    lines = [line for worker in started for line in worker.communicate()[0].splitlines()]
    survivors = sorted(line.split("\t")[1] for line in lines if line.startswith("survives"))
    report = "\n".join([*survivors, f"{len(lines)} mutants, {len(survivors)} survive"])
    print(report)
    if options.out:
        options.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
