// Package testenv starts the real parts our tests, the demo and the benchmarks
// run against: Vault servers, databases in containers, our own binaries.
//
// Guarantees:
//
//   - Everything listens on loopback, on ports the kernel picked, so tests may
//     run side by side, in one process or in several.
//   - Everything is removed when the test ends. Containers and volumes carry the
//     label io.dbops.testenv=<run id>, directories have the run id in their
//     name, so what a killed run left behind is swept by the next one.
//   - No registry is assumed: the scripts ensure-docker, ensure-image and
//     ensure-vault get or make what is missing.
//   - Servers are those of Debian 12 or official images. DBOPS_SUITE takes those of
//     another Debian suite (see ensure-image), [MySQLVariable] and [ValkeyVariable]
//     take MySQL for MariaDB and Valkey for Redis.
//   - A part that cannot be had skips the test, unless DBOPS_REQUIRE names it
//     (a comma list of docker, vault, postgres, mariadb, redis, tools, ..., or "all"):
//     then the test is red. make test and .ci/run name all of them.
//
// Helpers take a [TB] and so serve programs as well as tests; see [Run].
// The package is imported from _test.go files, the demo and the benchmarks only.
package testenv
