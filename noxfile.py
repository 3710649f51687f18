"""Every job of the repository. `nox --list` names them; CONTRIBUTING.md explains them.

Environments are made by virtualenv and filled by pip, always under `constraints.txt`:
without it pip would take the newest of everything, and with PyTorch gigabytes of CUDA.
"""

import itertools
import os
import pathlib
import re
import shutil
import textwrap
import tomllib
import xml.etree.ElementTree
import zipfile

import nox


nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = [
    *("tests", "parity", "lint", "typecheck", "build", "third_party", "docs")
]

# The packages and their test sessions; a new package is one line. "light" is the half
# without a framework. A package without a session for it has its light tests run in
# the first session it has. "kernels" runs GPU kernels under Triton's interpreter, from
# both frameworks.
PACKAGES = {
    "core": ("light", "jax", "torch", "kernels"),
    "deer": ("jax", "torch"),
    "feedforward": ("jax", "torch"),
}
BACKENDS = ("jax", "torch")

# Tests that belong to no package, by the session whose environment suits them, and what
# else they need.
FURTHER_TESTS = {
    "deer-jax": ("benchmarks/tests", ["jaxopt"]),
    "core-torch": ("benchmarks/tests/torch", ["torchdeq"]),
}

# Libraries that tests are held against, by session: those that are installed with all
# that they need, and those without. nflows asks for tensorboard, which its code never
# imports; matplotlib comes with `demo`. `WITH_PEERS` are the tests of them.
PEERS = {
    "feedforward-jax": (["flowjax"], []),
    "feedforward-torch": (["normflows", "zuko"], ["nflows"]),
}
WITH_PEERS = "test_invert_*.py"

# One call per package and backend that shows a wheel to work on its own.
SMOKE = {
    "core-jax": """
        import jax.numpy as jnp
        from parafix.core.jax import affine_scan
        x = affine_scan(jnp.full((3, 1), 0.5), jnp.ones((3, 1)), jnp.zeros(1))
        assert jnp.allclose(x[:, 0], jnp.array([1.0, 1.5, 1.75])), x
    """,
    "core-torch": """
        import torch
        from parafix.core.torch import affine_scan
        a = torch.full((3, 1), 0.5, requires_grad=True)
        x = affine_scan(a, torch.ones(3, 1), torch.zeros(1))
        assert torch.allclose(x[:, 0], torch.tensor([1.0, 1.5, 1.75])), x
        x.sum().backward()
        assert torch.allclose(a.grad[:, 0], torch.tensor([0.0, 1.5, 1.5])), a.grad
    """,
    "deer-jax": """
        import jax.numpy as jnp
        from parafix.deer.jax import scan
        def step(carry, x):
            carry = jnp.tanh(0.5 * carry + x)
            return carry, carry
        carry, ys = scan(step, jnp.zeros(2), jnp.ones((5, 2)), solver="deer")
        assert ys.shape == (5, 2) and jnp.allclose(ys[-1], carry), (carry, ys)
        assert jnp.allclose(ys[0], jnp.tanh(1.0)), ys
    """,
    "deer-torch": """
        import torch
        from parafix.deer.torch import scan
        weight = torch.full((2, 2), 0.2, requires_grad=True)
        def step(carry, x):
            carry = torch.tanh(carry @ weight + x)
            return carry, carry
        carry, ys = scan(step, torch.zeros(1, 2), torch.ones(5, 1, 2), solver="deer")
        assert ys.shape == (5, 1, 2) and torch.allclose(ys[-1], carry), (carry, ys)
        assert torch.allclose(ys[0], torch.ones(1, 2).tanh()), ys
        carry.sum().backward()
        assert torch.isfinite(weight.grad).all() and weight.grad.any(), weight.grad
    """,
    "feedforward-jax": """
        import jax.numpy as jnp
        from parafix.feedforward.jax import solve_causal
        f = lambda z: jnp.concatenate([jnp.ones(1), 2 * z[:-1]])
        solution = solve_causal(f, jnp.zeros(5))
        assert solution.value.tolist() == [1, 2, 4, 8, 16], solution.value
        assert solution.stats["num_steps"] == 6, solution.stats
    """,
    "feedforward-torch": """
        import torch
        from parafix.feedforward.torch import solve_causal
        two = torch.tensor(2.0, requires_grad=True)
        f = lambda z: torch.cat([torch.ones(1, 1), two * z[:, :-1]], 1)
        solution = solve_causal(f, torch.zeros(1, 5))
        assert solution.value.tolist() == [[1, 2, 4, 8, 16]], solution.value
        assert solution.stats["num_steps"] == 6, solution.stats
        solution.value[0, -1].backward()
        assert two.grad == 32, two.grad
    """,
}

