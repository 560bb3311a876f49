# NovaCron's commands. `make verify` never writes to the tree; `make fix` does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-libvirt ha ha-upgrade deps test test-debian verify fix sim sim-bugs explore explore-bugs bench-core bench-cluster bench-kvm doc msrv semver publish

SEEDS ?= 200
CORE_FEATURES := novacron-core/conformance,novacron-core/postgres,novacron-core/etcd,novacron-core/peers,novacron-examples/peers,novacron-examples/postgres,novacron-examples/etcd,novacron-examples/libvirt,novacron-kvm/redfish,novacron-kvm/libvirt
# What is published, and with it packaged by `make verify`.
UNPUBLISHED := --exclude novacron-examples --exclude novacron-benches

# What `novacron-kvm`'s feature `libvirt` is built with.
LIBVIRT_DEV := /usr/lib/*/pkgconfig/libvirt.pc:libvirt-dev

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

deps: ## install by apt what is missing (root or sudo only if something is)
	@as_root() { if [ "$$(id -u)" = 0 ]; then "$$@"; elif command -v sudo >/dev/null; then sudo "$$@"; \
	  else echo "deps: needs root or sudo to run: $$*" >&2; return 1; fi; }; \
	updated=no; \
	update() { if [ $$updated = no ]; then as_root apt-get update -q; updated=yes; fi; }; \
	install() { update; DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -q --no-install-recommends "$$@"; }; \
	need() { if ! command -v "$$1" >/dev/null 2>&1 && [ ! -x "/usr/sbin/$$1" ]; then install "$$2"; fi; }; \
	if ! command -v apt-get >/dev/null; then \
	  echo "deps: no apt-get here; the programs wanted: qemu-system-x86_64 qemu-img mcopy genisoimage sqlite3 postgres gcc pkg-config, and OVMF; for tests ip, etcd, etcdctl, too" >&2; \
	else \
	  need qemu-system-x86_64 qemu-system-x86; \
	  need qemu-img qemu-utils; \
	  need mcopy mtools; \
	  need sqlite3 sqlite3; \
	  need pkg-config pkg-config; \
	  need genisoimage genisoimage; \
	  if ! compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null; then install postgresql; fi; \
	  if ! command -v cc >/dev/null 2>&1; then install gcc libc6-dev; fi; \
	  if [ ! -d /usr/share/OVMF ]; then install ovmf; fi; \
	  for tool in $(MORE_TOOLS); do need "$${tool%:*}" "$${tool#*:}"; done; \
	  for file in $(MORE_FILES); do \
	    if ! compgen -G "$${file%:*}" >/dev/null; then install "$${file#*:}"; fi; done; \
	  if ! apt-cache show busybox-static >/dev/null 2>&1; then update; fi; \
	fi
	@command -v cargo >/dev/null || { echo "deps: no cargo; install Rust 1.88 or newer: https://rustup.rs" >&2; exit 1; }

demo: deps ## the whole way of one VM, on real guests
	cargo run --locked --release -p novacron-examples --bin quickstart

# The library looks its own user up, which this package makes; the daemon in it is not started.
demo-libvirt: MORE_FILES := $(LIBVIRT_DEV) /etc/libvirt/qemu.conf:libvirt-daemon-system \
  /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so:libvirt-daemon-driver-qemu
demo-libvirt: deps ## the same, and the VM moves from QEMU to a libvirt in the program itself (root or sudo)
	cargo build --locked --release -p novacron-examples --features libvirt --bin quickstart
	@as_root=; if [ "$$(id -u)" != 0 ]; then as_root=sudo; fi; \
	$$as_root "$${CARGO_TARGET_DIR:-target}/release/quickstart" libvirt

STORE ?= etcd postgres
STORY ?= all
ha: MORE_TOOLS := ip:iproute2 etcd:etcd-server etcdctl:etcd-client
ha: deps ## failover of real guests over three hosts, as root or by sudo: make ha STORE=etcd STORY=kill,partition
	cargo build --locked --release -p novacron-examples --features etcd,peers,postgres --bin ha
	@as_root=; if [ "$$(id -u)" != 0 ]; then as_root=sudo; fi; \
	for store in $(STORE); do $$as_root "$${CARGO_TARGET_DIR:-target}/release/ha" --store $$store --story $(STORY); done

ha-upgrade: MORE_TOOLS := ip:iproute2 etcd:etcd-server etcdctl:etcd-client
ha-upgrade: deps ## a rolling upgrade, of two builds side by side, under running guests
	cargo build --locked --release -p novacron-examples --features etcd,peers,postgres --bin ha
	@target="$${CARGO_TARGET_DIR:-$$PWD/target}"; \
	CARGO_TARGET_DIR="$$target/next" cargo build --locked --release -p novacron-examples --features etcd,peers,postgres,novacron-core/next-level --bin ha; \
	as_root=; if [ "$$(id -u)" != 0 ]; then as_root="sudo --preserve-env=HA_NEXT"; fi; \
	for store in $(STORE); do HA_NEXT="$$target/next/release/ha" $$as_root "$$target/release/ha" --store $$store --story upgrade; done

# The BMCs of the fences' tests. libvirt's module for Python is the system's, since it has to fit its libvirt.
VENV := $(CURDIR)/target/venv
$(VENV)/bin/vbmcd: | deps
	rm -rf $(VENV)
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(VENV)/bin/pip install -q sushy-tools==2.2.0 virtualbmc==3.3.0

GENERIC_KERNEL := $(CURDIR)/target/generic-kernel
$(GENERIC_KERNEL)/vmlinuz: examples/guest/generic-kernel.sh | deps
	examples/guest/generic-kernel.sh $(GENERIC_KERNEL)

test: MORE_TOOLS := ip:iproute2 etcd:etcd-server etcdctl:etcd-client libvirtd:libvirt-daemon virsh:libvirt-clients xmllint:libxml2-utils ipmitool openssl \
  strip:binutils swtpm swtpm_setup:swtpm-tools ssh:openssh-client nc:netcat-openbsd dropbear:dropbear-bin
test: MORE_FILES := $(LIBVIRT_DEV) /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so:libvirt-daemon-driver-qemu \
  /usr/lib/python3/dist-packages/libvirt.py:python3-libvirt /usr/lib/python3*/ensurepip:python3-venv
