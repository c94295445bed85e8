// Command dbops-agent works on one database host: it takes operations from Vault
// and runs them in sandboxes.
package main

import (
	"os"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/command"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(command.RunAgent(os.Args[1:], version)) }
