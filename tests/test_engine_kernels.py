"""The engine's integer products: every instruction set gives the same bits as the specification, and as numpy."""

import itertools
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from native_kernels import (
    GROUP,
    ISAS,
    PANEL_ROWS,
    PIPE,
    SOURCES,
    Probe,
    Product,
    can_emulate,
    compiled,
    compiler,
    flags_for,
    panels_of,
    random_product,
    through_pipe,
    up_to,
    with_doubled_scale,
)

# Tokens, rows and columns: every number of tokens up to several tiles, every number of rows up to three panels, columns
# around blocks of 16 and groups of 64; each with both kinds of fields.
TOKENS = [(tokens, 1 + tokens % 40, 1 + 37 * tokens % 200) for tokens in range(1, 71)]
ROWS = [(1 + rows % 5, rows, 1 + 53 * rows % 200) for rows in range(1, 41)]
COLUMNS = [(1 + 7 * columns % 19, 1 + columns % 33, columns) for columns in (*range(1, 82, 3), 127, 128, 129, 191, 200)]
SHAPES = [*TOKENS, *ROWS, *COLUMNS]
# Sums of 16 bits must not overflow, and int32 sums must hold; rows of many tiles and chunks.
LONG = [(3, 17, 8192), (13, 16, 1000), (1, 33, 4097), (300, 16, 70), (145, 40, 64), (257, 24, 1100)]
MATRICES = [*((rows, 1 + 29 * rows % 150) for rows in range(1, 41)), (16, 64), (3, 5), (33, 257)]


def products(shapes: list[tuple[int, int, int]] = SHAPES) -> list[Product]:
    """Both kinds of fields in every shape."""
    return [random_product(*shape, bits=bits) for shape in shapes for bits in (2, 8)]


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Probe:
    return Probe(tmp_path_factory.mktemp("kernels"), flags_for(platform.machine()))


@pytest.fixture(scope="module")
def emulating_probe(tmp_path_factory) -> Probe:
    """AVX-VNNI in the encoding of AVX-512, and AMX in plain C++."""
    if not can_emulate():
        pytest.skip("this processor has no AVX512-VNNI to stand in for others")
    flags = flags_for("x86_64")
    narrow = ("-mavx512f", "-mavx512vl", "-mavx512vnni", "-mfma", "-mprefer-vector-width=256")
    tiles = (*(flag for flag in flags["kernels_amx"] if "amx" not in flag), "-DTRITUNE_EMULATED_AMX")
    return Probe(tmp_path_factory.mktemp("emulated"), {"kernels_avxvnni": narrow, "kernels_amx": tiles})


@pytest.fixture(params=ISAS)
def isa(request, probe) -> str:
    if request.param not in probe.isas():
        pytest.skip(f"{request.param} does not run here")
    return request.param


def check(probe: Probe, isa: str, product: Product) -> None:
    """Bit by bit, against 64-bit integers and float32."""
    np.testing.assert_array_equal(probe.sums(isa, product), product.sums())
    np.testing.assert_array_equal(probe.results(isa, product), product.results())


def test_sums_and_results_for_all_tails(probe, isa):
    for product in products():
        check(probe, isa, product)


def test_sums_and_results_over_many_columns_and_rows(probe, isa):
    for product in products(LONG):
        check(probe, isa, product)


@pytest.mark.parametrize("kind", ["largest", "zeros"])
def test_saturated_products_and_rows_of_zeros(probe, isa, kind):
    for shape, bits in itertools.product([(5, 17, 200), (13, 32, 1024), (2, 16, 8192)], (2, 8)):
        check(probe, isa, random_product(*shape, bits=bits, kind=kind))


def test_a_part_of_the_panels_is_written_and_no_other(probe, isa):
    for product in products([(1, 90, 70), (15, 90, 70), (40, 90, 70)]):
        sums, results = product.sums(), product.results()
        for first, end in itertools.combinations(range(7), 2):
            panels = slice(first, end)
            inside = np.isin(np.arange(90) // PANEL_ROWS, range(first, end))
            np.testing.assert_array_equal(probe.sums(isa, product, panels), np.where(inside, sums, -1))
            np.testing.assert_array_equal(probe.results(isa, product, panels), np.where(inside, results, -1))


def test_eight_threads_with_one_weight(probe, isa):
    product = random_product(19, 96, 300)
    pieces = [(random_product(tokens, 96, 300, seed=tokens), tokens % 6) for tokens in range(1, 33)]
    for own, _ in pieces:
        own.fields, own.panels, own.step, own.first = product.fields, product.panels, product.step, product.first

    def same(piece: tuple[Product, int]) -> bool:
        own, panel = piece
        part = slice(panel * PANEL_ROWS, (panel + 1) * PANEL_ROWS)
        results = probe.results(isa, own, slice(panel, panel + 1))[:, part]
        return all([np.array_equal(results, own.results()[:, part]), np.array_equal(probe.sums(isa, own), own.sums())])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, pieces))