# A distribution that is none of ours, and what it registers.
THIRD_PARTY = "examples/third_party_plugin"
THIRD_PARTY_NAMES = {("rootfinder", "aitken"), ("scan", "doubling")}

ROOT = pathlib.Path(__file__).parent
CONSTRAINTS = "constraints.txt"
OLDEST = "constraints-min.txt"
FRAMEWORKS = ("jax", "torch", "numpy")
# Whatever the machine has: `gpu` is the session for the rest. XLA's pool of threads can
# lock itself up (docs/faq.md), and tests run in several processes anyway.
ON_CPU = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
INTERPRETED = {**ON_CPU, "TRITON_INTERPRET": "1"}


def name_of(package, backend):
    return package if backend == "light" else f"{package}-{backend}"


def suites(halves=("light", *BACKENDS, "kernels"), *, tagged=False):
    """The pairs of `PACKAGES` as parameters of a session.

    Only the session `tests` is tagged: `nox -t deer` means the everyday tests, without
    the slow ones.
    """
    return nox.parametrize(
        ["package", "backend"],
        [
            nox.param(
                package,
                backend,
                id=name_of(package, backend),
                tags=[package, backend] if tagged else [],
            )
            for package, backends in PACKAGES.items()
            for backend in backends
            if backend in halves
        ],
    )


def install(session, *requirements, constraints=CONSTRAINTS):
    """Run `pip install` under the constraints; they hold for building packages too."""
    path = str(ROOT / constraints)
    session.install("-c", path, *requirements, env={"PIP_BUILD_CONSTRAINT": path})


def editable(packages, *extras):
    """Arguments that install packages of this repository in place.

    In place means that tracebacks lead to the files one edits. What the wheels contain
    is the business of the session `build`.

    Of the backends among the extras, a package is asked for those that it has.
    """
    for package in packages:
        missing = {*BACKENDS} - {*PACKAGES[package]}
        suffix = ",".join(extra for extra in extras if extra not in missing)
        yield from ("-e", f"./packages/{package}" + (f"[{suffix}]" if suffix else ""))


def install_peers(session, *names, constraints=CONSTRAINTS):
    """Install the libraries that the tests of sessions of these names need."""
    for name in names:
        whole, alone = PEERS.get(name, ([], []))
        if whole:
            install(session, *whole, constraints=constraints)
        if alone:
            install(session, "--no-deps", *alone, constraints=constraints)


def scratch(session):
    return pathlib.Path(session.create_tmp()).resolve()


def project(package):
    return project_of(f"packages/{package}")


def project_of(folder):
    """The table `[project]` of the distribution in a folder of the repository."""
    text = (ROOT / folder / "pyproject.toml").read_text("utf-8")
    return tomllib.loads(text)["project"]


def install_suite(session, package, backend):
    """Install what the tests of one package need in one of its halves."""
    if backend == "light":
        # Every package: the table of known distributions is held against them.
        install(session, *editable(PACKAGES, "testing"))
    elif backend == "kernels":
        libraries = ("triton", "jax-triton")
        install(session, *editable([package], *BACKENDS, "testing"), *libraries)
        # What lets JAX write programs for a GPU; to run them it would need gigabytes.
        install(session, "--no-deps", "jax-cuda13-plugin")
    else:
        packages = dict.fromkeys(["core", package])
        install(session, *editable(packages, backend, "demo", "testing"))
        install_peers(session, name_of(package, backend))