test: deps $(VENV)/bin/vbmcd $(GENERIC_KERNEL)/vmlinuz ## every test, by cargo-nextest where there is one, else by cargo test
	@cargo test --locked --doc --workspace --features $(CORE_FEATURES)
	@if cargo nextest --version >/dev/null 2>&1; then \
	  echo "runner: cargo-nextest"; \
	  cargo nextest run --locked --workspace --features $(CORE_FEATURES); \
	else \
	  echo "runner: cargo test (cargo-nextest is not installed)"; \
	  log=$$(mktemp); trap 'rm -f $$log' EXIT; rc=0; \
	  cargo test --locked --workspace --lib --bins --tests --no-fail-fast --features $(CORE_FEATURES) \
	    -- --test-threads=2 2>&1 | tee $$log || rc=$$?; \
	  awk '/^test result:/ { p += $$4; f += $$6; s += $$8 } END { printf "Summary: %d passed, %d failed, %d ignored\n", p, f, s }' $$log; \
	  exit $$rc; \
	fi

# The disk is built once; a change of its scripts builds it anew.
DEBIAN := $(CURDIR)/target/guest/debian.qcow2
$(DEBIAN): examples/guest/debian.sh examples/guest/disk.sh | deps
	mkdir -p $(@D)
	examples/guest/debian.sh $@

test-debian: MORE_TOOLS := mmdebstrap $(if $(filter 0,$(shell id -u)),,fakeroot newuidmap:uidmap)
test-debian: deps $(DEBIAN) ## a real Debian with cloud-init and the guest agent: some minutes
	NOVACRON_DEBIAN_IMAGE=$(DEBIAN) cargo test --locked -p novacron-examples --test debian -- --ignored --nocapture

