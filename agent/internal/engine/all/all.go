// Package all lists the engines this build has.
package all

import (
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine/postgres"
)

// Engines returns a new instance of each engine.
func Engines() []engine.Engine {
	return []engine.Engine{postgres.New(postgres.Options{})}
}