def test_paths(package, backend):
    """Where the tests of one package in one of its halves are, as pytest arguments."""
    tests = ROOT / "packages" / package / "tests"
    paths = [str(tests / backend)]
    if backend == PACKAGES[package][0]:
        others = sorted({*BACKENDS, "kernels"} - {backend})
        paths = [str(tests), *(f"--ignore={tests / other}" for other in others)]
    return paths


def is_path(argument):
    path, *_ = argument.split("::")
    return not path.startswith("-") and pathlib.Path(path).exists()


def pytest_arguments(session, backend, paths):
    """The arguments of pytest: `paths`, unless the person calling named some."""
    if any(map(is_path, session.posargs)):
        paths = []
    checks = []
    if backend != "light":
        # Annotated shapes and dtypes are checked while the tests run.
        checked = ",".join(
            f"parafix.{package}.{half}"
            for package, halves in PACKAGES.items()
            for half in (BACKENDS if backend == "kernels" else [backend])
            if half in halves
        )
        checks = [f"--jaxtyping-packages={checked},beartype.beartype"]
    return [*checks, *paths, *session.posargs]


def side_by_side(session):
    """Arguments that run tests in as many processes as there are processors.

    Tests of a class stay together, so that they share what was compiled. A person who
    gives arguments may want a debugger, or to see the output, and gets one process.
    """
    if session.posargs:
        return []
    install(session, "pytest-xdist")
    return ["--numprocesses=auto", "--maxprocesses=8", "--dist=loadscope"]


def run_tests(session, backend, paths, *more):
    arguments = [*pytest_arguments(session, backend, paths), *more]
    # pytest fails when it collects nothing, and so does the session.
    env = INTERPRETED if backend == "kernels" else ON_CPU
    session.run("pytest", *arguments, env=env)


def run_marked(session, marker, backend, paths, env):
    """Run the tests with a marker, and say so where there are none."""
    report = scratch(session) / "report.xml"
    arguments = pytest_arguments(session, backend, paths)
    session.run(
        "pytest",
        *("-m", marker, f"--junitxml={report}"),
        *arguments,
        env=env,
        # 5 is pytest's code for no tests.
        success_codes=[0, 5],
    )
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    if suite is None or suite.get("tests") == "0":
        session.warn(f"no test is marked {marker!r} here: nothing was run")


@nox.session
@suites(tagged=True)
def tests(session, package, backend):
    """The everyday tests, one environment for each package and backend."""
    install_suite(session, package, backend)
    more = () if backend == "light" else side_by_side(session)
    run_tests(session, backend, test_paths(package, backend), *more)
    further = FURTHER_TESTS.get(name_of(package, backend))
    if further and not session.posargs:
        path, peers = further
        install(session, *peers)
        # On their own: what the conftest of a package sets holds for a whole process.
        session.run("pytest", path, env=ON_CPU)


@nox.session
def parity(session):
    """Both frameworks in one environment: the same answers, gradients and names."""
    packages = [name for name, halves in PACKAGES.items() if {*BACKENDS} <= {*halves}]
    install(session, *editable(packages, *BACKENDS, "testing"))
    checked = [f"parafix.{name}.{backend}" for name in packages for backend in BACKENDS]
    checks = f"--jaxtyping-packages={','.join(checked)},beartype.beartype"
    paths = [] if any(map(is_path, session.posargs)) else ["tests/parity"]
    arguments = [*paths, *session.posargs, *side_by_side(session)]
    session.run("pytest", checks, *arguments, env=ON_CPU)


@nox.session
@suites()
def slow(session, package, backend):
    """The tests marked `slow`, which `tests` leaves out."""
    install_suite(session, package, backend)
    env = INTERPRETED if backend == "kernels" else ON_CPU
    run_marked(session, "slow", backend, test_paths(package, backend), env)
    if name_of(package, backend) == "deer-jax" and not session.posargs:
        # They take some minutes too, and an environment of their own.
        session.notify("experiments")