def test_a_doubled_scale_is_noticed(probe, isa):
    product = random_product(4, 20, 50)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(probe.results(isa, with_doubled_scale(product)), product.results())


@pytest.mark.parametrize("isa", ["avxvnni", "amx"])
def test_emulated_instructions(emulating_probe, isa):
    for product in products(SHAPES[::3]):
        check(emulating_probe, isa, product)
    for product in [*products(LONG), random_product(33, 48, 2048, kind="largest")]:
        check(emulating_probe, isa, product)


def need(*tools: str) -> None:
    for tool in tools:
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not there")


def check_pipe(program: list[str], isa: str, cases: list[Product]) -> None:
    for product, (sums, results) in zip(cases, through_pipe(program, isa, cases), strict=True):
        np.testing.assert_array_equal(sums, product.sums())
        np.testing.assert_array_equal(results, product.results())


def test_neon_under_an_emulator(tmp_path):
    command, emulator, program = "aarch64-linux-gnu-g++", "qemu-aarch64", str(tmp_path / "pipe")
    need(command, emulator)
    objects = compiled(tmp_path, command, [*SOURCES, PIPE], flags_for("aarch64"))
    subprocess.run([command, "-static", *objects, "-o", program], check=True)
    cases = [*products(SHAPES[::4]), *products(LONG[:3]), random_product(13, 32, 1024, kind="largest")]
    check_pipe([emulator, program], "neon", cases)


def test_processors_without_the_instructions_are_not_given_them(probe, tmp_path):
    if platform.machine() != "x86_64":
        pytest.skip("for x86-64")
    emulator, pipe = "qemu-x86_64", str(tmp_path / "pipe")
    need(emulator)
    objects = [*probe.objects, *compiled(tmp_path, compiler(), [PIPE], {})]
    subprocess.run([compiler(), *objects, "-o", pipe], check=True)
    cases = products(SHAPES[::20])
    for processor, isas in {"Nehalem": ["scalar"], "Haswell": ["avx2", "scalar"]}.items():
        program = [emulator, "-cpu", processor, pipe]
        for isa in isas:
            check_pipe(program, isa, cases)
        for isa in set(ISAS) - set(isas):
            assert subprocess.run([*program, isa], input=b"").returncode == 1


def test_packed_fields_become_panels(probe):
    for rows, columns in MATRICES:
        random = np.random.default_rng(rows)
        fields = np.zeros((up_to(rows, PANEL_ROWS), up_to(columns, GROUP)), np.int64)
        fields[:rows, :columns] = random.integers(0, 4, (rows, columns))
        bytes_ = fields[:rows, : up_to(columns, 4)].reshape(rows, -1, 4) << (2 * np.arange(4))
        expected = panels_of(fields, 2)
        made = probe.panels("packed", bytes_.sum(-1).astype(np.uint8), rows, columns, expected.size)
        np.testing.assert_array_equal(made.reshape(expected.shape), expected)


@pytest.mark.parametrize("name", ["codes", "columns"])
def test_codes_become_panels(probe, name):
    for rows, columns in [*MATRICES, (128, 32)]:
        random = np.random.default_rng(rows)
        codes = np.zeros((rows, columns + 9), np.int8)  # rows lie apart
        codes[:, :columns] = random.integers(-127, 128, (rows, columns))
        weight = codes[:, :columns] if name == "codes" else codes[:, :columns].T
        fields = np.full((up_to(len(weight), PANEL_ROWS), up_to(weight.shape[1], GROUP)), 128)
        fields[: len(weight), : weight.shape[1]] = weight.astype(np.int64) + 128
        expected = panels_of(fields, 8)
        made = probe.panels(name, codes, rows, columns, expected.size).reshape(expected.shape)
        words = up_to(weight.shape[1], 16) // 4  # beyond the last block of columns nothing is promised
        np.testing.assert_array_equal(made[:, :words], expected[:, :words])


def test_the_best_instruction_set_is_chosen_and_others_by_name(probe):
    isas = probe.isas()
    assert isas == [isa for isa in ISAS if isa in isas] and isas[-1] == "scalar"
    assert probe.chosen(None) == isas[0]
    for isa in ISAS:
        assert probe.chosen(isa) == (isa if isa in isas else None)
    assert probe.chosen("") is None and probe.chosen("sse9") is None


def test_what_is_compiled_for_one_instruction_set_is_found_by_its_own_name_alone(probe):
    """A function of a common name might be taken from there for all, and stop a processor without the instructions."""
    need("nm")
    for path in probe.objects:
        isa = path.rpartition("kernels_")[2].removesuffix(".o")
        if isa not in ISAS:
            continue
        said = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        shared = [line for line in said.splitlines() if line.split()[1] in "TWu" and f"tritune::{isa}::" not in line]
        assert [line.split()[2] for line in shared] == [f"tritune::kernels_{isa}()"]
