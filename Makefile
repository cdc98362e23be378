# Every task by name; `make help` lists them. All of it runs on a bare Debian 12 with Node 20 or later; what is missing is
# installed with apt and npm, as root.
SHELL := /bin/bash
.DELETE_ON_ERROR:
# Headers that lie beside node need not be fetched.
NODE_HEADERS := $(shell node -p 'const home = path.join(path.dirname(process.execPath), ".."); fs.existsSync(home + "/include/node/node_api.h") ? "--nodedir=" + home : ""' 2>/dev/null)
VITEST := npx vitest run --reporter=default

.PHONY: help demo test build deps test-unit test-native test-prog test-netns test-vm test-storm test-browsers bench bench-prog bench-tap bench-tcp bench-dns bench-attach bench-churn bench-tls bench-check test-kernels test-packages deb clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a real microVM on a real tap, without and with the enforcer (root)
	@scripts/need-root.sh "make demo"
	@scripts/install-packages.sh build demo
	@$(MAKE) --no-print-directory build
	@node demo/run.mjs

test: ## all tests: unit, addon, kernel programs, namespaces with a real tap, microVM (root)
	@scripts/need-root.sh "make test"
	@scripts/install-packages.sh build demo test
	@$(MAKE) --no-print-directory build
	@npx tsc -p test/tsconfig.json && npx tsc -p test/tsconfig.unit.json && npx tsc -p bench/tsconfig.json
	@node scripts/run-tests.mjs

build: node_modules/.package-lock.json native/build/Release/enforcer_native.node dist/cli/main.js bin/enforcer ## bin/enforcer, which runs from the tree

deps: ## packages that build, demo and tests need (root)
	@scripts/need-root.sh "make deps"
	@scripts/install-packages.sh build demo test bench

node_modules/.package-lock.json: package.json package-lock.json
	npm ci --no-audit --no-fund
	@touch $@

bpf/build/enforcer.bpf.o: $(wildcard bpf/*.h bpf/*.c) bpf/Makefile
	@$(MAKE) --no-print-directory -C bpf

src/kernel/layout.gen.ts: bpf/build/enforcer.bpf.o scripts/gen-layout.mjs
	node scripts/gen-layout.mjs

src/addresses/tables.gen.ts: $(wildcard data/*.tsv) scripts/gen-tables.mjs
	node scripts/gen-tables.mjs

src/policy/suffixes.gen.ts: node_modules/.package-lock.json scripts/gen-suffixes.mjs
	node scripts/gen-suffixes.mjs

native/build/Release/enforcer_native.node: $(wildcard native/src/*) native/binding.gyp node_modules/.package-lock.json
	npx node-gyp rebuild -C native --loglevel=warn $(NODE_HEADERS)
	@touch $@

dist/cli/main.js: $(shell find src -name '*.ts' -not -name '*.gen.ts') src/kernel/layout.gen.ts src/addresses/tables.gen.ts src/policy/suffixes.gen.ts tsconfig.json node_modules/.package-lock.json
	npx tsc -p tsconfig.json
	@touch $@

bin/enforcer: scripts/enforcer.in
	@mkdir -p bin
	install -m 755 $< $@

test-unit: build ## pure code
	$(VITEST) test/unit
test-native: build ## the addon (root)
	$(VITEST) test/native
test-prog: build ## kernel programs by test run (root)
	$(VITEST) test/prog
test-netns: build ## namespaces with a real tap (root)
	$(VITEST) test/netns
test-vm: build ## one microVM (root)
	$(VITEST) test/vm

test-storm: build ## 200 taps, and guests behind TLS, for minutes: attach, detach, swap, kill, restart under fire (root)
	@scripts/need-root.sh "make test-storm"
	STORM_TAPS=$${STORM_TAPS:-200} STORM_SECONDS=$${STORM_SECONDS:-240} $(VITEST) test/storm

test-kernels: build ## programs and packet tests on Linux 6.1, 6.12 and this one; half an hour and more (root)
	@scripts/need-root.sh "make test-kernels"
	@scripts/install-packages.sh build demo test kernels
	@node test/kernels/run.mjs

test-packages: deb ## the Debian packages on a bare Debian 12 under its systemd, the npm package in an empty folder (root)
	@scripts/need-root.sh "make test-packages"
	@scripts/install-packages.sh packages
	@node test/packages/run.mjs && node test/packages/npm.mjs

# The version is that of docs/TLS.md; the program comes within the package.
test-browsers: build ## Chromium, Firefox and Deno in a guest on a tap; half a gigabyte to install (root)
	@scripts/need-root.sh "make test-browsers"
	@scripts/install-packages.sh build demo test browsers
	@mkdir -p test/browsers/build && npm install --no-audit --no-fund --no-save --ignore-scripts --prefix test/browsers/build deno@2.9.6
	$(VITEST) test/browsers

deb: build ## Debian packages in packaging/build
	@scripts/install-packages.sh build
	@node packaging/deb.mjs

bench: build ## every benchmark; results in bench/results/latest.json (root)
	@scripts/need-root.sh "make bench"
	@node bench/run.mjs && node bench/table.mjs
bench-prog bench-tap bench-tcp bench-dns bench-attach bench-churn bench-tls: build ## one benchmark alone
	@scripts/need-root.sh "make $@"
	@node bench/run.mjs $(@:bench-%=%) && node bench/table.mjs
bench-check: build ## fails when a ratio is worse than the recorded one (root)
	@scripts/need-root.sh "make bench-check"
	@node bench/check.mjs

clean: ## removes what build made
	rm -rf dist bin native/build bpf/build test/tools/build test/clients/build test/browsers/build packaging/build src/kernel/layout.gen.ts src/addresses/tables.gen.ts src/policy/suffixes.gen.ts