@nox.session
@nox.parametrize("backend", [nox.param(backend, id=backend) for backend in BACKENDS])
def gpu(session, backend):
    """The tests marked `gpu`. Offline, in the environment that is active:
    `nox --no-venv --no-install -s gpu`.
    """
    packages = [name for name, backends in PACKAGES.items() if backend in backends]
    paths = [
        str(folder)
        for name in packages
        if (folder := ROOT / "packages" / name / "tests" / backend).is_dir()
    ]
    # What pip finds for PyTorch is built for CUDA already.
    accelerated = {"jax": ["jax[cuda13]", "jax-triton"], "torch": ["torch", "triton"]}
    install(session, *editable(packages, backend, "testing"), *accelerated[backend])
    env = {}
    if isinstance(session.virtualenv, nox.virtualenv.PassthroughEnv):
        env["PYTHONPATH"] = os.pathsep.join(source_path(session))
    # Their peers are not there, and none of their tests is marked.
    paths.append(f"--ignore-glob=*/{WITH_PEERS}")
    run_marked(session, "gpu", backend, paths, env)


def source_path(session):
    """What to put on the path where the packages are not installed and cannot be.

    The source folders do for imports. The registry finds plugins by the metadata of
    installed distributions, so the part it reads is written beside them.
    """
    folder = scratch(session) / "metadata"
    shutil.rmtree(folder, ignore_errors=True)
    for package in PACKAGES:
        table = project(package)
        stem = table["name"].replace("-", "_")
        info = folder / f"{stem}-{version_of(package)}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {table['name']}\n"
            f"Version: {version_of(package)}\n",
            "utf-8",
        )
        lines = []
        for group, entries in table.get("entry-points", {}).items():
            lines.append(f"[{group}]")
            lines.extend(f"{name} = {target}" for name, target in entries.items())
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return [str(folder)] + [str(ROOT / "packages" / name / "src") for name in PACKAGES]


def version_of(package):
    path = ROOT / "packages" / package / "src" / "parafix" / package / "_version.py"
    match = re.search(r"__version__ = ['\"]([^'\"]+)['\"]", path.read_text("utf-8"))
    return match.group(1)


@nox.session
def demo(session):
    """DEER on a real recording; arguments after `--` go to `parafix demo deer`."""
    install(session, *editable(["core", "deer"], demo_backend(session), "demo"))
    session.run("parafix", "demo", "deer", *session.posargs)


def demo_backend(session):
    """The framework asked for by `--backend torch` or `--backend=torch`; else JAX."""
    found = BACKENDS[0]
    for argument, following in itertools.pairwise([*session.posargs, ""]):
        name, equals, value = argument.partition("=")
        if name == "--backend":
            found = value if equals else following
    # What is no backend, the demo itself complains about.
    return found if found in BACKENDS else BACKENDS[0]


@nox.session
def bench(session):
    """Side-by-side timings; arguments after `--` go to `python -m benchmarks`."""
    install(session, *editable(PACKAGES, *BACKENDS, "demo"), "jaxopt", "torchdeq")
    install_peers(session, *PEERS)
    if shutil.which("nvidia-smi"):
        # What pip finds for PyTorch is built for CUDA already.
        peers = ["jax[cuda13]", "triton", "jax-triton", "accelerated-scan"]
        install(session, *peers)
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def experiments(session):
    """The experiments, tiny, and their tests; `-- deer_speed --full` runs one."""
    install(session, "-r", "experiments/requirements.txt", "pytest")
    # Recordings are read from it as a file; what it needs to run is not needed.
    install(session, "--no-deps", "seglearn")
    if session.posargs:
        name, *arguments = session.posargs
        session.run("python", "-m", f"experiments.{name}", *arguments)
        return
    out = ["--out", str(scratch(session) / "results")]
    session.run("python", "-m", "experiments", "--tiny", *out, env=ON_CPU)
    session.run("pytest", "experiments/tests", env=ON_CPU)


@nox.session
def lint(session):
    """Style, formatting, and which package may import which."""
    install(session, "ruff", "import-linter", *editable(PACKAGES))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo", "--no-cache")


