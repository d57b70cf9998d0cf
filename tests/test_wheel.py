"""The wheel holds everything the package needs and works away from the repository."""

import os
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import tritune
from tritune.engine import binding

ROOT = Path(__file__).parents[1]
PACKAGE = Path(tritune.__file__).parent


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no package index in reach to build the wheel with")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools leaves a build folder where it builds
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "src").mkdir()
    (source / "src" / "tritune").symlink_to(PACKAGE)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (found,) = folder.glob("tritune-*.whl")
    return found


def test_every_file_is_in_it(wheel):
    built = (binding.LIBRARY, binding.NOTE)  # one of the two; here it need not be the one of the wheel
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts} - {*built}
    expected = {f"tritune/{path.relative_to(PACKAGE).as_posix()}" for path in files}
    with ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith("tritune/")}
    assert {Path(name).suffix for name in expected} >= {".py", ".yaml", ".cpp", ".h", ".jinja", ".typed"}
    (made,) = found - expected
    assert expected < found and Path(made).name in {path.name for path in built}
    assert wheel.name.endswith("-py3-none-any.whl") == made.endswith(".txt")


def test_it_works_from_another_folder(wheel, tmp_path):
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    code = "import tritune; print(tritune.__file__)"
    assert run(sys.executable, "-c", code, env=environment, cwd=tmp_path).startswith(str(tmp_path / "site"))
    code = "from tritune.engine.binding import why_not; print(why_not())"
    reason = run(sys.executable, "-c", code, env=environment, cwd=tmp_path)
    assert reason == "None\n" or wheel.name.endswith("-any.whl")
    recipe = run(sys.executable, "-m", "tritune", "recipes", "ti-g", env=environment, cwd=tmp_path)
    assert "schedule: gradual\n" in recipe


@pytest.mark.slow
def test_it_works_in_an_empty_environment(wheel, tmp_path):
    """Installed with all it depends on; the demo needs data, recipes, templates and, where it is there, the library."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(programs / "tritune", "demo", "--output", "demo", env=environment, cwd=tmp_path)
    run(programs / "tritune", "report", "demo", "--output", "page.html", env=environment, cwd=tmp_path)
    assert "ti-g" in (tmp_path / "page.html").read_text()
