# Every target sets up what it needs: on a fresh machine `make test` or `make demo` is the only command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

ENGINE := src/tritune/engine
LIBRARY := $(ENGINE)/libtritune_engine.so

.PHONY: demo native test test-slow test-browser lint clean

demo: $(LIBRARY)
	$(BIN)/tritune demo --output demo --overwrite

test: $(LIBRARY)
	$(BIN)/python -m pytest -q -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(LIBRARY)
	$(BIN)/python -m pytest -q -m slow

# The report as a browser shows it; needs chromium or chrome, as Debian's package `chromium`.
test-browser: $(STAMP)
	$(BIN)/python -m pytest -q -m browser -rs tests

# Exported models in the programs that they are for; needs node and, for the browser, chromium, as Debian's packages.
CLIENTS := tests/clients
.PHONY: test-clients
test-clients: $(STAMP) $(CLIENTS)/node_modules/.package-lock.json $(CLIENTS)/.venv/.installed
	$(BIN)/python -m pytest -q -m clients -rs tests

$(CLIENTS)/node_modules/.package-lock.json: $(CLIENTS)/package-lock.json
	npm ci --prefix $(CLIENTS) --ignore-scripts --no-audit --no-fund
	touch $@

$(CLIENTS)/.venv/.installed: $(CLIENTS)/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)/.venv
	$(CLIENTS)/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks docs examples setup.py
	$(BIN)/ruff format --check src tests benchmarks docs examples setup.py
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# The installation compiles the library; here only what has changed since. Without a compiler this says why and goes on.
native: $(LIBRARY)
$(LIBRARY): setup.py $(wildcard $(ENGINE)/native/*) | $(STAMP)
	$(BIN)/python setup.py --quiet build_ext --inplace

# The pages as a site in build/docs; a warning is an error, and so is a link that leads nowhere.
.PHONY: docs test-docs
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-docs: $(LIBRARY)
	$(BIN)/python -m pytest -q tests/test_docs.py

# The engine on sound, damaged and hostile models with every access to memory watched. `fuzz` looks for further ones with
# clang's libFuzzer, for SECONDS, from tests/native/corpus on; what breaks the engine is left in build/fuzz.
.PHONY: sanitize fuzz
SECONDS ?= 60
DRIVERS := tests/native
WATCH := -g -fno-sanitize-recover=all -fsanitize=address,undefined
LINK_DRIVER = -std=c++20 -O1 -DWITH_ENGINE -Isrc/tritune/engine/native $(DRIVERS)/fuzz_load.cpp $(@:%=build/%)/*.o -pthread

sanitize: $(STAMP)
	rm -f build/$@/*.o
	CXXFLAGS="$(WATCH)" LDFLAGS="$(WATCH)" $(BIN)/python setup.py -q build_ext --build-temp build/$@ --build-lib build/$@
	$(CXX) $(WATCH) $(DRIVERS)/load_driver.cpp $(LINK_DRIVER) -o build/$@/load_driver
	build/$@/load_driver replay $(DRIVERS)/corpus/*
	build/$@/load_driver damage 61 $(DRIVERS)/corpus/*

fuzz: $(STAMP)
	rm -f build/$@/*.o
	CXX=clang++ CXXFLAGS="$(WATCH) -fsanitize=fuzzer-no-link" LDFLAGS="$(WATCH) -Wl,-z,undefs" \
		$(BIN)/python setup.py -q build_ext --build-temp build/$@ --build-lib build/$@
	clang++ $(WATCH) -fsanitize=fuzzer $(DRIVERS)/fuzz_mutate.cpp $(LINK_DRIVER) -o build/$@/fuzz_load
	mkdir -p build/$@/found
	build/$@/fuzz_load -max_total_time=$(SECONDS) -max_len=20000 -artifact_prefix=build/$@/ build/$@/found $(DRIVERS)/corpus

# The engine for browsers, with relaxed SIMD and without, and the tokenizers that its pages use. The compiler is a clang
# in a Python package, unless WASM_CXX names another one that finds the libraries of WASI; npm fetches the tokenizers.
.PHONY: web test-web
WEB := src/tritune/deploy/web
TOKENIZERS := 0.2.0
WASM_CXX ?= $(BIN)/python -m ziglang c++ --target=wasm32-wasi
WASM_FLAGS := -std=c++20 -O3 -fno-exceptions -fno-rtti -fvisibility=hidden -Wall -Wextra -Wno-psabi \
	-ffp-contract=off -fno-math-errno -msimd128 -mexec-model=reactor -s \
	-Wl,--export-dynamic -Wl,--export=malloc -Wl,--export=free
WASM_SOURCES := $(filter-out %/quantizers.cpp,$(wildcard $(ENGINE)/native/*.cpp))

web: $(WEB)/tritune.wasm $(WEB)/tritune-relaxed.wasm $(WEB)/tokenizers.mjs

test-web: web $(LIBRARY)
	$(BIN)/python -m pytest -q -m web -rs tests

$(WEB)/tritune-relaxed.wasm: WASM_FLAGS += -mrelaxed-simd
$(WEB)/%.wasm: $(wildcard $(ENGINE)/native/*) | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ziglang
	@echo "compiling $@"
	@$(WASM_CXX) $(WASM_FLAGS) $(WASM_SOURCES) -o $@

$(WEB)/tokenizers.mjs:
	mkdir -p build/web
	cd build/web && npm pack --silent @huggingface/tokenizers@$(TOKENIZERS) && tar xf *-$(TOKENIZERS).tgz
	cp build/web/package/LICENSE $(WEB)/tokenizers.LICENSE
	cp build/web/package/dist/tokenizers.min.mjs $@

clean:
	rm -rf $(VENV) demo build dist $(LIBRARY) $(ENGINE)/not_compiled.txt $(WEB)/*.wasm $(WEB)/tokenizers.* $(CLIENTS)/node_modules \
		$(CLIENTS)/.venv