@nox.session
def typecheck(session):
    """pyright; strict on the light half of the core."""
    # The extra `nodejs` brings what pyright runs on, so that nothing else is needed.
    tools = ["pyright[nodejs]", *editable(PACKAGES, *BACKENDS, "demo", "testing")]
    install(session, *tools)
    python = shutil.which("python", path=session.bin)
    # Named one by one: pyright passes when it finds no file, and fails when a folder is
    # named that is not there.
    folders = [f"packages/{package}/src" for package in PACKAGES]
    session.run("pyright", "--pythonpath", python, *(session.posargs or folders))


@nox.session
def docs(session):
    """The documentation; a warning is an error. `-- serve` shows it while writing."""
    # The API pages are read from the source files: no framework is needed.
    install(session, "mkdocs", "mkdocs-material", "mkdocstrings[python]", "ruff")
    # Material announces its successor at every build; the versions are fixed, so the
    # news is no reason to act today.
    env = {"NO_MKDOCS_2_WARNING": "1"}
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]), env=env)


@nox.session
def build(session):
    """Wheels: no file in two of them, and each works alone in an empty environment."""
    install(session, "build", "hatchling", "virtualenv")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    wheels = {
        package: built(session, f"packages/{package}", dist) for package in PACKAGES
    }
    check_contents(session, wheels)
    for package in PACKAGES:
        check_alone(session, package, wheels)


def built(session, folder, dist):
    """The wheel of the distribution in `folder`, made by way of its sdist in `dist`."""
    # hatchling is installed in the session, under the constraints: no isolation.
    session.run(
        *("python", "-m", "build", "--no-isolation", "--outdir", str(dist), folder),
        silent=True,
    )
    stem = project_of(folder)["name"].replace("-", "_")
    (wheel,) = dist.glob(f"{stem}-*.whl")
    return wheel


def check_contents(session, wheels):
    """Each wheel holds one package of the namespace and its licence, and no more."""
    owner = {}
    for package, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        for name in names:
            if name in owner:
                session.error(f"{name} is in {owner[name]} and in {wheel.name}")
            owner[name] = wheel.name
            inside = name.startswith(f"parafix/{package}/")
            metadata = re.match(rf"parafix_{package}-[^/]+\.dist-info/", name)
            if not (inside or metadata):
                session.error(f"{wheel.name} holds {name}, which is none of its own")
        for needed in (f"parafix/{package}/py.typed", "licenses/LICENSE"):
            if not any(name.endswith(needed) for name in names):
                session.error(f"{wheel.name} lacks {needed}")
        session.log(f"{wheel.name}: {len(names)} files, none of them in another wheel")


class Fresh:
    """A new, empty environment beside the session's own, for wheels to be tried in."""

    def __init__(self, session, name):
        self.session = session
        self.folder = scratch(session) / name
        session.run("virtualenv", "--quiet", "--clear", str(self.folder), silent=True)

    def run(self, command, *arguments, **options):
        """Run a command of the environment, in its folder: the repository must not
        lend a module to what a wheel lacks.
        """
        path = str(self.folder / ("Scripts" if os.name == "nt" else "bin") / command)
        with self.session.chdir(self.folder):
            return self.session.run(path, *arguments, external=True, **options)

    def pip(self, *requirements):
        constrained = ("-c", str(ROOT / CONSTRAINTS), *map(str, requirements))
        self.run("python", "-m", "pip", "install", "--quiet", *constrained)

    def check(self, code):
        """Run Python code; a warning is an error."""
        self.run(
            *("python", "-I", "-W", "error", "-c", textwrap.dedent(code)), log=False
        )