verify: MORE_FILES := $(LIBVIRT_DEV)
verify: deps ## format, lints, docs, tidiness, licences, links, packages; writes nothing to the tree
	cargo fmt --all --check
	cargo clippy --locked -p novacron-core -- -D warnings
	cargo clippy --locked -p novacron-core --no-default-features -- -D warnings
	cargo clippy --locked -p novacron-core --features conformance -- -D warnings
	cargo clippy --locked -p novacron-core --no-default-features --features etcd -- -D warnings
	cargo clippy --locked -p novacron-core --no-default-features --features conformance -- -D warnings
	cargo clippy --locked -p novacron-core --no-default-features --features postgres -- -D warnings
	cargo clippy --locked -p novacron-core --no-default-features --features peers -- -D warnings
	cargo clippy --locked -p novacron-core --features conformance,etcd,peers,postgres --all-targets -- -D warnings
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p novacron-kvm --all-targets --features redfish,libvirt -- -D warnings
	cargo clippy --locked -p novacron-examples -p novacron-benches --all-targets --features novacron-examples/etcd,novacron-examples/peers,novacron-examples/postgres,novacron-examples/libvirt,novacron-benches/libvirt -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --features $(CORE_FEATURES)
	cargo test --locked --workspace --features $(CORE_FEATURES) --test tidy
	if command -v cargo-deny >/dev/null; then cargo deny --locked check; \
	  else echo "cargo-deny is not installed; the licences were checked by the tidy test"; fi
	cargo package --locked --workspace $(UNPUBLISHED) --allow-dirty --no-verify

fix: ## format, and what clippy can mend by itself
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

sim: ## the simulation of the real runtime: make sim SEEDS=2000
	@if cargo nextest --version >/dev/null 2>&1; then run="nextest run"; else run="test"; fi; set -x; \
	NOVACRON_SIM_SEEDS=$(SEEDS) cargo $$run --locked --release -p novacron-core --features conformance --test simulation

DELAYS ?= 1
explore: ## the failover protocol in every order: make explore DELAYS=1, how often the usual order is left (minutes)
	NOVACRON_EXPLORE=$(DELAYS) cargo test --locked --release -p novacron-core --features conformance --lib -- explore:: --nocapture --test-threads 2

# Each with the scenario that finds it, and how often the usual order has to be left for that.
EXPLORE_BUGS := part-guard:two_lead:1 name-then-make:an_owner_is_lost:1 fence-mark:an_owner_is_lost:1 \
  claim-check:a_remote_host_is_taken_over:1 second-look:an_owner_is_slow:2
explore-bugs: ## put bugs of docs/guides/simulation.md back, and see the exploration find them
	@target="$${CARGO_TARGET_DIR:-$$PWD/target}/sim-bugs"; missed=0; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	git ls-files -z | xargs -0 cp --parents -t "$$dir"; \
	for bug in $(EXPLORE_BUGS); do \
	  IFS=: read -r name scenario delays <<< "$$bug"; patch="$$PWD/docs/guides/bugs/$$name.patch"; \
	  explore="cargo test --locked --release -p novacron-core --features conformance --lib"; \
	  ( cd "$$dir"; git apply --unidiff-zero "$$patch"; CARGO_TARGET_DIR="$$target" $$explore --no-run ); \
	  if ( cd "$$dir"; CARGO_TARGET_DIR="$$target" NOVACRON_EXPLORE=$$delays $$explore -- "explore::$$scenario" ) > "$$dir/log" 2>&1; then \
	    echo "$$name: NOT FOUND"; missed=1; \
	  else grep -m 1 'BROKEN' "$$dir/log"; echo "$$name: found"; fi; \
	  ( cd "$$dir"; git apply --unidiff-zero --reverse "$$patch" ); \
	done; exit $$missed

