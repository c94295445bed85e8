//go:build !dbopsfault

package runner

import "github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"

const (
	edgeBegin = "begin"
	edgeEnd   = "end"
)

// fault is where builds for tests can be killed or held, see fault.go.
func fault(wire.Step, string) {}