def check_alone(session, package, wheels):
    """Install one wheel, with the core that it needs, and use it; then each half."""
    needed = list(dict.fromkeys(["core", package]))
    fresh = Fresh(session, package)
    fresh.pip(*(wheels[name] for name in needed))
    fresh.check(f"""
        import importlib.metadata, sys
        import parafix.core, parafix.{package}
        loaded = set({FRAMEWORKS}) & set(sys.modules)
        assert not loaded, f"importing parafix.{package} loads {{loaded}}"
        assert not parafix.core.failures(), parafix.core.failures()
        version = importlib.metadata.version("parafix-{package}")
        assert parafix.{package}.__version__ == version
        names = {{d.metadata["Name"] for d in importlib.metadata.distributions()}}
        mine = {{name for name in names if name.startswith("parafix-")}}
        assert mine == {{*{[project(name)["name"] for name in needed]}}}, mine
        import parafix
        assert parafix.__spec__.origin is None, "parafix has an __init__.py"
    """)
    shutil.rmtree(fresh.folder)
    for backend in PACKAGES[package]:
        if backend not in BACKENDS:
            continue
        # An environment each: one half must not live on what the other has brought.
        fresh = Fresh(session, name_of(package, backend))
        fresh.pip(*(f"{wheels[name]}[{backend}]" for name in needed))
        fresh.check(SMOKE[name_of(package, backend)])
        others = {*FRAMEWORKS, *BACKENDS} - {backend, "numpy"}
        fresh.check(f"""
            import importlib.util, sys
            for name in {sorted(others)}:
                assert importlib.util.find_spec(name) is None, name
            import parafix.core, parafix.{package}
            loaded = set({FRAMEWORKS}) & set(sys.modules)
            assert not loaded, f"importing parafix.{package} loads {{loaded}}"
        """)
        shutil.rmtree(fresh.folder)
    session.log(f"{wheels[package].name} works alone")


@nox.session
def third_party(session):
    """An outside plugin, its wheel beside ours, and the scripts of `examples/`."""
    install(session, "build", "hatchling", "virtualenv")
    dist = scratch(session) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    wheels = [
        built(session, folder, dist)
        for folder in ("packages/core", "packages/deer", THIRD_PARTY)
    ]
    fresh = Fresh(session, "fresh")

    # Without a framework the names are there, and say what they lack.
    fresh.pip(*wheels)
    fresh.run("parafix", "list")
    fresh.check(f"""
        import sys
        import parafix.core
        found = {{
            (item.kind, item.name)
            for item in parafix.core.components(backend="jax")
            if item.distribution == "{project_of(THIRD_PARTY)["name"]}"
        }}
        assert found == {THIRD_PARTY_NAMES}, found
        assert not parafix.core.failures(), parafix.core.failures()
        for kind, name in sorted(found):
            try:
                parafix.core.get(kind, name, backend="jax")
            except parafix.core.MissingFrameworkError as error:
                assert "[jax]" in str(error), error
            else:
                raise AssertionError(f"{{name}} loads without jax")
        loaded = set({FRAMEWORKS}) & set(sys.modules)
        assert not loaded, f"listing what is there loads {{loaded}}"
    """)

    fresh.pip(*(f"{wheel}[jax,testing]" for wheel in wheels))
    folder = ROOT / THIRD_PARTY
    # One that is broken or registered twice would make the exit code 1.
    fresh.run("parafix", "doctor", env=ON_CPU)
    fresh.run("pytest", str(folder), env=ON_CPU)
    # And the scripts of `examples/`, which need nothing else.
    for script in (folder / "use.py", *sorted(folder.parent.glob("*.py"))):
        fresh.run("python", "-W", "error", str(script), env=ON_CPU)
    shutil.rmtree(fresh.folder)


@nox.session
@suites(BACKENDS)
def minimums(session, package, backend):
    """The tests with the oldest dependencies, against the oldest core allowed."""
    extras = (backend, "demo", "testing")
    requirements = list(editable([package], *extras))
    if package != "core":
        requirements += oldest_core(package, *extras)
    install(session, *requirements, constraints=OLDEST)
    install_peers(session, name_of(package, backend), constraints=OLDEST)
    run_tests(session, backend, test_paths(package, backend))


def oldest_core(package, *extras):
    """The oldest core that a plugin allows: this one, or the one of an earlier tag."""
    (requirement,) = (
        text for text in project(package)["dependencies"] if "parafix-core" in text
    )
    bound = re.search(r">=([0-9.]+)", requirement).group(1)
    release = ".".join([*bound.split("."), "0", "0"][:3])
    if release == version_of("core"):
        return list(editable(["core"], *extras))
    url = f"git+{ROOT.as_uri()}@core-v{release}#subdirectory=packages/core"
    return [f"parafix-core[{','.join(extras)}] @ {url}"]