sim-bugs: SEEDS := 4000
sim-bugs: ## put each known bug of docs/guides/simulation.md back, and see the simulation find it
	@target="$${CARGO_TARGET_DIR:-$$PWD/target}/sim-bugs"; log=$$(mktemp); dir=; missed=0; \
	trap 'rm -rf "$$log" $$dir' EXIT; \
	sim="cargo test --locked --release --no-fail-fast -p novacron-core --features conformance"; \
	look() { \
	  ( cd "$$2"; export CARGO_TARGET_DIR="$$target" NOVACRON_SIM_SEEDS=$(SEEDS); $$sim --test simulation --test cluster --no-run ); \
	  if ( cd "$$2"; export CARGO_TARGET_DIR="$$target" NOVACRON_SIM_SEEDS=$(SEEDS); \
	    timeout 1200 $$sim --test simulation && timeout 120 $$sim --test cluster || \
	    { rc=$$?; [ $$rc != 124 ] || echo "it goes on for ever"; exit $$rc; } ) > "$$log" 2>&1; then \
	    echo "$$1: NOT FOUND in $(SEEDS) seeds"; missed=1; \
	  else grep -m 3 -E '^seed |^test .* FAILED' "$$log" || true; grep -m 3 -E 'NOVACRON_SIM_(SEED|CASE)=' "$$log" || tail -n 20 "$$log"; echo "$$1: found"; fi; }; \
	for patch in $$(ls docs/guides/bugs/*.patch | grep -v -e fence-mark -e claim-check -e second-look); do \
	  dir=$$(mktemp -d); git ls-files -z | xargs -0 cp --parents -t "$$dir"; \
	  patch="$$PWD/$$patch"; ( cd "$$dir"; git apply --unidiff-zero "$$patch" ); \
	  look "$$(basename "$$patch" .patch)" "$$dir"; rm -rf "$$dir"; \
	done; \
	export NOVACRON_SIM_SYNC_EVERY=3; look durability "$$PWD"; \
	exit $$missed

bench-core: deps ## the numbers of docs/SPECIFICATION.md for the core; ONLY=overhead for one part
	cargo fetch --locked
	cargo run --locked --release -p novacron-benches --bin bench-core -- $(ONLY)

bench-cluster: MORE_TOOLS := etcd:etcd-server etcdctl:etcd-client
bench-cluster: deps ## the numbers of docs/SPECIFICATION.md for the stores; ONLY=watch for one part
	cargo fetch --locked
	cargo run --locked --release -p novacron-benches --bin bench-cluster -- $(ONLY)

bench-kvm: MORE_TOOLS := libvirtd:libvirt-daemon virsh:libvirt-clients
bench-kvm: MORE_FILES := $(LIBVIRT_DEV) /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so:libvirt-daemon-driver-qemu
bench-kvm: deps ## the numbers of docs/SPECIFICATION.md for libvirt (root: a libvirtd of its own); ONLY=start for one part
	cargo fetch --locked
	cargo run --locked --release -p novacron-benches --features libvirt --bin bench-kvm -- $(ONLY)

doc: MORE_FILES := $(LIBVIRT_DEV)
doc: deps ## the API's documentation
	cargo doc --locked --workspace --no-deps --features $(CORE_FEATURES)

MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
msrv: MORE_FILES := $(LIBVIRT_DEV)
msrv: deps ## the oldest Rust that is promised
	cargo +$(MSRV) check --locked --workspace --features $(CORE_FEATURES)

# In this order: each needs the ones before it to be in the registry.
PUBLISHED := novacron-core novacron-kvm novacron-storage novacron-sched novacron-cloud
BASE ?= $(shell git describe --tags --abbrev=0 --match 'v*' HEAD^ 2>/dev/null)
semver: ## the public API against the release before (needs cargo-semver-checks)
	@if [ -z "$(BASE)" ]; then echo "there is no earlier release to compare with"; \
	else cargo semver-checks $(addprefix --package ,$(PUBLISHED)) --baseline-rev $(BASE); fi

publish: ## publish every crate, the core first
	for crate in $(PUBLISHED); do cargo publish --locked -p $$crate; done
